"""Deletion scores: a faithful heatmap scores high, and no mask is needed."""

import pytest
import torch
from torch import Tensor

from modeling_rasalore.pseudo_masks.criteria import choose_heatmap, deletion_scores, is_brain


def lesion_slice() -> Tensor:
    """Slice (1, 1, 4, 5): 10 px of background, 9 of healthy brain at 1, a lesion pixel of 3."""
    slices = torch.zeros(1, 1, 4, 5)
    slices[:, :, 2:] = 1
    slices[:, :, 2, 3] = 3
    return slices


def brightest(pixel_values: Tensor) -> Tensor:
    """Toy classifier: its brightest pixel, as a share of the lesion's."""
    return pixel_values.amax((1, 2, 3)) / 3


def heatmap_at(row: int, column: int) -> Tensor:
    heatmap = torch.zeros(1, 4, 5)
    heatmap[:, row, column] = 1
    return heatmap


def test_removing_the_lesion_leaves_the_median_of_the_brain() -> None:
    # The first tenth of the brain is the lesion's pixel: 1 falls to 1/3.
    score = deletion_scores(heatmap_at(2, 3), lesion_slice(), brightest, shares=(0.1, 0.2))
    assert score.tolist() == pytest.approx([2 / 3])


def test_the_score_is_the_mean_over_the_removed_shares() -> None:
    # A twentieth of ten pixels: rank 0 < 0.5, so one pixel; 0.4: four pixels of 1 change nothing.
    sums = deletion_scores(
        heatmap_at(2, 3), lesion_slice(), lambda x: x.sum((1, 2, 3)), shares=(0.05, 0.4)
    )
    assert sums.tolist() == pytest.approx([(2 + 2) / 2])


def test_a_faithful_heatmap_scores_higher_than_a_wrong_one() -> None:
    faithful = deletion_scores(heatmap_at(2, 3), lesion_slice(), brightest)
    wrong = deletion_scores(1 - heatmap_at(2, 3), lesion_slice(), brightest)
    assert faithful.item() == pytest.approx(2 / 3) and wrong.item() == pytest.approx(0)


def test_heat_outside_the_brain_does_not_count() -> None:
    distracted = heatmap_at(2, 3) + 9 * heatmap_at(0, 0)
    faithful = deletion_scores(heatmap_at(2, 3), lesion_slice(), brightest)
    assert torch.equal(deletion_scores(distracted, lesion_slice(), brightest), faithful)


def test_a_coarse_heatmap_of_a_batch_is_scored_slice_by_slice() -> None:
    slices = torch.full((2, 3, 16, 16), 0.2)
    slices[:, :, :2] = 0
    slices[:, :, 12:, 12:] = 0.9
    heatmaps = torch.zeros(2, 4, 4)
    heatmaps[0, 3, 3] = heatmaps[1, 1, 0] = 1
    scores = deletion_scores(heatmaps, slices, lambda x: x.mean((1, 2, 3)))
    assert scores[0] > 4 * scores[1].abs()


def test_a_slice_without_brain_scores_zero() -> None:
    blank = torch.zeros(1, 1, 4, 5)
    assert deletion_scores(heatmap_at(2, 3), blank, brightest).tolist() == [0]


def test_deletion_leaves_its_inputs_alone() -> None:
    slices, heatmap = lesion_slice(), heatmap_at(2, 3)
    deletion_scores(heatmap, slices, brightest)
    assert torch.equal(slices, lesion_slice()) and torch.equal(heatmap, heatmap_at(2, 3))


def test_the_brain_is_what_is_not_background_also_after_normalisation() -> None:
    expected = lesion_slice()[:, 0] > 0
    assert torch.equal(is_brain((lesion_slice() - 0.3) / 0.2), expected)


def test_the_heatmap_with_the_highest_score_is_chosen_and_a_tie_goes_to_the_first() -> None:
    assert choose_heatmap({"a": 0.1, "b": 0.3, "c": 0.2}) == "b"
    assert choose_heatmap({"a": 0.3, "b": 0.3}) == "a"
