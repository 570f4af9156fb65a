"""Pictures of slices: every slice in its cell, sequences side by side, what cannot be shown."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled_scans import AFFINE, SHOWN, SLICES, make_patients, write_patient
from PIL import Image

from modeling_rasalore.data.layouts import find_scanned_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.labelling import pictures as pictures_module
from modeling_rasalore.labelling.pictures import (
    HEADROOM,
    THUMBNAIL,
    ScanPictures,
    draw_patient,
    draw_tint,
)
from modeling_rasalore.scans.volume_writing import write_nifti


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    write_patient(tmp_path, "ann", ("t2", "flair"))
    return find_scanned_patients(tmp_path)[0]


def open_png(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def cell_of(picture: np.ndarray, drawn: ScanPictures, index: int) -> np.ndarray:
    """The pixels of a slice in a picture of all."""
    width, height = drawn.view.size
    row, column = divmod(index - drawn.shown[0], drawn.columns)
    return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_every_slice_with_brain_is_in_its_cell_in_both_sequences(patient: Patient) -> None:
    drawn = draw_patient(patient)
    assert (drawn.count, drawn.shown, list(drawn.sequences)) == (SLICES, SHOWN, ["flair", "t2"])
    for content in drawn.sequences.values():
        picture = open_png(content)
        middles = [int(cell_of(picture, drawn, k)[14, 12]) for k in range(2, 12)]
        # brain of slice k is 100 + 10 k, white is the brightest, 210, times the headroom
        expected = [255 * (100 + 10 * k) / (210 * HEADROOM) for k in range(2, 12)]
        assert middles == pytest.approx(expected, abs=1)


def test_a_voxel_has_its_own_proportions(tmp_path: Path) -> None:
    voxels = np.zeros((20, 20, 3), np.int16)
    voxels[4:16, 4:16] = 100
    write_nifti(tmp_path / "ann_flair.nii.gz", voxels, np.diag([-1.0, -2.0, 3.0, 1.0]))
    width, height = draw_patient(find_scanned_patients(tmp_path)[0]).view.size
    assert height == 2 * width


def test_thumbnails_are_one_row(patient: Patient) -> None:
    drawn = draw_patient(patient)
    assert open_png(drawn.thumbnails).shape[1] == THUMBNAIL * 10


def test_large_scans_are_drawn_smaller(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    full = draw_patient(patient).view.size
    monkeypatch.setattr(pictures_module, "MOST_PIXELS", 16 * full[0] * full[1] // 4)
    drawn = draw_patient(patient)
    assert np.subtract(np.multiply(drawn.view.size, 2), full).max() <= 1
    assert open_png(drawn.sequences["flair"]).size <= pictures_module.MOST_PIXELS


def test_the_sequence_that_is_asked_for_comes_first(patient: Patient) -> None:
    assert list(draw_patient(patient, "t2").sequences) == ["t2", "flair"]
    with pytest.raises(ValueError, match="ann has no t1 scan to label, only t2, flair"):
        draw_patient(patient, "t1")


def test_sequences_on_other_grids_are_left_out_once_one_is_chosen(
    patient: Patient, tmp_path: Path
) -> None:
    write_nifti(tmp_path / "ann" / "ann_t2.nii.gz", np.ones((9, 9, 5), np.int16), AFFINE)
    with pytest.raises(ValueError, match="Or choose with --modality"):
        draw_patient(patient)
    drawn = draw_patient(patient, "flair")
    assert list(drawn.sequences) == ["flair"]
    assert drawn.notes[0].startswith("t2 is not shown: sequences that are used together")


def test_a_damaged_other_sequence_costs_a_note(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "ann" / "ann_t2.nii.gz").write_text("no scan")
    drawn = draw_patient(patient, "flair")
    assert "t2 is not shown" in drawn.notes[0] and list(drawn.sequences) == ["flair"]


def test_a_scan_without_brain_is_refused(patient: Patient, tmp_path: Path) -> None:
    blank = write_nifti(tmp_path / "blank.nii.gz", np.zeros((9, 9, 5), np.int16), AFFINE)
    with pytest.raises(ValueError, match=r"blank\.nii\.gz"):
        draw_patient(replace(patient, images={"flair": blank}))


def test_the_tint_of_a_score_is_as_strong_as_in_overlays(patient: Patient) -> None:
    drawn = draw_patient(patient)
    scores = np.zeros((SLICES, 28, 24), np.float32)
    scores[5], scores[6] = 1, 0.5
    picture = open_png(draw_tint(scores, drawn))
    cells = [cell_of(picture, drawn, index)[3, 3].tolist() for index in (4, 5, 6)]
    assert cells == [[120, 20, 140, 0], [255, 120, 40, 114], [187, 70, 90, 28]]


def test_every_patient_of_a_folder_can_be_drawn(tmp_path: Path) -> None:
    assert [draw_patient(p).labelled for p in make_patients(tmp_path)] == ["flair"] * 3
