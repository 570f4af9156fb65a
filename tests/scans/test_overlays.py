"""Overlays are checked pixel by pixel on small volumes."""

import time
import tracemalloc

import numpy as np
import pytest
from odd_sizes import one_coronal_slice, one_sagittal_slice, stretched_scan

from modeling_rasalore.scans.background import BrainSlices
from modeling_rasalore.scans.overlays import (
    MASK_COLOUR,
    TRUTH_COLOUR,
    WARNING_COLOUR,
    choose_slices,
    fit_size,
    overlay_montage,
)
from modeling_rasalore.scans.reading import read_scan


def scan(count=20, side=40):
    images = np.zeros((count, side, side), np.float32)
    images[:, 6:-6, 6:-6] = 50
    return images


def squares(images, indices, start=14, stop=24):
    mask = np.zeros(images.shape, np.uint8)
    mask[indices, start:stop, start:stop] = 1
    return mask


def montage(images, mask, truth=None, **options):
    picture = overlay_montage(images, mask.astype(np.float32), mask, truth, **options)
    return np.asarray(picture)


def colours(pixels):
    numbers = np.unique(pixels.astype(int) @ (65536, 256, 1))
    return {(n >> 16, n >> 8 & 255, n & 255) for n in numbers.tolist()}


def test_both_outlines_are_drawn_in_their_colours():
    images = scan()
    pixels = montage(images, squares(images, [5]), squares(images, [8]), count=4)
    cells = pixels[:-76]  # without the legend
    assert {MASK_COLOUR, TRUTH_COLOUR} <= colours(cells)


def test_without_truth_its_colour_appears_nowhere():
    images = scan()
    assert TRUTH_COLOUR not in colours(montage(images, squares(images, [5])))


def test_an_empty_mask_outlines_nothing():
    images = scan()
    pixels = montage(images, squares(images, []))
    assert MASK_COLOUR not in colours(pixels[:-76])


def test_scores_tint_the_slice_and_zero_scores_leave_it_grey():
    images, nothing = scan(), np.zeros((20, 40, 40), np.uint8)
    grey = np.asarray(overlay_montage(images, nothing.astype(np.float32), nothing))[:-76]
    tinted = np.asarray(overlay_montage(images, squares(images, [10]) * 0.9, nothing))[:-76]
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (tinted[..., 0] > tinted[..., 2]).any()


def test_the_picture_is_not_flipped():
    images = scan()
    images[:, 6:20, 6:20] = 100  # anterior, patient's right
    cell = montage(images, squares(images, []), count=1)[6:262, 6:262, 0].astype(int)
    bright = np.argwhere(cell > 200)
    assert bright.max() < 140


def test_anisotropic_pixels_keep_the_shape_of_the_head():
    images = scan()
    square = montage(images, squares(images, [3]), count=1)
    tall = montage(images, squares(images, [3]), count=1, spacing=(2.0, 1.0))
    assert len(tall) - len(square) == 256


def test_a_blank_volume_still_gives_a_picture():
    nothing = np.zeros((5, 8, 8), np.float32)
    assert montage(nothing, nothing.astype(np.uint8)).shape[2] == 3


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        overlay_montage(scan(), scan(19), scan().astype(np.uint8))


def test_few_marked_slices_are_all_shown_and_filled_up():
    images = scan()
    chosen = choose_slices(images, squares(images, [3, 4, 17]) > 0, 12)
    assert {3, 4, 17} <= set(chosen)
    assert len(chosen) == 12
    assert chosen == sorted(set(chosen))


def test_of_many_marked_slices_the_largest_is_among_those_shown():
    images = scan(60)
    mask = squares(images, range(10, 50))
    mask[11, 10:30, 10:30] = 1
    chosen = choose_slices(images, mask > 0, 8)
    assert 11 in chosen
    assert len(chosen) == 8
    assert all(10 <= index < 50 for index in chosen)
    assert max(np.diff(chosen)) <= 6


STRETCHED = {
    "strip": one_sagittal_slice,
    "coronal": one_coronal_slice,
    "ratio_100": lambda path: stretched_scan(path, (0.2, 20, 2)),
    "ratio_2000": lambda path: stretched_scan(path, (0.002, 4, 2)),
    "ratio_0.0005": lambda path: stretched_scan(path, (4, 0.002, 2)),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_a_picture_is_bounded_whatever_sizes_the_header_states(name, tmp_path):
    volume = read_scan(STRETCHED[name](tmp_path / "scan.nii.gz"))
    mask = (volume.slices > 150).astype(np.uint8)
    tracemalloc.start()
    started = time.process_time()
    picture = overlay_montage(
        BrainSlices(volume.slices), volume.slices / 200, mask, spacing=volume.spacing[1:]
    )
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 32 * 2**20
    assert picture.width == 4 * (256 + 6) + 6
    lines = -(-len(choose_slices(volume.slices, mask, 12)) // 4)
    cell = (picture.height - 76) / lines - 6
    assert cell == (64 if name in ("coronal", "ratio_0.0005") else 1024)
    assert MASK_COLOUR in colours(np.asarray(picture)[:-76])


def test_a_slice_keeps_its_proportions_up_to_four_to_one_and_says_where_it_does_not():
    assert fit_size(200, 100, (256, 1024)) == ((256, 512), "")
    assert fit_size(400, 100, (256, 1024)) == ((256, 1024), "")
    assert fit_size(300, 100, (512, 1024)) == ((341, 1024), "")
    assert fit_size(1e5, 1, (512, 1024)) == ((256, 1024), "not to scale: 1e+05 times as tall")
    assert fit_size(1, 85, (512, 1024)) == ((512, 128), "not to scale: 85 times as wide")


def test_a_picture_that_is_not_to_scale_says_so():
    images = scan(4)
    nothing = squares(images, [])
    true, cut = (montage(images, nothing, count=1, spacing=(mm, 1.0)) for mm in (4.0, 4.01))
    assert true.shape == cut.shape
    assert (true != cut).any(axis=(1, 2)).nonzero()[0].min() > 1000  # its lowest line alone


def test_warnings_stand_below_the_legend_a_bounded_number_of_lines():
    images = scan()
    plain, warned, many = (
        montage(images, squares(images, [5]), warnings=sentences)
        for sentences in ((), ("only 2% of the voxels have a value.",), ["word " * 400] * 400)
    )
    assert WARNING_COLOUR not in colours(plain)
    assert WARNING_COLOUR in colours(warned[len(plain) - 10 :])
    assert len(warned) - len(plain) == 18
    assert len(many) - len(plain) == 8 * 18
