"""Scores of anomaly maps against true masks, and intervals for their means (numpy and scipy only).

A map is compared with its mask voxel by voxel on the mask's own grid; nothing here resizes. A voxel
is predicted when its score is strictly above the threshold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtr, stdtrit

# Bins of a score in [0, 1], made from the bits of the float32 so that scores bunched at either end
# stay apart: 256 bins for each halving of the score down to 2^-40, and, above 0.5, 256 for each
# halving of 1 - score down to 2^-16, from there on one for each float32 there is.
_DROPPED_BITS = 15  # 8 of a float32's 23 mantissa bits are kept
_HALF = np.float32(0.5).view(np.int32) >> _DROPPED_BITS
_LOWEST = np.float32(2.0**-40).view(np.int32) >> _DROPPED_BITS
_OFFSET = np.float32(2.0**-16)
_LOW_BINS = int(_HALF - _LOWEST) + 1
_HIGH_BINS = int(_HALF - (_OFFSET.view(np.int32) >> _DROPPED_BITS)) + 1
BINS = _LOW_BINS + _HIGH_BINS  # 13826
_low_edges = (np.arange(_LOW_BINS, dtype=np.int32) + _LOWEST) << _DROPPED_BITS
_high_edges = (_HALF - np.arange(_HIGH_BINS, dtype=np.int32)) << _DROPPED_BITS
# Upper edge of each bin: bin b holds the scores in (THRESHOLDS[b - 1], THRESHOLDS[b]]. Every edge,
# 0.5 among them, is a float32, so `score > THRESHOLDS[b]` and `bin > b` are the same question.
THRESHOLDS = np.concatenate(
    [_low_edges.view(np.float32), 1 + _OFFSET - _high_edges.view(np.float32)]
)

CALIBRATION_BINS = 15  # of equal width

# Lesion-wise rules of BraTS 2023 for gliomas, as the challenge's published code applies them.
MERGE_VOXELS = 3  # dilation steps: true lesions that meet are one, predictions within belong to it
SMALLEST_LESION = 50.0  # mm3; true lesions up to this volume neither count nor are missed
HD95_PENALTY = 374.0  # mm, for a missed or an invented lesion: the diagonal of 240 x 240 x 155
_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)
_NEIGHBOURS_18 = ndimage.generate_binary_structure(3, 2)
SURFACE_SAMPLE = 50_000  # voxels; only noise has larger surfaces, and a sample gives its percentile

Interval = tuple[float | None, float | None]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice coefficient in [0, 1] of two masks of one shape; 1.0 when both are empty."""
    _check_shapes(prediction, truth)
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
    _check_shapes(scores, truth)
    histograms = np.empty((len(scores), 2, BINS), np.int64)
    for histogram, image, mask in zip(histograms, scores, truth, strict=True):
        bins = _score_bins(image)
        histogram[1] = np.bincount(bins[mask.ravel()], minlength=BINS)
        histogram[0] = np.bincount(bins, minlength=BINS) - histogram[1]
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
    _check_shapes(scores, truth)
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


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Hausdorff distance in mm between the surfaces of two masks, at the 95th percentile.

    The larger of the two directions; 0.0 when both masks are empty, `HD95_PENALTY` when one is.
    A surface is the mask's voxels with a face outside it. (The challenge's code weighs surface
    elements by their area instead; the two agree to about a voxel.)

    Args:
        prediction, truth: (S, H, W) bool.
        spacing: mm between slices, rows and columns.
    """
    _check_shapes(prediction, truth)
    prediction_points = np.argwhere(_surface(prediction)) * np.asarray(spacing)
    return _hd95(prediction_points, np.argwhere(_surface(truth)) * np.asarray(spacing))


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one scan under the rules of BraTS 2023.

    Attributes:
        dice: mean over true lesions and invented ones, which count 0; 1.0 when there are none.
        hd95: the same mean in mm; missed and invented lesions count `HD95_PENALTY`.
        lesions: true lesions above `SMALLEST_LESION`.
        missed: those that no predicted component comes near.
        invented: predicted components near no true lesion, of any size.
    """

    dice: float
    hd95: float
    lesions: int
    missed: int
    invented: int


