"""Metrics against hand-computed cases, limit cases and slow, obvious versions of themselves."""

import numpy as np
import pytest
from small_scores import random_scores

from modeling_rasalore.evaluation.metrics import (
    BINS,
    THRESHOLDS,
    auroc,
    average_precision,
    best_threshold,
    brier,
    calibration_table,
    dice,
    dice_curve,
    expected_calibration_error,
    false_alarm_threshold,
    pooled_auroc,
    pooled_average_precision,
    score_histograms,
)

# Dice


def test_dice_of_half_overlapping_masks() -> None:
    assert dice(np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)) == 0.5


def test_dice_of_two_empty_masks_is_one() -> None:
    assert dice(np.zeros(5, bool), np.zeros(5, bool)) == 1.0


def test_dice_with_one_empty_mask_is_zero() -> None:
    assert dice(np.ones(5, bool), np.zeros(5, bool)) == 0.0


def test_masks_on_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="never the truth"):
        dice(np.ones((4, 4), bool), np.ones((8, 8), bool))


# Average precision and ROC


def slow_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = truth[scores >= threshold]
        total += (chosen.sum() / truth.sum() - recall) * chosen.mean()
        recall = chosen.sum() / truth.sum()
    return total


def slow_auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    gaps = scores[truth][:, None].astype(float) - scores[~truth][None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_average_precision_by_hand() -> None:
    value = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    assert value == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_constant_map_gets_the_share_of_positives() -> None:
    truth = np.arange(10) < 3
    assert average_precision(np.full(10, 0.4), truth) == pytest.approx(0.3)
    assert auroc(np.full(10, 0.4), truth) == 0.5


def test_a_perfect_ranking_scores_one() -> None:
    truth = np.arange(10) < 3
    assert average_precision(truth * 0.1, truth) == auroc(truth * 0.1, truth) == 1.0


def test_without_positives_there_is_no_ranking() -> None:
    assert np.isnan(average_precision(np.ones(4), np.zeros(4, bool)))
    assert np.isnan(auroc(np.ones(4), np.zeros(4, bool)))


def test_without_negatives_precision_is_one_and_auroc_undefined() -> None:
    assert average_precision(np.arange(4), np.ones(4, bool)) == 1.0
    assert np.isnan(auroc(np.arange(4), np.ones(4, bool)))


@pytest.mark.parametrize("seed", range(5))
def test_rankings_equal_their_slow_versions_with_ties(seed: int) -> None:
    scores, truth = random_scores(seed)
    assert average_precision(scores, truth) == pytest.approx(slow_average_precision(scores, truth))
    assert auroc(scores, truth) == pytest.approx(slow_auroc(scores, truth))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_rankings_take_scores_of_any_type(dtype: type) -> None:
    truth = np.array([True, False, True, False])
    scores: np.ndarray = np.array([1, 1, 0, 0]).astype(dtype)
    assert average_precision(scores, truth) == 0.5


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        average_precision(np.array([0.1, np.nan]), np.array([True, False]))


# Histograms


def test_every_score_lies_between_the_edges_of_its_bin() -> None:
    ends = np.logspace(-38, -0.31, 4000, dtype=np.float32)
    edges = np.nextafter(THRESHOLDS, np.float32(1))
    scores = np.concatenate([[0.0, -0.0, 0.5, 1.0], ends, 1 - ends, THRESHOLDS, edges])
    scores = scores.astype(np.float32)
    histogram = score_histograms(scores[None], np.zeros((1, len(scores)), bool))[0, 0]
    at_or_below = [np.count_nonzero(scores <= edge) for edge in THRESHOLDS]
    assert np.array_equal(histogram.cumsum(), at_or_below)
    assert histogram.sum() == len(scores)


def test_one_half_is_a_bin_edge_and_edges_ascend() -> None:
    assert 0.5 in THRESHOLDS
    assert (np.diff(THRESHOLDS) > 0).all()
    assert len(THRESHOLDS) == BINS and THRESHOLDS[-1] == 1


@pytest.mark.parametrize("pair", [(1e-9, 1.01e-9), (1 - 2**-24, 1 - 2**-23), (0.3, 0.302)])
def test_scores_bunched_at_an_end_stay_apart(pair: tuple[float, float]) -> None:
    scores = np.array([pair], np.float32)
    assert score_histograms(scores, np.array([[True, False]])).max(1).sum() == 2


@pytest.mark.parametrize("seed", range(3))
def test_histogram_rankings_keep_the_stated_error_bound(seed: int) -> None:
    truth = np.random.default_rng(seed).random(20_000) < 0.1
    logits = np.random.default_rng(seed + 50).normal(3 * truth - 8, 3)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    histogram = score_histograms(scores[None], truth[None])[0]
    negatives, positives = histogram[:, ::-1]
    voxels = negatives + positives
    bound = (positives / truth.sum() * voxels / np.maximum(voxels.cumsum(), 1)).sum()
    assert abs(pooled_average_precision(histogram) - average_precision(scores, truth)) <= bound
    assert bound < 0.02
    bound = (positives * negatives).sum() / truth.sum() / (~truth).sum() / 2
    assert abs(pooled_auroc(histogram) - auroc(scores, truth)) <= bound < 0.001


def test_histograms_of_two_patients_add_up_to_the_pooled_one() -> None:
    scores, truth = random_scores(0)
    halves = score_histograms(scores.reshape(2, -1), truth.reshape(2, -1)).sum(0)
    assert np.array_equal(halves, score_histograms(scores[None], truth[None])[0])
    assert halves.sum(1).tolist() == [(~truth).sum(), truth.sum()]


def test_dice_curve_is_exact_at_every_threshold() -> None:
    scores, truth = random_scores(1)
    curve = dice_curve(score_histograms(scores[None], truth[None]))[0]
    for index in range(0, BINS, 97):
        assert curve[index] == dice(scores > THRESHOLDS[index], truth)


def test_dice_curve_of_an_empty_truth_is_one_where_nothing_is_predicted() -> None:
    curve = dice_curve(score_histograms(np.full((1, 9), 0.5), np.zeros((1, 9), bool)))[0]
    assert np.array_equal(curve, THRESHOLDS >= 0.5)


def test_best_threshold_is_the_best_of_all_scores() -> None:
    scores, truth = random_scores(2)
    threshold, best = best_threshold(dice_curve(score_histograms(scores[None], truth[None]))[0])
    assert best == dice(scores > threshold, truth)
    assert best == max(dice(scores > other, truth) for other in [0, *scores])


# Label-free threshold


def test_false_alarm_threshold_is_the_lowest_that_keeps_the_rate() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(100) / 100)
    threshold = false_alarm_threshold(scores, 0.05)
    assert threshold == 0.94
    assert np.mean(scores > threshold) == 0.05


