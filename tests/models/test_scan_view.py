"""A scan seen as one: its square, scale, neighbours and hemispheres, by hand and by plain loops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoImageProcessor

from modeling_rasalore.models.image_processing_rasalore import RasaloreImageProcessor
from modeling_rasalore.models.scan_view_rasalore import (
    Box,
    SeenScan,
    crop_views,
    measure_scan,
    mirror_difference,
    scan_channels,
)
from modeling_rasalore.scans.background import BrainSlices, zero_background

SPACING = (5.0, 1.0, 1.0)
ROW = np.array([50, 100, 100, 150, 200, 300], np.float32)


def hand_scan() -> np.ndarray:
    """Three equal slices (8, 10) whose brain, rows 2 to 5 and columns 3 to 8, is ROW."""
    scan = np.zeros((3, 8, 10), np.float32)
    scan[:, 2:6, 3:9] = ROW
    return scan


def round_scan(slices: int = 12, shift: int = 0) -> np.ndarray:
    """A rough ball of intensities from 50 to 150 in slices (40, 44), moved along the columns."""
    places = np.indices((slices, 40, 44)).astype(np.float32)
    centre = np.array([slices / 2, 19, 21 + shift])[:, None, None, None]
    radii = np.array([slices / 2 + 1, 14, 11])[:, None, None, None]
    inside = (((places - centre) / radii) ** 2).sum(0) < 1
    values = np.random.default_rng(0).uniform(50, 150, inside.shape).astype(np.float32)
    return np.where(inside, values, np.float32(0))


def make(size: int = 24, **fields: Any) -> RasaloreImageProcessor:
    return RasaloreImageProcessor(**{"size": size, "num_channels": 4, "view": "scan", **fields})


def see(processor: RasaloreImageProcessor, scan: np.ndarray) -> SeenScan:
    return processor.see_scan(scan, SPACING)


def pixels(processor: RasaloreImageProcessor, scan: Any, **seen: Any) -> Tensor:
    return processor(scan, return_tensors="pt", **seen)["pixel_values"]


# --- By hand ------------------------------------------------------------------------------------
def test_square_and_scale_of_a_scan_by_hand() -> None:
    scan = measure_scan(hand_scan(), SPACING)
    assert (scan.row, scan.column, scan.neighbour_step) == (4.0, 6.0, 1)
    assert scan.half_side_mm == pytest.approx(1.03 * 3)
    assert scan.median == 100  # the lower of the two in the middle
    assert scan.mad == pytest.approx(1.4826 * 0.5)
    assert scan.box == (1, 3, 7, 9)


def test_the_channels_of_a_slice_by_hand() -> None:
    values = pixels(make(size=6), hand_scan(), spacing=SPACING)[1]
    z = (ROW / 100 - 1) / (1.4826 * 0.5) / 2
    for plane in values[:3]:
        np.testing.assert_allclose(plane[1:5], np.tile(z, (4, 1)), atol=1e-5)
        assert (plane[[0, 5]] == -2).all()
    assert (values[3, [0, 5]] == 0).all() and (values[3, 1:5, 5] > 0).all()


def test_the_midline_is_the_centre_of_mass_and_the_square_holds_the_farther_side() -> None:
    scan = np.zeros((2, 10, 12), np.float32)
    scan[:, 3:6, 2:6], scan[:, 4, 2:10] = 1, 1  # one arm reaches further to one side
    measured = measure_scan(scan, (4, 2, 1))
    assert measured.column == pytest.approx((2 * 4 * 4 + 8 * 6) / 16)
    assert measured.half_side_mm == pytest.approx(1.03 * (10 - measured.column))


@pytest.mark.parametrize(
    ("depth", "step"), [(1.0, 5), (3.0, 2), (5.0, 1), (6.5, 1), (8.0, 1), (0.5, 10)]
)
def test_neighbours_are_the_nearest_slices_or_the_next_ones(depth: float, step: int) -> None:
    scan = measure_scan(hand_scan(), (depth, 1, 1))
    assert scan.neighbour_step == step
    seen = SeenScan(np.arange(24.0), scan)
    neighbours = [(float(s.below), float(s.this), float(s.above)) for s in seen]
    assert neighbours == [(max(i - step, 0), i, min(i + step, 23)) for i in range(24)]


def test_intensities_and_differences_end_where_they_should() -> None:
    relative, brain = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8, dtype=torch.bool)
    relative[..., :4], relative[..., 4:] = 0.0, 4.0
    values = scan_channels(relative, brain, torch.tensor([1.0]), torch.tensor([0.01]))
    assert values[:, :3].unique().tolist() == [-2.0, 5.0]
    assert values[:, 3].amin() == -3 and values[:, 3].amax() == 3


# --- The other hemisphere -----------------------------------------------------------------------
def plain_mean(x: Tensor, brain: Tensor, row: int, column: int, mm: float, sigma: float) -> float:
    """The Gaussian mean over the brain of three slices at a pixel, term by term."""
    total = weight = 0.0
    for plane, away in enumerate((5.0, 0.0, 5.0)):
        for i, j in brain[plane].nonzero().tolist():
            squared = away**2 + ((i - row) * mm) ** 2 + ((j - column) * mm) ** 2
            share = float(np.exp(-squared / (2 * sigma**2)))
            total, weight = total + share * float(x[plane, i, j]), weight + share
    return total / weight


def test_the_mirror_difference_is_that_of_plain_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 10, 10, generator=draw) * 2
    brain = torch.zeros(2, 3, 10, 10, dtype=torch.bool)
    brain[:, :, 1:9, 1:9], brain[1, :, 1:3, 1:4] = True, False
    x, mm, mad = x * brain, torch.tensor([2.0, 1.2]), torch.tensor([0.3, 0.5])
    found = mirror_difference(x, brain, mm, mad)
    for b, row, column in ((0, 4, 2), (0, 1, 8), (1, 5, 7), (1, 8, 1)):
        near = plain_mean(x[b], brain[b], row, column, float(mm[b]), 2.0)
        far = plain_mean(x[b], brain[b], row, 9 - column, float(mm[b]), 4.0)
        assert float(found[b, 0, row, column]) == pytest.approx(
            min(max((near - far) / float(mad[b]), -6), 6) / 2, abs=1e-4
        )


def test_without_brain_on_the_other_side_there_is_no_difference() -> None:
    brain = torch.zeros(1, 3, 32, 32, dtype=torch.bool)
    brain[..., 2:8] = True
    found = mirror_difference(brain * 2.0, brain, torch.tensor([2.0]), torch.tensor([0.1]))
    assert not found.any()


def test_a_mirrored_scan_has_the_mirrored_channels() -> None:
    scan, processor = round_scan(), make()
    both = (scan > 0) | (scan > 0)[..., ::-1]  # so that the square does not move by a pixel
    scan = np.where(both, np.maximum(scan, 60), np.float32(0))
    box = see(processor, scan).scan.box
    assert box.left + box.right == scan.shape[-1]
    values, mirrored = (pixels(processor, s, spacing=SPACING) for s in (scan, scan[..., ::-1]))
    torch.testing.assert_close(mirrored, values.flip(-1), atol=1e-4, rtol=0)
    assert (values[:, 3] > 0).any() and (values[:, 3] < 0).any()


# --- The same, however it is asked for ----------------------------------------------------------
def test_a_scan_is_its_slices_given_one_by_one() -> None:
    scan, processor = round_scan(), make()
    whole, views = pixels(processor, scan, spacing=SPACING), see(processor, scan)
    for index, image in enumerate(scan):
        alone = pixels(processor, image, views=[views[index]])
        assert torch.equal(alone[0], whole[index])
    lazily = BrainSlices(scan)
    seen = list(processor.see_scan(lazily, SPACING))
    assert torch.equal(pixels(processor, list(lazily), views=seen), whole)


def test_scaled_and_shifted_scans_look_the_same() -> None:
    scan, processor = round_scan(), make()
    expected = pixels(processor, zero_background(scan), spacing=SPACING)
    for factor, offset in ((3.7, 0.0), (0.01, 0.0), (2.0, 500.0)):
        other = zero_background((scan * factor + offset).astype(np.float32))
        found = pixels(processor, other, spacing=SPACING)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_every_slice_of_a_scan_has_the_same_square_and_scale() -> None:
    views = list(see(make(), round_scan()))
    assert len({id(view.scan) for view in views}) == 1
    assert len(set(make().boxes(round_scan(), views))) == 1


def test_the_edge_of_a_brain_is_as_bright_as_the_rest() -> None:
    scan = np.where(round_scan() > 0, np.float32(80), np.float32(0))
    parts = crop_views(list(see(make(), scan)), 17)
    inside = parts["relative"][parts["brain"]]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not parts["relative"][~parts["brain"]].any()


# --- Masks and maps -----------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0, 12, -11])
def test_a_mask_cropped_and_put_back_lands_on_the_same_pixels(shift: int) -> None:
    scan, processor = round_scan(shift=shift), make()
    views = list(see(processor, scan))
    box = views[0].scan.box
    masks = (np.random.default_rng(1).random(scan.shape) < 0.4) & (scan > 0)
    side = box.bottom - box.top
    cropped = processor.crop_masks(masks, scan, side, views)
    assert cropped.shape == (12, side, side)
    placed = processor.post_process_maps(cropped.float(), scan, views)
    np.testing.assert_array_equal(np.stack(placed) > 0.5, masks)
    if shift:
        assert box.left < 0 or box.right > scan.shape[-1]


def test_a_map_of_ones_fills_the_square_alone_as_far_as_the_picture_reaches() -> None:
    scan, processor = round_scan(shift=12), make()
    views = list(see(processor, scan))
    top, left, bottom, right = views[0].scan.box
    expected = np.zeros(scan.shape[1:], np.float32)
    expected[max(top, 0) : bottom, max(left, 0) : right] = 1
    for image, placed in zip(
        scan, processor.post_process_maps(torch.ones(12, 48, 48), scan, views), strict=True
    ):
        np.testing.assert_array_equal(placed, expected if image.any() else 0 * expected)


def test_what_lies_beyond_the_picture_is_outside_the_brain() -> None:
    scan, processor = round_scan(shift=12), make()
    values, box = pixels(processor, scan, spacing=SPACING), see(processor, scan).scan.box
    beyond = int((box.right - scan.shape[-1]) / (box.right - box.left) * 24)
    assert beyond > 1
    assert (values[:, :3, :, -beyond:] == -2).all() and not values[:, 3, :, -beyond:].any()


def test_a_box_beyond_all_edges_crops_and_places() -> None:
    image = np.arange(6.0).reshape(2, 3)
    box = Box(-1, -2, 4, 4)
    cropped = box.crop(image)
    assert cropped.shape == (5, 6) and np.array_equal(cropped[1:3, 2:5], image)
    assert cropped.sum() == image.sum()
    assert np.array_equal(box.place(cropped, (2, 3)), image)


# --- Settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"neighbour_mm": 10.0},
        {"channels": ["this", "neighbours", "mirror"], "num_channels": 3},
        {"num_channels": 4, "image_mean": [0.3] * 4, "image_std": [0.1, 0.2, 0.3, 0.4]},
    ],
)
def test_a_saved_processor_sees_the_same(tmp_path: Path, fields: dict[str, Any]) -> None:
    saved = make(**fields)
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is RasaloreImageProcessor and loaded.to_dict() == saved.to_dict()
    values = (pixels(p, round_scan(), spacing=SPACING) for p in (saved, loaded))
    assert torch.equal(*values)


def test_backbones_of_pictures_get_three_channels_of_their_own_range() -> None:
    names, mean, std = ["this", "mirror", "neighbours"], [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    clip = make(channels=names, num_channels=3, image_mean=mean, image_std=std)
    plain = pixels(make(), round_scan(), spacing=SPACING)
    this, below, above, mirror = plain.unbind(1)
    unit = torch.stack([(this + 2) / 7, (mirror + 3) / 6, ((below + above) / 2 + 2) / 7], dim=1)
    expected = (unit - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    found = pixels(clip, round_scan(), spacing=SPACING)
    torch.testing.assert_close(found, expected)
    assert unit.min() >= 0 and unit.max() <= 1
    assert clip.levels is not None
    assert torch.equal(found[:, :, 0, 0], clip.levels.outside[None, :, 0, 0].expand(12, -1))


def test_the_view_of_a_slice_ignores_all_this() -> None:
    processor = RasaloreImageProcessor(size=16)
    assert processor.see is None and processor.levels is None
    image = round_scan()[6]
    expected = pixels(processor, image)
    assert torch.equal(pixels(processor, image, views=[None]), expected)


# --- Mistakes -----------------------------------------------------------------------------------
def test_a_slice_without_its_scan_is_refused() -> None:
    scan, processor = round_scan(), make()
    views = list(see(processor, scan))
    for images, given in ((scan[3], None), (scan, None), (scan, views[:3]), (scan[3], [None])):
        with pytest.raises(ValueError, match=r"sees a slice as part of its scan: pass a scan"):
            processor(images, views=given)
    with pytest.raises(ValueError, match="part of its scan"):
        processor.post_process_maps(torch.ones(1, 4, 4), scan[3])


@pytest.mark.parametrize(
    ("scan", "spacing", "rule"),
    [
        (np.zeros((3, 4, 4)), SPACING, "must show brain, got no voxel above 0"),
        (np.full((3, 4, 4), np.nan), SPACING, "finite slices"),
        (np.ones((2, 3, 4, 4)), SPACING, r"slices \(S, H, W\), got a slice of shape \(3, 4, 4\)"),
        (np.ones((3, 4, 4)), (1.0, 1.0), "three lengths above 0"),
        (np.ones((3, 4, 4)), (5.0, 0.0, 1.0), "three lengths above 0"),
    ],
)
def test_what_is_no_scan_is_refused(scan: np.ndarray, spacing: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make().see_scan(scan, spacing)


def test_unknown_views_and_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="view must be 'slice' or 'scan', got 'volume'"):
        RasaloreImageProcessor(view="volume")
    with pytest.raises(ValueError, match=r"number of channels .*'mirror'\].*, got 1"):
        RasaloreImageProcessor(view="scan")
    with pytest.raises(ValueError, match=r"channels are .*, got 'left'"):
        make(channels=["this", "left"], num_channels=2)


def test_a_scan_of_one_value_has_a_least_spread() -> None:
    scan = measure_scan(np.ones((3, 8, 8), np.float32), SPACING)
    values = pixels(make(), np.ones((3, 8, 8), np.float32), spacing=SPACING)
    assert scan.mad == 1e-3 and values.isfinite().all()
    assert replace(scan, mad=1.0).box == scan.box