def lesion_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> LesionScores:
    """Lesion-wise Dice and HD95 of one scan; each true lesion is scored at its own, undilated size.

    True voxels whose dilations meet are one lesion. It is compared with all predicted components
    (26 neighbours) that reach into its dilation; one component may answer for several lesions.

    Args:
        prediction, truth: (S, H, W) bool.
        spacing: mm between slices, rows and columns.
    """
    _check_shapes(prediction, truth)
    around = _box(prediction | truth)
    prediction, truth = prediction[around], truth[around]
    components, found = ndimage.label(prediction, _NEIGHBOURS_26)
    sizes = np.bincount(components.ravel())
    surface = _surface(prediction)
    points, owners = np.argwhere(surface) * np.asarray(spacing), components[surface]
    invented = np.arange(found + 1) > 0  # until a true lesion claims the component
    dices, distances, missed = [], [], 0
    for box, lesion in _true_lesions(truth):
        reach = ndimage.binary_dilation(lesion, _NEIGHBOURS_18, MERGE_VOXELS)
        matched = np.isin(np.arange(found + 1), components[box][reach])
        matched[0] = False
        invented &= ~matched
        voxels = np.count_nonzero(lesion)
        if voxels * np.prod(spacing) <= SMALLEST_LESION:
            continue
        missed += int(not matched.any())
        overlap = np.count_nonzero(matched[components[box][lesion]])
        dices.append(float(2 * overlap / (voxels + sizes[matched].sum())))
        corner = [axis.start for axis in box]
        lesion_points = (np.argwhere(_surface(lesion)) + corner) * np.asarray(spacing)
        distances.append(_hd95(points[matched[owners]], lesion_points))
    false_alarms = int(np.count_nonzero(invented))
    counted = len(dices) + false_alarms
    return LesionScores(
        dice=sum(dices) / counted if counted else 1.0,
        hd95=(sum(distances) + false_alarms * HD95_PENALTY) / counted if counted else 0.0,
        lesions=len(dices),
        missed=missed,
        invented=false_alarms,
    )


def bootstrap_interval(values: Sequence[np.ndarray], seed: int, n: int = 2000) -> Interval:
    """95 % interval `(low, high)` of the mean of all values, resampling whole patients.

    Percentiles of `n` resampled means, widened for few patients as a t quantile is (Hesterberg
    2015, expanded percentiles). No interval reaches beyond the patients it is made of: with 2 to 5
    of them it is about their range and covers less than it says. `(None, None)` below 2 patients.

    Args:
        values: one array per patient, for instance the Dice of each slice; NaN is left out.
        seed: the same seed gives the same resamples of the same number of patients.
    """
    kept = [np.asarray(value, np.float64)[~np.isnan(value)] for value in values]
    sums = np.array([[value.sum(), value.size] for value in kept if value.size])  # (patients, 2)
    return pooled_interval(sums, lambda table: table[..., 0] / table[..., 1], seed, n)


def paired_bootstrap(
    values: Sequence[np.ndarray], reference: Sequence[np.ndarray], seed: int, n: int = 2000
) -> tuple[float, float | None, float | None]:
    """Mean of `values - reference` and its 95 % interval over patients: `(mean, low, high)`.

    Args:
        values, reference: one array per patient: same patients, same slices, same order.
    """
    if [np.shape(value) for value in values] != [np.shape(value) for value in reference]:
        raise ValueError("values and reference must hold the same patients and slices; align them.")
    differences = [np.subtract(*pair, dtype=float) for pair in zip(values, reference, strict=True)]
    return float(np.nanmean(np.concatenate(differences))), *bootstrap_interval(differences, seed, n)


