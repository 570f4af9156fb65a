"""Masks in 3-D, by hand: parts and extent."""

import numpy as np
import pytest
from scipy import ndimage

from modeling_rasalore.reports.findings import part_sizes, remove_small_parts


def parts() -> np.ndarray:
    """A part of 8 voxels, one of 2 that touch by a corner, and a single voxel."""
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    mask[4, 5, 5] = mask[5, 6, 6] = 1
    mask[1, 5, 1] = 1
    return mask


def test_parts_touch_by_corners_too() -> None:
    assert sorted(part_sizes(parts())) == [1, 2, 8]
    assert part_sizes(np.zeros((2, 2, 2), np.uint8)).size == 0


@pytest.mark.parametrize(("smallest", "left"), [(0.5, 11), (2, 10), (2.01, 8), (9, 0)])
def test_parts_below_a_size_are_removed_and_no_others(smallest: float, left: int) -> None:
    mask = parts()
    remove_small_parts(mask, smallest)
    assert mask.sum() == left
    assert not mask[parts() == 0].any()


@pytest.mark.parametrize("density", [0.02, 0.08, 0.5])
def test_parts_are_those_that_scipy_labels(density: float) -> None:
    mask = (np.random.default_rng(0).random((13, 9, 8)) < density).astype(np.uint8)
    mask[:, 0, 0] = mask[0, 0, :] = mask[:, 0, 7] = 1  # two legs that meet in one slice only
    numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())
    assert sorted(part_sizes(mask)) == sorted(sizes[1:])
    expected = mask * (sizes >= 4)[numbers]
    remove_small_parts(mask, 4)
    assert np.array_equal(mask, expected)


def test_more_parts_than_two_bytes_can_number_are_told_apart() -> None:
    mask = np.zeros((60, 100, 100), np.uint8)
    mask[::2, ::2, ::2] = 1  # 75000 single voxels
    mask[0, 0, :3] = 1
    assert np.bincount(part_sizes(mask)).tolist() == [0, 74998, 0, 1]
    remove_small_parts(mask, 2)
    assert mask.sum() == mask[0, 0, :3].sum() == 3


def test_removing_from_an_empty_mask_leaves_it_empty() -> None:
    mask = np.zeros((2, 3, 4), np.uint8)
    remove_small_parts(mask, 5)
    assert not mask.any()
