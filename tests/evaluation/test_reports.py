"""Overlays are checked pixel by pixel on small volumes; tables and figures on hand-made rows."""

import numpy as np
import pytest
from PIL import Image

from modeling_rasalore.evaluation.tables import overview_table, results_figure, results_table
from modeling_rasalore.scans.overlays import (
    MASK_COLOUR,
    TRUTH_COLOUR,
    choose_slices,
    overlay_montage,
)


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


def row(**values):
    return {
        "system": "rasalore",
        "title": "RASALoRE",
        "modality": "t2",
        "view": "paper",
        "threshold": "0.5",
        "patients": 6,
        "slices": 210,
        "dice": 0.7123,
        "dice_low": 0.65,
        "dice_high": 0.773,
        "average_precision": None,
        "auroc": 0.9,
        "weights": "trained",
        **values,
    }


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


def test_a_table_line_by_hand():
    line = results_table([row()]).splitlines()[2]
    assert line == (
        "| RASALoRE | t2 | paper | 0.5 | 71.2 [65.0, 77.3] | – | 90.0 | – | 6 | 210 |"  # noqa: RUF001
    )


def test_a_table_names_stand_in_weights_and_the_oracle():
    title = "MedSAM + DDPT (box)"
    table = results_table([row(title=title, weights="stand-in", threshold="oracle")])
    assert "MedSAM + DDPT (box) (stand-in weights)" in table
    assert "oracle (no claim)" in table


def test_a_mean_without_an_interval_stands_alone():
    assert "| 71.2 |" in results_table([row(dice_low=None, dice_high=None)])


def test_every_table_line_has_as_many_columns():
    table = results_table([row(), row(view="volume", false_alarms_per_healthy_slice=0.2)])
    assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "| 0.20 |" in table


def test_a_figure_is_written_even_with_missing_values(tmp_path):
    rows = [row(), row(system="chance", dice=None), row(view="volume", dice_low=None)]
    path = results_figure([*rows, row(system="unheard_of", threshold="0.7")], tmp_path / "f.png")
    assert Image.open(path).size[0] == 1650


def test_the_overview_has_a_line_per_system_with_every_threshold() -> None:
    rows = [
        row(threshold=threshold, dice=dice, view=view, false_alarms_per_healthy_slice=alarms)
        | {"healthy_brain_marked": 0.012}
        for view, alarms in (("paper", None), ("volume", 0.5))
        for threshold, dice in (("0.5", 0.1), ("label_free", 0.2), ("oracle", 0.3))
    ]
    *_, line = overview_table([*rows, row(system="ae") | {"failure": "killed"}]).splitlines()
    cells = [cell.strip().split(" ")[0] for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["10.0", "20.0", "30.0"] and cells[5:] == ["20.0", "0.50", "1.2"]
    assert "AE" not in line
