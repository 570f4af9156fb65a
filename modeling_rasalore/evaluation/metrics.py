"""Score anomaly maps against true masks: Dice, rankings, calibration (numpy only).

A map is compared with its mask voxel by voxel on the mask's own grid; nothing here resizes. A voxel
is predicted when its score is strictly above the threshold.
"""

import numpy as np

CALIBRATION_BINS = 15  # of equal width


def _halvings(lowest: int, highest: int) -> np.ndarray:
    """Numbers from 2^lowest to 2^highest, ascending, 256 equal steps to each doubling."""
    steps = np.outer(2.0 ** np.arange(lowest, highest), 1 + np.arange(256) / 256)
    return np.append(steps, 2.0**highest)


# Upper edges of the bins of a score in [0, 1]: bin b holds (THRESHOLDS[b - 1], THRESHOLDS[b]]. They
# crowd at both ends, so that scores bunched there stay apart: 256 for each halving of the score
# down to 2^-40 and, above 0.5, 256 for each halving of 1 - score down to 2^-16, from there on one
# for each float32 there is. Every edge, 0.5 among them, is a float32.
THRESHOLDS = np.concatenate(
    [_halvings(-40, -1), 1 + 2.0**-16 - _halvings(-16, -1)[::-1]], dtype=np.float32
)
BINS = len(THRESHOLDS)  # 13826


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient in [0, 1] of two masks of one shape; 1.0 when both are empty."""
    check_shapes(prediction, truth)
    marked = np.count_nonzero(prediction) + np.count_nonzero(truth)
    overlap = np.count_nonzero(np.logical_and(prediction, truth))
    return float(2 * overlap / marked) if marked else 1.0


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Exact average precision in [0, 1] of scores of any shape; NaN without a positive.

    The sum of precision over steps of recall, as scikit-learn defines it. Equal scores enter
    together, so a constant map gets the share of positives.
    """
    return float(pooled_average_precision(_exact_histogram(scores, truth)))


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Exact area under the ROC curve in [0, 1]; NaN when one of the two classes is absent."""
    return float(pooled_auroc(_exact_histogram(scores, truth)))


def score_histograms(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Voxels per slice, class (0 background, 1 lesion) and bin of score, (S, 2, BINS) int64.

    Histograms of pooled voxels are sums of histograms, so a data set is scored patient by patient.
    All they lose is the order within a bin. With p of all P positives and m voxels in a bin, and M
    voxels in it and above, average precision is off by at most sum(p / P * m / M); the area under
    the ROC curve by at most half the share of pairs that lie within one bin.

    Args:
        scores: (S, ...) in [0, 1], float32 or rounded to it.
        truth: (S, ...) bool.
    """
    check_shapes(scores, truth)
    histograms = np.empty((len(scores), 2, BINS), np.int64)
    for histogram, image, mask in zip(histograms, scores, truth, strict=True):
        for counts, values in zip(histogram, (image[~mask], image[mask]), strict=True):
            ascending = np.sort(values.astype(np.float32, copy=False))
            up_to_edge = np.searchsorted(ascending, THRESHOLDS, side="right")
            counts[:] = np.diff(up_to_edge, prepend=0)
    return histograms


def pooled_average_precision(histograms: np.ndarray) -> np.ndarray:
    """Average precision of histograms (..., 2, BINS) -> (...); NaN without a positive."""
    positives, negatives = histograms[..., 1, ::-1], histograms[..., 0, ::-1]  # best bin first
    hits = positives.cumsum(-1)
    precision = hits / np.maximum(hits + negatives.cumsum(-1), 1)
    with np.errstate(invalid="ignore"):
        return (positives * precision).sum(-1) / hits[..., -1]


