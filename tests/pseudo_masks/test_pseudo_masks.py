"""Heatmaps, prompts and the prompted segmenter, all in the slice's own pixel frame."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import SamImageProcessorPil

from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.pseudo_masks.deletion import choose_heatmap, deletion_scores, is_brain
from modeling_rasalore.pseudo_masks.rule import (
    SCALING,
    PseudoMaskRule,
    guided_filter,
    scale_heatmap,
)
from modeling_rasalore.pseudo_masks.segmenter import (
    PromptedSegmenter,
    bounding_box,
    sample_points,
    to_rgb,
)


def mask_of(rows: slice, columns: slice, shape: tuple[int, int] = (40, 80)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


def heat(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


# --- Scaling ----------------------------------------------------------------------------------

BRAIN = np.array([[False, True, True, True]])


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("maximum", [0, 0.01, 0.1, 1]),
        ("range", [0, 0, 0.09 / 0.99, 1]),
        ("geometric", [0, 0, 0, 1]),  # 0.2 is the median
    ],
)
def test_a_heatmap_is_scaled_inside_the_brain(scaling: str, expected: list[float]) -> None:
    scaled = scale_heatmap(heat(9, 0.02, 0.2, 2), BRAIN, scaling)
    assert scaled.dtype == np.float32
    assert scaled[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scaling", ["range", "geometric"])
def test_scaling_does_not_depend_on_the_heatmaps_own_scale(scaling: str) -> None:
    heatmap = np.random.default_rng(0).random((8, 9), dtype=np.float32) + 0.01
    brain = np.ones((8, 9), bool)
    scaled = scale_heatmap(heatmap, brain, scaling)
    np.testing.assert_allclose(scale_heatmap(1e-3 * heatmap, brain, scaling), scaled, atol=1e-5)
    assert scaled.min() == 0 and scaled.max() == pytest.approx(1)


def test_geometric_scaling_takes_brain_without_heat_as_the_coldest() -> None:
    brain = np.ones((1, 4), bool)
    scaled = scale_heatmap(heat(0, 0.02, 0.2, 2), brain, "geometric")
    # The median lies half way, in logarithms, between 0.02 and 0.2.
    assert scaled[0].tolist() == pytest.approx([0, 0, 1 / 3, 1], abs=1e-6)


@pytest.mark.parametrize("scaling", ["maximum", "range", "geometric"])
@pytest.mark.parametrize("heatmap", [heat(0, 0, 0, 0), heat(1, 0, 0, 0)])
def test_a_brain_without_heat_has_a_heatmap_of_zeros(heatmap: np.ndarray, scaling: str) -> None:
    assert not scale_heatmap(heatmap, BRAIN, scaling).any()


@pytest.mark.parametrize("scaling", ["maximum", "range", "geometric"])
def test_a_slice_without_brain_has_a_heatmap_of_zeros(scaling: str) -> None:
    assert not scale_heatmap(heat(1, 2, 3, 4), np.zeros((1, 4), bool), scaling).any()


def test_scaling_leaves_its_input_alone() -> None:
    heatmap = heat(0, 1, 2, 3)
    for scaling in ("maximum", "range", "geometric"):
        scale_heatmap(heatmap, BRAIN, scaling)
    assert heatmap.tolist() == [[0, 1, 2, 3]]


def test_every_kind_of_heatmap_has_a_scaling_that_exists() -> None:
    assert set(SCALING) == set(HEATMAPS)
    for scaling in SCALING.values():
        scale_heatmap(heat(0, 1, 2, 3), BRAIN, scaling)


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'linear'"):
        scale_heatmap(heat(0, 1, 2, 3), BRAIN, "linear")


# --- Deletion scores --------------------------------------------------------------------------


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


# --- Prompts ----------------------------------------------------------------------------------


def test_a_box_is_x_y_x_y_with_a_margin_of_its_longer_side() -> None:
    mask = mask_of(slice(10, 20), slice(30, 50))
    assert bounding_box(mask, margin=0) == (30, 10, 50, 20)
    assert bounding_box(mask, margin=0.05) == (29, 9, 51, 21)


def test_a_box_ends_at_the_border_of_the_slice() -> None:
    assert bounding_box(mask_of(slice(0, 40), slice(0, 80)), margin=0.5) == (0, 0, 80, 40)
    assert bounding_box(mask_of(slice(39, 40), slice(79, 80)), margin=0) == (79, 39, 80, 40)


def test_an_empty_mask_has_no_box_and_no_points() -> None:
    empty = mask_of(slice(0), slice(0))
    assert bounding_box(empty) is None and sample_points(empty, 10, seed=0) is None


def test_points_are_x_y_on_the_mask_and_depend_on_the_seed_alone() -> None:
    mask = mask_of(slice(10, 20), slice(30, 50))
    points, again, other = (sample_points(mask, 10, seed) for seed in (0, 0, 1))
    assert points is not None and points.shape == (10, 2) and points.dtype == np.float32
    assert all(mask[int(y), int(x)] for x, y in points)
    assert len(np.unique(points, axis=0)) == 10
    assert again is not None and np.array_equal(points, again)
    assert other is not None and not np.array_equal(points, other)


def test_a_small_mask_gives_its_points_more_than_once() -> None:
    points = sample_points(mask_of(slice(3, 4), slice(7, 9)), 10, seed=0)
    assert points is not None and {tuple(p) for p in points.tolist()} == {(7, 3), (8, 3)}


@settings(max_examples=50)
@given(st.integers(0, 999), st.floats(0, 1))
def test_a_box_holds_its_mask_and_lies_in_the_slice(seed: int, margin: float) -> None:
    mask = (np.random.default_rng(seed).random((9, 13)) < 0.03).astype(np.uint8)
    mask[seed % 9, seed % 13] = 1
    left, top, right, bottom = bounding_box(mask, margin) or (0, 0, 0, 0)
    rows, columns = np.nonzero(mask)
    assert 0 <= left <= columns.min() and columns.max() + 1 <= right <= 13
    assert 0 <= top <= rows.min() and rows.max() + 1 <= bottom <= 9


def test_a_slice_becomes_grey_with_eight_bits_over_its_range() -> None:
    rgb = to_rgb(np.array([[-3, 0, 7]], np.float32))
    assert rgb.dtype == np.uint8 and rgb[0].tolist() == [[0] * 3, [76] * 3, [255] * 3]
    assert not to_rgb(np.full((2, 2), 5, np.float32)).any()


# --- Prompted segmentation --------------------------------------------------------------------


class ObedientSam(nn.Module):
    """Answers with the inside of its box, or with the surroundings of its points."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.received: dict[str, Any] = {}

    def forward(self, **inputs: Any) -> SimpleNamespace:
        self.received = inputs
        centres = 4 * torch.arange(16) + 2.0  # 16 mask pixels of 4 input pixels
        y, x = centres[:, None], centres[None, :]
        if "input_boxes" in inputs:
            left, top, right, bottom = inputs["input_boxes"][0, 0]
            inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        else:
            points = inputs["input_points"][0, 0]
            apart = torch.stack([(x - px).abs().maximum((y - py).abs()) for px, py in points])
            inside = apart.amin(0) <= 4
        return SimpleNamespace(pred_masks=torch.where(inside, 5.0, -5.0)[None, None, None])


