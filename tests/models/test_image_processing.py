"""The image processor: one frame for slices, masks and maps, and settings that survive saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from modeling_rasalore.models.image_processing_rasalore import (
    RasaloreImageProcessor,
    brain_box,
    resize_bilinear,
    unit_range,
)

BRAIN = (slice(10, 50), slice(6, 36))  # 40 rows x 30 columns
BLANK = np.zeros((60, 44), np.float32)


def brain_slice(seed: int = 0) -> np.ndarray:
    """Slice (60, 44) with background 0 and a brain of intensities from 100 to 1000."""
    image = BLANK.copy()
    image[BRAIN] = np.random.default_rng(seed).uniform(100, 999, (40, 30))
    image[30, 20] = 1000
    return image


def square_brain() -> np.ndarray:
    """Slice (60, 50) whose brain is 40 x 40, so that a processor of size 40 only crops it."""
    values = np.random.default_rng(0).uniform(100, 1000, (40, 40)).astype(np.float32)
    return np.pad(values, ((10, 10), (6, 4)))


def random_mask(seed: int = 1) -> np.ndarray:
    mask = np.zeros((60, 44), np.uint8)
    mask[BRAIN] = np.random.default_rng(seed).random((40, 30)) < 0.4
    return mask


def pixels(processor: RasaloreImageProcessor, images: Any) -> torch.Tensor:
    return processor(images, return_tensors="pt")["pixel_values"]


# --- Slices -> pixel_values -------------------------------------------------------------------


def test_slices_of_different_sizes_make_one_batch() -> None:
    processor = RasaloreImageProcessor(size=32)
    batch = pixels(processor, [brain_slice(), brain_slice()[:52], brain_slice().T])
    assert batch.shape == (3, 1, 32, 32) and batch.dtype == torch.float32


def test_without_return_tensors_the_batch_is_numpy() -> None:
    assert isinstance(RasaloreImageProcessor(size=8)([brain_slice()])["pixel_values"], np.ndarray)


def test_gamma_is_the_power_of_the_unit_range() -> None:
    image = square_brain()
    expected = (image / image.max())[10:50, 6:46] ** 3
    processor = RasaloreImageProcessor(size=40, gamma=3.0)
    np.testing.assert_allclose(pixels(processor, image)[0, 0], expected, rtol=1e-5)


def test_the_rescale_factor_is_the_brightest_pixel() -> None:
    processor = RasaloreImageProcessor(size=40, rescale_factor=255.0)
    assert pixels(processor, square_brain()).max().item() == pytest.approx(255)
    assert processor.value_range == 255


def test_the_value_range_is_what_separates_black_from_white() -> None:
    image = np.array([[0, 1], [1, 0]])
    processor = RasaloreImageProcessor(size=2, image_mean=[0.3], image_std=[0.25])
    batch = pixels(processor, image)
    assert (batch.max() - batch.min()).item() == pytest.approx(processor.value_range)


def test_mean_and_standard_deviation_are_applied_per_channel() -> None:
    plain = RasaloreImageProcessor(size=16, num_channels=3)
    clip = RasaloreImageProcessor(
        size=16, num_channels=3, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 1.0, 2.0]
    )
    unit, scaled = pixels(plain, brain_slice())[0], pixels(clip, brain_slice())[0]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(scaled[channel], (unit[channel] - mean) / std)


@settings(max_examples=25)
@given(st.floats(1e-3, 1e4), st.floats(-1e3, 1e3))
def test_linear_intensity_scaling_changes_nothing(factor: float, offset: float) -> None:
    processor = RasaloreImageProcessor(size=24)
    scaled = brain_slice().astype(np.float64) * factor + offset
    difference = pixels(processor, scaled) - pixels(processor, brain_slice())
    # Float32 resolves the range times factor to about 6e-8 of the largest absolute value.
    assert difference.abs().max() < 1e-5 + 1e-6 * abs(offset) / factor


def test_each_channel_has_its_own_range_and_all_share_one_box() -> None:
    first, second = BLANK.copy(), BLANK.copy()
    first[10:20, 10:20], second[10:40, 10:40] = 1, 50
    processor = RasaloreImageProcessor(size=30, num_channels=2)
    stacked = pixels(processor, [np.stack([first, second])])[0]
    assert stacked[1].min() == 1  # the box is that of the larger one
    assert stacked[0, :9, :9].min() == 1 and stacked[0, 11:].max() == 0


def test_one_channel_is_repeated() -> None:
    batch = pixels(RasaloreImageProcessor(size=16, num_channels=3), brain_slice())
    assert batch.shape == (1, 3, 16, 16)
    assert torch.equal(batch[:, 0], batch[:, 1]) and torch.equal(batch[:, 0], batch[:, 2])


@pytest.mark.parametrize("kind", ["pil", "torch", "float64", "list"])
def test_every_kind_of_image_gives_the_same_pixels(kind: str) -> None:
    image = (brain_slice() / 4).astype(np.uint8)
    given_as = {
        "pil": Image.fromarray(image),
        "torch": torch.from_numpy(image),
        "float64": image.astype(np.float64),
        "list": [image],
    }[kind]
    processor = RasaloreImageProcessor(size=16)
    assert torch.equal(pixels(processor, given_as), pixels(processor, image))


def test_blank_and_constant_slices_give_zeros() -> None:
    assert not pixels(RasaloreImageProcessor(size=16), [BLANK, BLANK + 7]).any()


def test_the_input_is_left_alone() -> None:
    image, mask = brain_slice(), random_mask()
    image.flags.writeable = mask.flags.writeable = False
    processor = RasaloreImageProcessor(size=16)
    pixels(processor, [image])
    processor.crop_masks([mask], [image], 16)
    processor.post_process_maps(torch.ones(1, 4, 4), [image])
    assert (image == brain_slice()).all() and (mask == random_mask()).all()


# --- Brain box --------------------------------------------------------------------------------


def test_the_box_holds_the_last_row_and_column_of_the_brain() -> None:
    image = BLANK.copy()
    image[10:50, 6:36] = 1
    assert brain_box(image) == (10, 6, 50, 36)


def test_the_box_of_one_pixel_in_the_last_corner_is_that_pixel() -> None:
    image = BLANK.copy()
    image[59, 43] = 1
    assert brain_box(image) == (59, 43, 60, 44)


def test_the_box_of_a_slice_without_brain_is_the_slice() -> None:
    assert brain_box(BLANK) == (0, 0, 60, 44)


def test_noise_below_the_threshold_is_background() -> None:
    image = unit_range((brain_slice() + np.linspace(0, 9, 44, dtype=np.float32))[None])[0]
    assert brain_box(image, threshold=0.01) == (10, 6, 50, 36)


# --- Masks and maps: one frame ----------------------------------------------------------------


@pytest.mark.parametrize("crop_to_brain", [True, False])
def test_a_mask_cropped_and_put_back_lands_on_the_same_pixels(crop_to_brain: bool) -> None:
    image, mask = brain_slice(), random_mask()
    rows, columns = (40, 30) if crop_to_brain else (60, 44)
    processor = RasaloreImageProcessor(size=32, crop_to_brain=crop_to_brain)
    cropped = processor.crop_masks([mask], [image], 4 * rows * columns // 10)
    (restored,) = processor.post_process_maps(cropped.float(), [image])
    np.testing.assert_array_equal(restored > 0.5, mask == 1)


def test_image_and_mask_are_cropped_alike() -> None:
    image = square_brain()
    processor = RasaloreImageProcessor(size=40, gamma=1.0)
    mask = processor.crop_masks([image > 0.5 * image.max()], [image], 40)
    assert torch.equal(mask[0].bool(), pixels(processor, image)[0, 0] > 0.5)
    assert 0.3 < mask.float().mean() < 0.7


def test_a_hot_spot_returns_to_its_pixel_in_a_slice_that_is_not_square() -> None:
    image = brain_slice()
    spot = np.zeros_like(image, dtype=np.uint8)
    spot[17, 31] = 1
    processor = RasaloreImageProcessor(size=128)
    (restored,) = processor.post_process_maps(processor.crop_masks([spot], [image], 128), [image])
    assert restored[17, 31] == restored.max() > 0.5 and (restored == restored.max()).sum() == 1


def test_nothing_is_predicted_outside_the_brain_box() -> None:
    (whole,) = RasaloreImageProcessor(size=32).post_process_maps(
        torch.ones(1, 1, 64, 64), brain_slice()
    )
    expected = BLANK.copy()
    expected[BRAIN] = 1
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    assert whole.dtype == np.float32


def test_a_blank_slice_gets_a_map_of_zeros_in_its_place_of_the_batch() -> None:
    maps = torch.ones(3, 8, 8)
    processor = RasaloreImageProcessor(size=32)
    placed = processor.post_process_maps(maps, [brain_slice(), BLANK, brain_slice().T])
    assert [m.shape for m in placed] == [(60, 44), (60, 44), (44, 60)]
    assert placed[0].any() and not placed[1].any() and placed[2].any()


def test_maps_of_half_precision_are_accepted() -> None:
    maps = torch.ones(1, 8, 8, dtype=torch.bfloat16)
    (whole,) = RasaloreImageProcessor().post_process_maps(maps, brain_slice())
    assert whole.max() == 1


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_a_mask_repeats_its_pixels(factor: int) -> None:
    image, mask = square_brain()[10:50, 6:46], random_mask()[10:50, 2:42]
    processor = RasaloreImageProcessor(crop_to_brain=False)
    enlarged = processor.crop_masks([mask], [image], 40 * factor)[0]
    np.testing.assert_array_equal(enlarged, np.kron(mask, np.ones((factor, factor))))


def test_shrinking_a_mask_reads_pixel_centres_and_never_dilates() -> None:
    image, mask = square_brain()[10:50, 6:46], random_mask()[10:50, 2:42]
    processor = RasaloreImageProcessor(crop_to_brain=False)
    for step in (2, 4):
        shrunk = processor.crop_masks([mask], [image], 40 // step)[0]
        np.testing.assert_array_equal(shrunk, mask[step // 2 :: step, step // 2 :: step])


@settings(max_examples=25)
@given(st.integers(5, 90), st.integers(0, 30))
def test_resized_masks_keep_their_share_of_the_brain(size: int, seed: int) -> None:
    top, left = 10 + seed % 20, 6 + seed % 14
    mask = np.zeros((60, 44), np.uint8)
    mask[top : top + 16, left : left + 12] = 1
    resized = RasaloreImageProcessor().crop_masks([mask], [brain_slice()], size)[0]
    assert set(resized.unique().tolist()) <= {0, 1}
    # A rectangle's sides are off by less than one pixel of the coarser frame.
    rows, columns = resized.any(1).sum().item(), resized.any(0).sum().item()
    assert abs(rows - 16 / 40 * size) < 1 and abs(columns - 12 / 30 * size) < 1


def test_bilinear_resizing_keeps_a_constant_and_the_mean() -> None:
    constant = resize_bilinear(torch.full((1, 40, 40), 0.3), 13, 70)
    torch.testing.assert_close(constant, torch.full((1, 13, 70), 0.3))
    noise = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    # Antialiased: one pixel in four of plain bilinear would scatter far more.
    assert resize_bilinear(noise, 8, 8).std() < 0.08


# --- Mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (np.zeros(5), "(H, W) or (C, H, W)"),
        ([np.zeros((1, 2, 3, 4))], "(H, W) or (C, H, W)"),
        (np.zeros((0, 4)), "(H, W) or (C, H, W)"),
        ([np.full((4, 4), np.nan)], "finite"),
        ([np.array([[0, np.inf]])], "finite"),
        ([np.zeros((2, 4, 4))], "1 or 3 channels, got 2"),
        ([], "at least one slice"),
    ],
)
def test_a_wrong_slice_is_refused_in_one_sentence(images: Any, rule: str) -> None:
    with pytest.raises(ValueError) as error:
        RasaloreImageProcessor(size=8, num_channels=3)(images)
    message = str(error.value)
    assert rule in message and message.endswith(".") and "\n" not in message


def test_a_mask_of_another_shape_than_its_slice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(60, 44\), got \(44, 60\)"):
        RasaloreImageProcessor().crop_masks([random_mask().T], [brain_slice()], 8)


def test_as_many_maps_as_slices_are_needed() -> None:
    with pytest.raises(ValueError):
        RasaloreImageProcessor().post_process_maps(torch.ones(2, 8, 8), [brain_slice()])


# --- Saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": 24, "gamma": 1.5, "brain_threshold": 0.2, "rescale_factor": 255.0},
        {"num_channels": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"crop_to_brain": False},
    ],
)
def test_a_saved_processor_loads_by_itself_and_does_the_same(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    saved = RasaloreImageProcessor(**fields)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is RasaloreImageProcessor and loaded.to_dict() == saved.to_dict()
    assert torch.equal(pixels(loaded, brain_slice()), pixels(saved, brain_slice()))


@pytest.mark.parametrize("size", [64, 128])
def test_maps_keep_their_range_when_they_are_resized(size: int) -> None:
    images = [np.pad(np.ones((h, w), np.float32), 3) for h, w in ((53, 41), (77, 90), (19, 101))]
    processor = RasaloreImageProcessor(size=64)
    placed = processor.post_process_maps(torch.ones(3, size, size), images)
    assert all(score.max() == 1 for score in placed)
    assert all(score[3:-3, 3:-3].min() == 1 for score in placed)