def test_false_alarm_threshold_of_tied_scores_never_exceeds_the_rate() -> None:
    assert false_alarm_threshold(np.array([0.1] * 90 + [0.8] * 10), 0.05) == pytest.approx(0.8)


@pytest.mark.parametrize(("scores", "rate"), [([0.1], 0.0), ([0.1], 1.0), ([0.1], 5), ([], 0.1)])
def test_impossible_false_alarm_rates_are_refused(scores: list[float], rate: float) -> None:
    with pytest.raises(ValueError, match=r"must lie|is empty"):
        false_alarm_threshold(np.array(scores), rate)


# Calibration


def test_calibration_by_hand() -> None:
    table = calibration_table(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 0, 0, 0], bool))
    assert expected_calibration_error(table) == pytest.approx((0.4 * 2 + 0.1 * 2) / 4)
    assert brier(table) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)


def test_scores_equal_to_the_truth_are_calibrated() -> None:
    truth = np.arange(10) < 4
    table = calibration_table(truth.astype(np.float32), truth)
    assert expected_calibration_error(table) == brier(table) == 0


def test_calibration_tables_add_up() -> None:
    scores, truth = random_scores(3)
    parts = calibration_table(scores[:100], truth[:100]) + calibration_table(
        scores[100:], truth[100:]
    )
    assert np.allclose(parts, calibration_table(scores, truth))