def image_like(mask: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random(mask.shape, dtype=np.float32) + mask


def obedient(sam_folder: Path, prompt: Any) -> tuple[PromptedSegmenter, ObedientSam]:
    model = ObedientSam()
    processor = SamImageProcessorPil.from_pretrained(sam_folder)
    return PromptedSegmenter(model, processor, prompt), model


@pytest.mark.parametrize("prompt", ["box", "points"])
@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (64, 64), (240, 200)])
def test_a_saved_sam_gives_masks_in_the_slices_frame(
    sam_folder: Path, prompt: Any, shape: tuple[int, int]
) -> None:
    segmenter = PromptedSegmenter.from_pretrained(str(sam_folder), prompt)
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40), shape)
    mask = segmenter.segment(image_like(pseudo_mask), pseudo_mask)
    assert mask.shape == shape and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert not segmenter.model.training


def test_an_empty_pseudo_mask_gives_an_empty_mask(sam_folder: Path) -> None:
    segmenter, model = obedient(sam_folder, "box")
    empty = mask_of(slice(0), slice(0))
    mask = segmenter.segment(image_like(empty), empty)
    assert mask.shape == (40, 80) and mask.dtype == np.uint8 and not mask.any()
    assert model.received == {}  # and the model is not even asked


def test_a_mask_may_come_back_empty(sam_folder: Path) -> None:
    segmenter, _ = obedient(sam_folder, "box")
    # One pixel, whose box holds no centre of a mask pixel.
    pseudo_mask = mask_of(slice(20, 21), slice(40, 41))
    assert not segmenter.segment(image_like(pseudo_mask), pseudo_mask).any()


