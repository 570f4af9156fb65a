"""Prompts of pseudo-masks, and a segmenter that obeys them, in the slice's own frame."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import SamImageProcessorPil

from modeling_rasalore.pseudo_masks.segmenter import (
    MARGINS,
    PromptedSegmenter,
    bounding_box,
    choose_margin,
    sample_points,
    to_rgb,
)


def mask_of(rows: slice, columns: slice, shape: tuple[int, int] = (40, 80)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


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
        self.embedded = 0

    def get_image_embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.received["pixel_values"] = pixel_values
        self.embedded += 1
        return pixel_values

    def forward(self, **inputs: Any) -> SimpleNamespace:
        self.received |= inputs
        centres = 4 * torch.arange(16) + 2.0  # 16 mask pixels of 4 input pixels
        y, x = centres[:, None], centres[None, :]
        if "input_boxes" in inputs:
            left, top, right, bottom = inputs["input_boxes"][0, 0]
            inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        else:
            points = inputs["input_points"][0, 0]
            apart = torch.stack([(x - px).abs().maximum((y - py).abs()) for px, py in points])
            inside = apart.amin(0) <= 4
        return SimpleNamespace(
            pred_masks=torch.where(inside, 5.0, -5.0)[None, None, None],
            iou_scores=self.expect_overlap(inputs),
        )

    def expect_overlap(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Highest for boxes 20 px high."""
        if "input_boxes" not in inputs:
            return torch.zeros(1, 1, 1)
        _, top, _, bottom = inputs["input_boxes"][0, 0]
        return 1 - (bottom - top - 20).abs()[None, None, None] / 100


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


# --- Margins ----------------------------------------------------------------------------------
def test_the_chosen_margin_is_the_one_whose_overlap_the_model_expects_to_be_best(
    sam_folder: Path,
) -> None:
    segmenter, model = obedient(sam_folder, "box")
    pseudo_mask = mask_of(slice(15, 30), slice(20, 30), (64, 64))  # 15 px high
    empty = mask_of(slice(0), slice(0), (64, 64))
    image = image_like(pseudo_mask)
    expected = choose_margin(segmenter, [(image, pseudo_mask), (image, empty)])
    assert tuple(expected) == MARGINS
    assert segmenter.margin == 0.15 == max(expected, key=expected.__getitem__)  # 15 + 2 * 2.25 px
    assert model.embedded == 1  # once for all margins, and not for what has no prompt
    segmenter.segment(image, pseudo_mask)
    _, top, _, bottom = model.received["input_boxes"].flatten().tolist()
    assert (top, bottom) == pytest.approx((12.75, 32.25))


def test_without_anything_to_prompt_the_margin_stays(sam_folder: Path) -> None:
    segmenter, model = obedient(sam_folder, "box")
    empty = mask_of(slice(0), slice(0))
    assert choose_margin(segmenter, [(image_like(empty), empty)]) == {}
    points, _ = obedient(sam_folder, "points")
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40))
    assert choose_margin(points, [(image_like(pseudo_mask), pseudo_mask)]) == {}
    assert segmenter.margin == points.margin == 0.05 and model.embedded == 0


def test_a_negative_margin_is_refused(sam_folder: Path) -> None:
    with pytest.raises(ValueError, match="margin must be at least 0, got -1"):
        PromptedSegmenter(ObedientSam(), None, margin=-1)


# --- Which model ------------------------------------------------------------------------------
def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"a segmenter is one of sam, .*, got 'bert' in"):
        PromptedSegmenter.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("prompt", ["box", "points"])
def test_embedding_once_changes_no_mask(sam_folder: Path, prompt: str) -> None:
    segmenter = PromptedSegmenter.from_pretrained(str(sam_folder), prompt)
    pseudo_mask = mask_of(slice(10, 20), slice(20, 40))
    image = image_like(pseudo_mask)
    inputs = segmenter.processor(to_rgb(image), return_tensors="pt")
    with torch.inference_mode():
        whole = segmenter.model(
            pixel_values=inputs["pixel_values"],
            **segmenter.prompts(pseudo_mask, inputs, torch.device("cpu")),
            multimask_output=False,
        )
    logits = segmenter.processor.post_process_masks(
        whole.pred_masks,
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        binarize=False,
    )
    expected = logits[0][0, 0].sigmoid().numpy()
    np.testing.assert_allclose(segmenter.score(image, pseudo_mask), expected, atol=1e-6)
