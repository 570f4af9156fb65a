"""The picture of slices and systems: who is on it, where, and in what grey."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_study import write_scans

from modeling_rasalore.benchmark.pictures import PATIENTS_SHOWN, choose_slices, write_grid
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.evaluation.slice_grid import CELL, GAP, HEADER, GridSlice, results_grid
from modeling_rasalore.recipes import DataRecipe
from modeling_rasalore.scans.overlays import TRUTH_COLOUR


def make_slice(spacing: tuple[float, float] = (1.0, 1.0)) -> GridSlice:
    """A square brain with a square lesion in its middle."""
    image, truth = np.zeros((40, 40), np.float32), np.zeros((40, 40), bool)
    image[6:34, 6:34], truth[15:25, 15:25] = 0.5, True
    return GridSlice(image, truth, spacing, "somebody, 3")


def draw(folder: Path, slices: list[GridSlice], systems: int, score: float = 0.0) -> np.ndarray:
    maps = {f"system {n}": [np.full_like(s.image, score) for s in slices] for n in range(systems)}
    return np.asarray(Image.open(results_grid(slices, maps, folder / "grid.png")))


def cell(pixels: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = HEADER + row * (CELL + GAP), GAP + column * (CELL + GAP)
    return pixels[top : top + CELL, left : left + CELL]


def marked(pixels: np.ndarray) -> int:
    return int((pixels == TRUTH_COLOUR).all(-1).sum())


def test_twenty_systems_are_wrapped_below_each_other(tmp_path: Path) -> None:
    slices = [make_slice(), make_slice()]
    few, many = draw(tmp_path, slices, 7), draw(tmp_path, slices, 20)
    assert few.shape[1] == many.shape[1] == 1597
    assert many.shape[0] - few.shape[0] == 2 * (HEADER + 2 * (CELL + GAP))


def test_the_true_outline_is_on_the_slice_and_on_every_map(tmp_path: Path) -> None:
    pixels = draw(tmp_path, [make_slice()], 3)
    outlines = [marked(cell(pixels, 0, column)) for column in range(4)]
    assert min(outlines) == max(outlines) > 100


def test_the_picture_is_as_wide_as_its_columns_and_its_words(tmp_path: Path) -> None:
    widths = [draw(tmp_path, [make_slice()], systems).shape[1] for systems in (1, 3, 4)]
    assert widths == [GAP + columns * (CELL + GAP) for columns in (4, 4, 5)]


def test_scores_are_grey_on_one_scale(tmp_path: Path) -> None:
    for score, grey in ((0.0, 0), (0.4, 102), (1.0, 255)):
        pixels = cell(draw(tmp_path, [make_slice()], 1, score), 0, 1)
        assert (pixels[CELL // 2, CELL // 2] == grey).all()


def test_the_brain_keeps_its_proportions(tmp_path: Path) -> None:
    tall = cell(draw(tmp_path, [make_slice((2.0, 1.0))], 1, 1.0), 0, 1)
    white = (tall == 255).all(-1)
    assert white.any(1).sum() == pytest.approx(2 * white.any(0).sum(), abs=3)


def test_maps_that_do_not_fit_and_no_slices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="maps of ae must have the slices' shapes"):
        results_grid([make_slice()], {"ae": [np.zeros((3, 3))]}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="at least one slice"):
        results_grid([], {}, tmp_path / "grid.png")


# --- Which slices -------------------------------------------------------------------------------
def test_slices_are_the_largest_lesions_of_evenly_spaced_patients(tmp_path: Path) -> None:
    patients = find_patients(write_scans(tmp_path / "scans", 9))
    data = DataRecipe(root="", skip_slices=1)
    chosen = choose_slices(patients[::-1], data)
    assert [one.example.patient_id for one in chosen] == [
        f"BraTS2021_{number:05d}" for number in (0, 2, 4, 6)
    ]
    for one in chosen:
        assert one.example.mask.sum() == 81 and one.example.slice_index >= one.position
    few = choose_slices(patients[:2], data)
    assert len(few) == 2 < PATIENTS_SHOWN


def test_systems_without_maps_have_no_column_and_no_lesion_means_no_picture(
    tmp_path: Path,
) -> None:
    patients = find_patients(write_scans(tmp_path / "scans", 2))
    data, path = DataRecipe(root="", skip_slices=1), tmp_path / "grid.png"
    folders = {patient.patient_id: tmp_path for patient in patients}
    for patient in patients:
        scores = tmp_path / "systems" / "ae" / "scores" / f"{patient.patient_id}.npy"
        scores.parent.mkdir(parents=True, exist_ok=True)
        np.save(scores, np.ones((12, 32, 32), np.float32))
    rows = [{"system": name, "weights": "trained"} for name in ("ae", "dae")]
    rows.append({"system": "cae", "weights": "none", "failure": "no luck"})
    write_grid(path, [], data, rows, folders)
    assert not path.exists()
    write_grid(path, patients, data, rows, folders)
    pixels = np.asarray(Image.open(path))
    assert marked(cell(pixels, 1, 1)) > 0 and marked(cell(pixels, 1, 2)) == 0