def pooled_auroc(histograms: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of histograms (..., 2, BINS) -> (...); NaN without both classes."""
    positives, negatives = histograms[..., 1, :], histograms[..., 0, :]
    below = negatives.cumsum(-1) - negatives / 2  # a tie is half in order
    pairs = positives.sum(-1) * negatives.sum(-1)
    with np.errstate(invalid="ignore"):
        return (positives * below).sum(-1) / pairs


def dice_curve(histograms: np.ndarray) -> np.ndarray:
    """Exact Dice of `score > THRESHOLDS[b]` for every b: (..., 2, BINS) -> (..., BINS)."""
    above = histograms.sum(-1, keepdims=True) - histograms.cumsum(-1)
    overlap = above[..., 1, :]
    marked = above.sum(-2) + histograms[..., 1, :].sum(-1, keepdims=True)
    return np.where(marked > 0, 2 * overlap / np.maximum(marked, 1), 1.0)


def best_threshold(curve: np.ndarray) -> tuple[float, float]:
    """Threshold at which a Dice curve (BINS,) is highest, and its value there.

    An oracle: a curve, such as the mean of `dice_curve` over slices, is made of true masks.
    """
    best = int(np.argmax(curve))
    return float(THRESHOLDS[best]), float(curve[best])


def false_alarm_threshold(healthy_scores: np.ndarray, rate: float) -> float:
    """Lowest of the scores that at most the share `rate` of them exceeds; needs no mask.

    Args:
        healthy_scores: scores inside the brain on healthy validation slices, any shape.
        rate: false-alarm rate asked for, as a share of voxels in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}; 0.01 asks for 1 % of voxels.")
    if np.size(healthy_scores) == 0:
        raise ValueError("healthy_scores is empty; give the scores of at least one healthy slice.")
    return float(np.quantile(healthy_scores, 1 - rate, method="inverted_cdf"))


def calibration_table(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sums per bin of score in [0, 1], (CALIBRATION_BINS, 4) float64; tables of patients add up.

    Columns: voxels, sum of scores, positives, sum of squared errors.
    """
    check_shapes(scores, truth)
    values, positive = np.ravel(scores).astype(np.float64), np.ravel(truth)
    bins = np.minimum((values * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    columns = [np.ones_like(values), values, positive, (values - positive) ** 2]
    return np.stack([np.bincount(bins, column, CALIBRATION_BINS) for column in columns], axis=1)


def expected_calibration_error(table: np.ndarray) -> np.ndarray:
    """Gap between mean score and share of positives, averaged over voxels: (..., bins, 4) -> (...).

    NaN for an empty table.
    """
    with np.errstate(invalid="ignore"):
        return np.abs(table[..., 1] - table[..., 2]).sum(-1) / table[..., 0].sum(-1)


def brier(table: np.ndarray) -> np.ndarray:
    """Mean squared error of the scores: (..., bins, 4) -> (...); NaN for an empty table."""
    with np.errstate(invalid="ignore"):
        return table[..., 3].sum(-1) / table[..., 0].sum(-1)


def check_shapes(scores: np.ndarray, truth: np.ndarray) -> None:
    """Raise ValueError unless a map and its truth share one grid."""
    if np.shape(scores) != np.shape(truth):
        raise ValueError(
            f"a map and its truth must share one shape, got {np.shape(scores)} and "
            f"{np.shape(truth)}; bring the map to the truth's grid, never the truth to the map's."
        )


def _exact_histogram(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Negatives and positives at each distinct score, ascending, (2, groups)."""
    check_shapes(scores, truth)
    values, positive = np.ravel(scores), np.ravel(truth).astype(bool)
    if np.isnan(values).any():
        raise ValueError("scores must be numbers, got NaN; replace them before scoring.")
    # Negatives below every positive are one group: their order changes nothing, so no sorting.
    ranks = values >= (values[positive].min() if positive.any() else np.inf)
    order = np.argsort(values[ranks])
    ranked, hits = values[ranks][order], positive[ranks][order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * (ranked.size > 0)))
    positives = np.diff(hits.cumsum()[ends], prepend=0)
    negatives = np.diff(ends, prepend=-1) - positives
    below = values.size - ranked.size
    return np.stack([np.insert(negatives, 0, below), np.insert(positives, 0, 0)])
