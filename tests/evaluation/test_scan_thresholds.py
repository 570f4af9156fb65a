"""A threshold of n healthy scans is exceeded by a new one as often as it promises, and no more."""

import numpy as np
import pytest

from modeling_rasalore.evaluation.scan_thresholds import (
    Promise,
    promised_threshold,
    scan_threshold,
    scans_needed,
)

DRAWS = 2000
RANDOM = np.random.default_rng
# What the thresholds of exchangeable scans may look like: skewed, heavy-tailed, in two groups (of
# scanners, say), near 1, and with a level of each draw's own, so exchangeable but not independent.
DISTRIBUTIONS = {
    "uniform": lambda random, shape: random.random(shape),
    "skewed": lambda random, shape: random.beta(0.5, 8, shape),
    "heavy tail": lambda random, shape: 1 / (1 + random.pareto(0.5, shape)),
    "two groups": lambda random, shape: (
        random.normal(0.2, 0.05, shape) + 0.6 * (random.random(shape) < 0.1)
    ),
    "level of a draw": lambda random, shape: (
        random.random((shape[0], 1)) + 0.1 * random.random(shape)
    ),
}


def exceeded(thresholds: np.ndarray, share: float) -> tuple[float, Promise]:
    """How often the last column is above the promised threshold of the others, row by row."""
    promises = [promised_threshold(row[:-1].tolist(), share) for row in thresholds]
    above = [row[-1] > promise.threshold for row, promise in zip(thresholds, promises, strict=True)]
    return float(np.mean(above)), promises[0]