def test_the_model_gets_the_box_in_the_pixels_of_its_resized_input(sam_folder: Path) -> None:
    segmenter, model = obedient(sam_folder, "box")
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40))  # of 40 x 80, resized to 32 x 64
    segmenter.segment(image_like(pseudo_mask), pseudo_mask)
    box = model.received["input_boxes"]
    assert box.shape == (1, 1, 4) and box.dtype == torch.float32
    assert box.flatten().tolist() == pytest.approx([0.8 * v for v in (19, 9, 41, 21)])
    assert model.received["multimask_output"] is False


def test_the_model_gets_ten_points_in_the_pixels_of_its_resized_input(sam_folder: Path) -> None:
    segmenter, model = obedient(sam_folder, "points")
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40))
    segmenter.segment(image_like(pseudo_mask), pseudo_mask)
    points, labels = model.received["input_points"], model.received["input_labels"]
    assert points.shape == (1, 1, 10, 2) and points.dtype == torch.float32
    assert labels.tolist() == [[[1] * 10]]
    x, y = points.flatten(0, 2).T
    assert x.min() >= 0.8 * 20 and x.max() < 0.8 * 40
    assert y.min() >= 0.8 * 10 and y.max() < 0.8 * 20


def test_the_model_gets_the_image_in_single_precision(sam_folder: Path) -> None:
    segmenter, model = obedient(sam_folder, "box")
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40))
    segmenter.segment(image_like(pseudo_mask).astype(np.float64), pseudo_mask)
    assert model.received["pixel_values"].shape == (1, 3, 64, 64)
    assert model.received["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize("prompt", ["box", "points"])
@pytest.mark.parametrize("shape", [(60, 120), (120, 60), (155, 240)])
def test_an_obedient_model_gives_the_pseudo_mask_back(
    sam_folder: Path, prompt: Any, shape: tuple[int, int]
) -> None:
    segmenter, _ = obedient(sam_folder, prompt)
    height, width = shape
    rows, columns = slice(height // 8, height // 2), slice(width // 4, width // 2)
    pseudo_mask = mask_of(rows, columns, shape)
    mask = segmenter.segment(image_like(pseudo_mask), pseudo_mask)
    overlap = 2 * (mask * pseudo_mask).sum() / (mask.sum() + pseudo_mask.sum())
    assert overlap > 0.6  # ten points do not reach every corner


def test_another_prompt_is_refused(sam_folder: Path) -> None:
    with pytest.raises(ValueError, match="'box' or 'points', got 'mask'"):
        obedient(sam_folder, "mask")


# --- Guided filter and the rule that makes pseudo-masks ---------------------------------------


def blurred_disc() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A slice with a bright disc, the disc, and a heatmap that knows its place but not its edge."""
    rows, columns = np.indices((64, 64)) - 32.0
    disc = (rows - 6) ** 2 + columns**2 < 9**2
    heat = np.exp(-((rows - 6) ** 2 + columns**2) / (2 * 9.0**2)).astype(np.float32)
    image = np.where(disc, 0.9, 0.4) * (rows**2 + columns**2 < 28**2)
    return image.astype(np.float32), disc, heat


@pytest.mark.parametrize("lesion", [0.9, 0.1])
def test_guided_heat_takes_over_the_outline_of_bright_and_dark_lesions(lesion: float) -> None:
    image, disc, heat = blurred_disc()
    image = np.where(disc, np.float32(lesion), image)
    plain = np.abs((heat > 0.5) ^ disc).sum()
    guided = guided_filter(heat, image, image > 0, reach=0.1)
    assert np.abs((guided > 0.5) ^ disc).sum() < 0.5 * plain
    assert (guided[image == 0] == 0).all()


def test_guided_heat_of_a_slice_without_edges_is_only_smoother() -> None:
    _, _, heat = blurred_disc()
    flat = np.full((64, 64), 3.0, np.float32)
    guided = guided_filter(heat, flat, flat > 0, reach=0.02)
    assert np.abs(guided - heat).max() < 0.05


def test_a_filtered_slice_without_brain_is_nothing() -> None:
    blank = np.zeros((8, 8), np.float32)
    assert not guided_filter(blank, blank, blank > 0, reach=0.1).any()


def test_a_rule_s_scores_cross_one_half_where_its_threshold_lies() -> None:
    image, _, heat = blurred_disc()
    scores = PseudoMaskRule("maximum", threshold=0.3).scores(heat, image)
    expected = scale_heatmap(heat, image > 0, "maximum") > 0.3
    assert np.array_equal(scores > 0.5, expected)
    assert scores.min() >= 0 and scores.max() == 1
