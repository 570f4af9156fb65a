"""What is brain, whatever the background is, and the box that holds it."""

import numpy as np
import pytest

from modeling_rasalore.scans.background import BrainSlices, brain_of, index_box, zero_background
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


def test_a_negative_background_becomes_0_and_the_brain_starts_there() -> None:
    shifted = np.where(SLICES > 0, SLICES - 2, -9)  # brain from -1 on
    expected = np.where(SLICES > 0, SLICES - 1, 0)
    assert np.array_equal(zero_background(shifted), expected)


def test_a_given_brain_decides_what_is_background() -> None:
    brain = SLICES > 4
    expected = np.where(brain, SLICES - 5, 0)
    assert np.array_equal(zero_background(SLICES, brain), expected)
    assert np.array_equal(BrainSlices(SLICES, brain).foreground(), expected > 0)


def test_a_brain_mask_sets_the_background_and_the_least_brain_value_to_0() -> None:
    scan = np.array([[[-3.0, -1, 2, 5]]], np.float32)
    inside = np.array([[[False, True, True, False]]])
    assert zero_background(scan, inside).tolist() == [[[0, 0, 3, 0]]]


def test_without_a_brain_mask_the_corner_value_is_the_background() -> None:
    scan = np.array([[[-3.0, -5, 2, -3]]], np.float32)
    assert zero_background(scan).tolist() == [[[0, 0, 7, 0]]]
    assert zero_background(np.full((1, 2, 2), -4.0)).tolist() == [[[0, 0], [0, 0]]]
    assert np.array_equal(zero_background(scan + 5), scan + 5)  # nothing below 0: left alone


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