def pooled_interval(
    tables: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int, n: int = 2000
) -> Interval:
    """95 % interval of a statistic of summed tables, over patients as in `bootstrap_interval`.

    Args:
        tables: (patients, ...), one additive table per patient, such as a score histogram.
        statistic: (resamples, ...) -> (resamples,).
    """
    patients = len(tables)
    if patients < 2:
        return None, None
    draws = np.random.default_rng(seed).multinomial(patients, [1 / patients] * patients, size=n)
    flat = tables.reshape(patients, -1).astype(np.float64)
    estimates = [
        statistic((part @ flat).reshape(-1, *tables.shape[1:]))
        for part in np.array_split(draws.astype(np.float64), 1 + n // 50)  # 11 MB of bins at a time
    ]
    defined = np.concatenate(estimates)
    defined = defined[~np.isnan(defined)]
    if not defined.size:
        return None, None
    tail = ndtr(stdtrit(patients - 1, 0.025) * np.sqrt(patients / (patients - 1)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _check_shapes(scores: np.ndarray, truth: np.ndarray) -> None:
    if np.shape(scores) != np.shape(truth):
        raise ValueError(
            f"a map and its truth must share one shape, got {np.shape(scores)} and "
            f"{np.shape(truth)}; bring the map to the truth's grid, never the truth to the map's."
        )


def _exact_histogram(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Negatives and positives at each distinct score, ascending, (2, groups)."""
    _check_shapes(scores, truth)
    values, positive = np.ravel(scores), np.ravel(truth).astype(bool)
    if np.isnan(values).any():
        raise ValueError("scores must be numbers, got NaN; replace them before scoring.")
    # Negatives below every positive are one group: their order changes nothing, so no sorting.
    kept = values >= (values[positive].min() if positive.any() else np.inf)
    order = np.argsort(values[kept])
    ranked, hits = values[kept][order], positive[kept][order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * (ranked.size > 0)))
    positives = np.diff(hits.cumsum()[ends], prepend=0)
    negatives = np.diff(ends, prepend=-1) - positives
    below = values.size - ranked.size
    return np.stack([np.insert(negatives, 0, below), np.insert(positives, 0, 0)])


def _score_bins(scores: np.ndarray) -> np.ndarray:
    """Bin of each score in [0, 1], flat int32, ascending with the score."""
    values = np.abs(scores.ravel().astype(np.float32, copy=False))  # -0.0 has the bits of a minus
    bins = np.maximum(((values.view(np.int32) - 1) >> _DROPPED_BITS) - _LOWEST + 1, 0)
    high = np.flatnonzero(values > 0.5)
    distances = 1 + _OFFSET - values[high]  # exact in float32 for scores above 0.5
    bins[high] = _LOW_BINS + _HALF - (distances.view(np.int32) >> _DROPPED_BITS)
    return bins


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Bounding box of a mask (S, H, W), with room for the dilation."""
    sides = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(
        _grown(slice(*side[[0, -1]] + [0, 1])) if side.size else slice(1) for side in sides
    )


def _grown(side: slice) -> slice:
    return slice(max(int(side.start) - MERGE_VOXELS, 0), int(side.stop) + MERGE_VOXELS)


def _true_lesions(truth: np.ndarray) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Each true lesion: its box, with room for the dilation, and its own voxels in that box."""
    around = _box(truth)  # predictions may lie far from it
    merged = ndimage.binary_dilation(truth[around], _NEIGHBOURS_18, MERGE_VOXELS)
    labels = np.zeros(truth.shape, np.int32)
    labels[around] = ndimage.label(merged, _NEIGHBOURS_26)[0] * truth[around]
    boxes = [tuple(_grown(side) for side in box) for box in ndimage.find_objects(labels)]
    return [(box, labels[box] == index) for index, box in enumerate(boxes, start=1)]


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face outside it; beyond the array is outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1, 1:-1] & padded[2:, 1:-1, 1:-1]
    inside &= padded[1:-1, :-2, 1:-1] & padded[1:-1, 2:, 1:-1]
    inside &= padded[1:-1, 1:-1, :-2] & padded[1:-1, 1:-1, 2:]
    return mask & ~inside


def _hd95(first: np.ndarray, second: np.ndarray) -> float:
    """Of two surfaces, points (n, 3) in mm."""
    if not (len(first) and len(second)):
        return HD95_PENALTY if len(first) or len(second) else 0.0
    return max(_directed_hd95(first, second), _directed_hd95(second, first))


def _directed_hd95(first: np.ndarray, second: np.ndarray) -> float:
    sample = first[:: 1 + len(first) // SURFACE_SAMPLE]
    distances, _ = cKDTree(second, balanced_tree=False, compact_nodes=False).query(sample)
    return float(np.quantile(distances, 0.95, method="inverted_cdf"))