def maps(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (S, H, W), all of them brain."""
    return scores.astype(np.float32), np.ones(scores.shape, bool)


# --- A new scan exceeds the promised threshold as often as stated -----------------------------
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("scans", "share"), [(5, 0), (10, 0), (20, 0), (5, 0.34), (10, 0.3),
                                              (20, 0.1)])  # fmt: skip
def test_a_new_scan_exceeds_the_threshold_as_often_as_promised(
    name: str, scans: int, share: float
) -> None:
    thresholds = DISTRIBUTIONS[name](RANDOM(scans), (DRAWS, scans + 1))
    seen, promise = exceeded(thresholds, share)
    expected = promise.rank / (scans + 1)
    assert promise.share == expected <= max(share, 1 / (scans + 1)) + 1e-9
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    assert abs(seen - expected) < 3.5 * error


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_equal_thresholds_are_exceeded_less_often_never_more(levels: int) -> None:
    thresholds = RANDOM(0).integers(0, levels, (DRAWS, 11)) / levels
    seen, promise = exceeded(thresholds, 0.3)
    error = np.sqrt(promise.share * (1 - promise.share) / DRAWS)
    assert seen <= promise.share + 3.5 * error


def test_whole_scans_of_correlated_voxels_keep_to_it() -> None:
    """Each scan has a level of its own, which a quantile of all scans' voxels would not see."""
    random, rate, above = RANDOM(1), 0.05, []
    for _ in range(400):
        level = random.normal(0, 0.1, (6, 1, 1, 1))
        scores = (0.4 + level + random.normal(0, 0.05, (6, 2, 10, 10))).clip(0, 1)
        *healthy, new = [scan_threshold(*maps(scan), rate) for scan in scores]
        above.append(new > promised_threshold(healthy).threshold)
        assert np.mean(scores[-1].astype(np.float32) > new) <= rate
    assert np.mean(above) == pytest.approx(1 / 6, abs=3.5 * np.sqrt(5 / 36 / 400))


# --- The rank ---------------------------------------------------------------------------------
def test_without_a_share_the_strictest_threshold_is_taken() -> None:
    assert promised_threshold([0.2, 0.9, 0.4]) == Promise(0.9, 3, 1)


def test_the_share_chooses_the_loosest_threshold_that_keeps_to_it() -> None:
    thresholds = [n / 10 for n in range(9)]
    ranks = {share: promised_threshold(thresholds, share).rank for share in (0.1, 0.19, 0.2, 0.99)}
    assert ranks == {0.1: 1, 0.19: 1, 0.2: 2, 0.99: 9}


def test_the_order_of_scans_changes_nothing() -> None:
    thresholds = RANDOM(2).random(12).tolist()
    shuffled = RANDOM(3).permutation(thresholds).tolist()
    assert promised_threshold(shuffled, 0.2) == promised_threshold(thresholds, 0.2)


def test_one_scan_promises_one_of_two() -> None:
    promise = promised_threshold([0.3])
    assert (promise.threshold, promise.share) == (0.3, 0.5)
    assert promised_threshold([0.3], 0.5) == promise


@pytest.mark.parametrize(("scans", "share", "needed"), [(1, 0.1, 9), (8, 0.1, 9), (5, 0.01, 99),
                                                        (1, 0.49, 2), (18, 0.05, 19)])  # fmt: skip
def test_a_share_that_needs_more_scans_is_refused_with_their_number(
    scans: int, share: float, needed: int
) -> None:
    with pytest.raises(ValueError, match=f"give {needed} healthy scans, or a share of 0") as caught:
        promised_threshold([0.5] * scans, share)
    assert f"{scans} healthy scans promise nothing for less than 1 of" in str(caught.value)
    assert scans_needed(share) == needed
    assert promised_threshold([0.5] * needed, share).rank == 1


@pytest.mark.parametrize(("thresholds", "share"), [([], 0), ([0.5], 1), ([0.5], -0.1)])
def test_no_scan_and_no_share_are_refused(thresholds: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="at least one healthy scan and a share of scans from 0"):
        promised_threshold(thresholds, share)


def test_the_promise_is_one_plain_sentence() -> None:
    promise = Promise(0.7, 6, 1)
    assert promise.in_words(0.01) == (
        "in at most 1 of 7 scans is more than 1 % of healthy brain marked"
    )
    assert promise.in_words(0.05, "slices") == (
        "in at most 1 of 7 scans are more than 5 % of healthy slices marked"
    )
    assert "is more than 0.5 mL of healthy brain marked" in promise.in_words(0.5, "ml")


# --- The threshold of one scan ----------------------------------------------------------------
@pytest.mark.parametrize("rate", [0.003, 0.01, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("unit", ["voxels", "slices", "ml"])
def test_a_scan_has_the_lowest_threshold_that_keeps_to_the_rate(rate: float, unit: str) -> None:
    scores, brain = maps(RANDOM(4).random((20, 8, 8)).round(2))  # many ties
    brain[:, :2] = False

    def marked(threshold: float) -> float:
        above = (scores > threshold) & brain
        shares = {"voxels": above[brain].mean(), "slices": above.any(axis=(1, 2)).mean()}
        return float((shares | {"ml": above.sum() * 0.002})[unit])

    threshold = scan_threshold(scores, brain, rate, unit, voxel_ml=0.002)
    assert marked(threshold) <= rate
    assert threshold == 0 or marked(np.nextafter(np.float32(threshold), np.float32(0))) > rate


def test_a_scan_of_constant_scores_has_them_as_its_threshold() -> None:
    scores, brain = maps(np.full((3, 4, 4), 0.25))
    for unit in ("voxels", "slices", "ml"):
        assert scan_threshold(scores, brain, 0.01, unit, voxel_ml=0.001) == 0.25


def test_a_scan_smaller_than_the_volume_that_may_be_marked_has_the_threshold_0() -> None:
    assert scan_threshold(*maps(RANDOM(5).random((2, 3, 3))), 5.0, "ml", voxel_ml=0.1) == 0


def test_slices_without_brain_do_not_count_as_unmarked() -> None:
    scores, brain = maps(np.linspace(0, 1, 10)[:, None, None])
    brain[2:] = False
    assert scan_threshold(scores, brain, 0.5, "slices") == 0  # one of two may be marked
    assert scan_threshold(scores, brain, 0.4, "slices") == pytest.approx(1 / 9)


def test_a_scan_without_brain_is_refused() -> None:
    scores, brain = maps(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="must show brain to have a threshold"):
        scan_threshold(scores, ~brain, 0.01)
