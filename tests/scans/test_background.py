"""What is brain, whatever the background is, and the box that holds it."""

import numpy as np
import pytest

from modeling_rasalore.scans.background import (
    BrainSlices,
    brain_of,
    index_box,
    lower_outliers,
    skull_contrast,
    zero_background,
)
from modeling_rasalore.scans.overlays import brain_window

SLICES = np.zeros((3, 4, 5), np.float32)  # brain in one slice, in the middle
SLICES[1, 1:3, 1:4] = [[1, 2, 3], [4, 5, 6]]


def test_brain_is_what_is_above_0_in_any_sequence() -> None:
    assert np.array_equal(brain_of(SLICES[1]), SLICES[1] > 0)
    sequences = np.stack([SLICES[1], np.eye(4, 5, dtype=np.float32), SLICES[0]])
    assert np.array_equal(brain_of(sequences), (SLICES[1] > 0) | np.eye(4, 5, dtype=bool))
    assert not brain_of(SLICES[0]).any()


def test_a_scan_without_values_below_0_is_handed_on_as_it_is() -> None:
    assert zero_background(SLICES) is SLICES
    assert np.array_equal(BrainSlices(SLICES).foreground(), SLICES > 0)


def scan_of(tissue: list[float], background: float) -> np.ndarray:
    """(1, 3, n + 2): tissue in the middle row."""
    scan = np.full((1, 3, len(tissue) + 2), background, np.float32)
    scan[0, 1, 1:-1] = tissue
    return scan


def middle(scan: np.ndarray, brain: np.ndarray | None = None) -> list[float]:
    """The tissue of `scan_of` with background 0; all around it must be 0."""
    result = zero_background(scan, brain)
    assert np.count_nonzero(result) == np.count_nonzero(result[0, 1, 1:-1])
    return result[0, 1, 1:-1].tolist()


@pytest.mark.parametrize("background", [-500, -9, 0, 500])
def test_the_borders_value_becomes_0_and_tissue_starts_above_it(background: float) -> None:
    tissue = [background + value for value in (1, 2, 3, 6)]
    assert middle(scan_of(tissue, background)) == [1, 2, 3, 6]


def test_what_lies_below_the_background_is_background() -> None:
    tissue = np.arange(100, 1100).tolist()
    ringing = [-20, -3, *tissue, -600]
    assert middle(scan_of(ringing, 0)) == [0, 0, *tissue, 0]
    assert BrainSlices(scan_of(ringing, 0)).count_background() == (1002 * 3 + 6 - 1000, 2)


@pytest.mark.parametrize("background", [-32768, -1024, -50_000, 65_535])
def test_a_number_for_nothing_is_background_and_0_stays_0(background: float) -> None:
    assert middle(scan_of([0.25, 100, 200, 300], background)) == pytest.approx(
        [0.25, 100, 200, 300]
    )


def test_tissue_around_the_backgrounds_value_starts_at_its_least() -> None:
    tissue = np.linspace(-2, 3, 100, dtype=np.float32).reshape(10, 10)  # z-scored, 0 outside
    tissue[4, 4] = 0  # brain with the background's value
    result = zero_background(np.pad(tissue, 1)[None])[0]
    inside = result[1:-1, 1:-1]
    assert np.count_nonzero(result) == np.count_nonzero(inside) == 100
    assert inside == pytest.approx(tissue + 2, abs=1e-4)


def test_a_given_brain_decides_what_is_background_and_is_brain_as_a_whole() -> None:
    brain = SLICES > 4
    expected = np.where(brain, SLICES, 0)
    assert np.array_equal(zero_background(SLICES, brain), expected)
    scan = scan_of([5, 40, 60, 7], 0)
    inside = scan > 20
    assert middle(scan, inside) == [0, 40, 60, 0]
    inside[0, 1, 0] = True  # of the background's value
    assert np.array_equal(BrainSlices(scan, inside).foreground(), inside)


def test_a_scan_with_its_brain_mask_is_the_scan_without_all_else() -> None:
    rng = np.random.default_rng(0)
    head = rng.integers(30, 900, (3, 20, 20)).astype(np.float32)
    head[:, [0, -1]] = head[:, :, [0, -1]] = 0
    brain = np.zeros(head.shape, bool)
    brain[:, 4:16, 5:15] = True
    assert np.array_equal(zero_background(head, brain), zero_background(np.where(brain, head, 0)))


def test_without_a_border_of_one_value_the_least_value_is_the_background() -> None:
    scan = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
    assert np.array_equal(zero_background(scan), scan - 1)


@pytest.mark.parametrize("value", [-4, 0, 700])
def test_a_constant_scan_has_no_brain(value: float) -> None:
    images = BrainSlices(np.full((2, 4, 4), value, np.float32))
    assert images.brain_voxels == 0 and not images.whole().any()


def test_single_bright_voxels_become_like_their_neighbours() -> None:
    clean = np.zeros((30, 30), np.float32)
    clean[5:25, 5:25] = 100 + np.arange(20)
    spikes = clean.copy()
    for place, factor in (((6, 7), 1.5), ((12, 20), 4), ((24, 24), 20), ((2, 2), 9)):
        spikes[place] = clean.max() * factor
    lowered = lower_outliers(spikes)
    assert np.abs(lowered - clean).max() <= 1
    assert np.count_nonzero(lowered != clean) <= 1  # at the brain's edge
    assert lower_outliers(clean) is clean


def test_a_few_bright_voxels_together_do_not_set_the_scale() -> None:
    image = np.zeros((40, 40), np.float32)
    image[4:36, 4:36] = 100 + np.arange(32)
    image[10:12, 10:12] = 2000
    lowered = lower_outliers(image)
    assert (lowered[10:12, 10:12] == 131).all() and lowered.max() == 131
    image[10:12, 10:12] = 380  # bright tissue, as vessels in T1 with contrast
    assert lower_outliers(image) is image


def test_bright_voxels_of_a_small_slice_stay() -> None:
    image = np.zeros((9, 9), np.float32)
    image[2:7, 2:7] = 10
    image[4, 4] = 100
    assert lower_outliers(image) is image


def test_a_shell_of_bone_is_dark_between_bright_tissue() -> None:
    rows, columns = np.ogrid[-30:31, -30:31]
    radius = np.hypot(rows, columns)
    head = np.select([radius < 18, radius < 21, radius < 27], [500.0, 50.0, 800.0], 0)
    slices = np.stack([head] * 3).astype(np.float32)
    assert skull_contrast(BrainSlices(slices), (1, 1, 1)) == pytest.approx(0.1)
    assert skull_contrast(BrainSlices(slices * (radius < 18)), (1, 1, 1)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_the_box_holds_the_mask_and_nothing_more(dtype: type) -> None:
    mask = np.zeros((8, 8, 9), dtype)
    mask[1, 2, 6] = mask[5, 6, 1] = 1
    box = (slice(1, 6), slice(2, 7), slice(1, 7))
    assert index_box(mask) == box
    assert index_box(mask.transpose(2, 0, 1)) == (box[2], box[0], box[1])
    assert index_box(mask[1]) == (slice(2, 3), slice(6, 7))
    assert index_box(mask[0]) is None


def test_the_window_has_room_around_the_brain_within_the_slice() -> None:
    slices = np.zeros((2, 20, 30), np.float32)
    slices[0, 8, 2] = slices[1, 10, 20] = 1
    assert brain_window(slices) == (slice(4, 15), slice(0, 25))
    assert brain_window(np.zeros((2, 3, 4), np.float32)) == (slice(0, 3), slice(0, 4))
