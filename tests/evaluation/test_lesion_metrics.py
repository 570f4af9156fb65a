"""Lesion-wise scores and surface distances against slow versions and the challenge's rules."""

import numpy as np
import pytest
from scipy import ndimage

from modeling_rasalore.evaluation import lesion_metrics
from modeling_rasalore.evaluation.lesion_metrics import (
    HD95_PENALTY,
    LesionScores,
    hd95,
    lesion_scores,
)
from modeling_rasalore.evaluation.metrics import dice

MILLIMETRE = (1.0, 1.0, 1.0)


def blobs(seed: int, share: float, shape: tuple[int, ...] = (24, 40, 36)) -> np.ndarray:
    """Smooth random components that cover a share of the volume."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def with_boxes(*boxes: tuple[slice, ...]) -> np.ndarray:
    volume = np.zeros((20, 40, 40), bool)
    for box in boxes:
        volume[box] = True
    return volume


def cube(row: int, side: int = 4) -> tuple[slice, ...]:
    """Box of side x side x side voxels whose first row is `row`; 64 mm3 by default."""
    return slice(8, 8 + side), slice(row, row + side), slice(10, 10 + side)


# Hausdorff distance


def slow_hd95(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> float:
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    directed = []
    for one, other in (surfaces, surfaces[::-1]):
        distances = np.sort(ndimage.distance_transform_edt(~other, sampling=spacing)[one])
        directed.append(distances[int(np.ceil(0.95 * len(distances))) - 1])
    return float(max(directed))


def test_hd95_of_equal_masks_is_zero() -> None:
    assert hd95(blobs(0, 0.1), blobs(0, 0.1), MILLIMETRE) == 0.0


def test_hd95_of_two_voxels_is_their_distance_in_mm() -> None:
    first, second = np.zeros((2, 9, 9, 9), bool)
    first[4, 4, 2] = second[6, 4, 5] = True
    assert hd95(first, second, (5.0, 1.0, 0.5)) == pytest.approx(np.hypot(10, 1.5))


def test_hd95_of_an_empty_mask_is_the_penalty_unless_both_are() -> None:
    empty = np.zeros((4, 4, 4), bool)
    assert hd95(empty, ~empty, MILLIMETRE) == hd95(~empty, empty, MILLIMETRE) == 374.0
    assert hd95(empty, empty, MILLIMETRE) == 0.0


@pytest.mark.parametrize("spacing", [MILLIMETRE, (4.0, 0.8, 1.1)])
def test_hd95_equals_the_distance_transform_version(spacing: tuple[float, ...]) -> None:
    first, second = blobs(1, 0.15), blobs(2, 0.05)
    assert hd95(first, second, spacing) == pytest.approx(slow_hd95(first, second, spacing))


def test_a_sample_of_a_large_surface_gives_nearly_the_same_hd95(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = blobs(1, 0.15), blobs(2, 0.05)
    exact = hd95(first, second, MILLIMETRE)
    monkeypatch.setattr(lesion_metrics, "SURFACE_SAMPLE", 500)
    assert hd95(first, second, MILLIMETRE) == pytest.approx(exact, abs=1.0)


# Lesion-wise scores


def slow_lesion_scores(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float, int]:
    """The rules of the challenge on whole volumes, one lesion after another."""
    near, touching = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    groups, count = ndimage.label(ndimage.binary_dilation(truth, near, 3), touching)
    components, found = ndimage.label(prediction, touching)
    matched: set[int] = set()
    scores: list[tuple[float, float]] = []
    for group in range(1, count + 1):
        lesion = truth & (groups == group)
        mine = set(components[ndimage.binary_dilation(lesion, near, 3)].tolist()) - {0}
        matched |= mine
        if lesion.sum() > 50:
            part = np.isin(components, list(mine))
            distance = slow_hd95(part, lesion, MILLIMETRE) if mine else 374.0
            scores.append((dice(part, lesion), distance))
    scores += [(0.0, 374.0)] * (found - len(matched))
    means = np.mean(scores, axis=0)
    return float(means[0]), float(means[1]), found - len(matched)


@pytest.mark.parametrize("seed", range(6))
def test_lesion_scores_equal_their_slow_version(seed: int) -> None:
    prediction, truth = blobs(seed, 0.03), blobs(seed + 50, 0.03) | blobs(seed, 0.01)
    fast = lesion_scores(prediction, truth, MILLIMETRE)
    expected = slow_lesion_scores(prediction, truth)
    assert (fast.dice, fast.hd95, fast.invented) == pytest.approx(expected)


def test_a_perfect_prediction_of_two_lesions() -> None:
    truth = with_boxes(cube(5), cube(25))
    assert lesion_scores(truth, truth, MILLIMETRE) == LesionScores(1.0, 0.0, 2, 0, 0)


def test_nothing_predicted_of_nothing_is_right() -> None:
    empty = with_boxes()
    assert lesion_scores(empty, empty, MILLIMETRE) == LesionScores(1.0, 0.0, 0, 0, 0)


def test_a_missed_lesion_counts_zero_and_the_penalty() -> None:
    truth = with_boxes(cube(5), cube(25))
    found = lesion_scores(with_boxes(cube(5)), truth, MILLIMETRE)
    assert found == LesionScores(0.5, HD95_PENALTY / 2, 2, 1, 0)


def test_an_invented_lesion_counts_zero_and_the_penalty_at_any_size() -> None:
    speck = cube(30, side=1)
    found = lesion_scores(with_boxes(cube(5), speck), with_boxes(cube(5)), MILLIMETRE)
    assert found == LesionScores(0.5, HD95_PENALTY / 2, 1, 0, 1)


def test_a_lesion_of_50_mm3_neither_counts_nor_makes_its_prediction_a_false_alarm() -> None:
    small = (slice(8, 10), slice(25, 30), slice(10, 15))  # 2 x 5 x 5 = 50 voxels
    truth = with_boxes(cube(5), small)
    found = lesion_scores(with_boxes(cube(5), small), truth, MILLIMETRE)
    assert found == LesionScores(1.0, 0.0, 1, 0, 0)
    assert lesion_scores(truth, truth, (1.0, 1.0, 1.1)).lesions == 2


@pytest.mark.parametrize(("gap", "lesions"), [(6, 1), (7, 2)])
def test_lesions_whose_dilations_touch_are_one(gap: int, lesions: int) -> None:
    truth = with_boxes(cube(5), cube(9 + gap))
    assert lesion_scores(truth, truth, MILLIMETRE).lesions == lesions


@pytest.mark.parametrize("row", [9, 21])
def test_the_truth_is_dilated_to_find_predictions_but_not_to_score_them(row: int) -> None:
    beside = lesion_scores(with_boxes(cube(row)), with_boxes(cube(15)), MILLIMETRE)
    assert (beside.dice, beside.missed, beside.invented) == (0.0, 0, 0)
    assert beside.hd95 == 6.0
    beyond = lesion_scores(
        with_boxes(cube(row + int(np.sign(row - 15)))), with_boxes(cube(15)), MILLIMETRE
    )
    assert (beyond.missed, beyond.invented) == (1, 1)


def test_one_component_may_answer_for_two_lesions() -> None:
    truth = with_boxes(cube(5), cube(25))
    bridge = with_boxes((slice(8, 12), slice(5, 29), slice(10, 14)))
    found = lesion_scores(bridge, truth, MILLIMETRE)
    assert found.dice == pytest.approx(2 * 64 / (64 + 24 * 16))
    assert (found.missed, found.invented) == (0, 0)
