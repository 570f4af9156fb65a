"""What a folder of scans holds is said before anything is trained, and too little is refused."""

from pathlib import Path
from shutil import rmtree

import pytest
from label_files import write_slice_labels
from small_study import write_scans

from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.studies.recipe import StudyData
from modeling_rasalore.studies.survey import survey_scans


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "scans", 4)


def data(root: Path, modality: str = "t2") -> StudyData:
    return StudyData(str(root), modality, 0)


def relabel(scans: Path, was: str, now: str) -> None:
    path = write_slice_labels(find_patients(scans), scans / "slice_labels.csv")
    path.write_text(path.read_text().replace(was, now))


def test_patients_masks_and_labelled_slices_are_counted(scans: Path) -> None:
    survey = survey_scans(data(scans))
    found, labels = survey.describe()
    assert found.endswith("(BraTS21): 4 patients with a t2 scan, 4 with a mask")
    # Lesions of 4, 5, 6 and 7 of 14 slices, 324 mm2 in each.
    assert (survey.slices[UNHEALTHY], survey.slices[HEALTHY]) == (22, 34)
    assert labels == "labels from the masks: 22 unhealthy and 34 healthy slices of 4 patients"
    assert survey.example()[1] == 14  # one patient chooses


def test_the_only_sequence_need_not_be_named_and_another_is_refused(scans: Path) -> None:
    assert survey_scans(data(scans, "")).modality == "t2"
    with pytest.raises(ValueError, match="is of flair, only of t2; name one of these"):
        survey_scans(data(scans, "flair"))


def test_a_scan_that_cannot_be_read_is_left_out_and_said(scans: Path) -> None:
    broken = scans / "BraTS2021_00002" / "BraTS2021_00002_t2.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    survey = survey_scans(data(scans))
    assert list(survey.left_out) == ["BraTS2021_00002"] and len(survey.patients) == 3
    assert "left out: BraTS2021_00002, whose scan cannot be read: " in survey.describe()[-1]


def test_labels_decide_what_was_learned_and_change_the_fingerprint(scans: Path) -> None:
    before = survey_scans(data(scans))
    write_slice_labels(find_patients(scans), scans / "slice_labels.csv")
    labelled = survey_scans(data(scans))
    assert "labels from slice_labels.csv: 22 unhealthy" in labelled.describe()[1]
    assert before.slices == labelled.slices and before.fingerprint() != labelled.fingerprint()
    assert labelled.fingerprint() == survey_scans(data(scans)).fingerprint()


@pytest.mark.parametrize(
    ("was", "now", "word"), [(",healthy", ",1", "healthy"), ("unhealthy", "0", "unhealthy")]
)
def test_labels_of_one_kind_teach_nothing(scans: Path, was: str, now: str, word: str) -> None:
    relabel(scans, was, now)
    with pytest.raises(ValueError, match=f"no slice in .*scans is labelled {word}; label some"):
        survey_scans(data(scans))


def test_labels_of_an_unknown_volume_name_the_nearest(scans: Path) -> None:
    relabel(scans, "BraTS2021_00003", "BraTS2021_00033")
    with pytest.raises(ValueError, match=r"'BraTS2021_00033' is no patient .*'BraTS2021_00003'"):
        survey_scans(data(scans))


@pytest.mark.parametrize("number", [1, 2])
def test_fewer_than_three_patients_are_too_few(scans: Path, number: int) -> None:
    for folder in sorted(scans.iterdir())[number:]:
        rmtree(folder)
    with pytest.raises(ValueError, match=f"labels of 3 patients at least.* has {number};"):
        survey_scans(data(scans))
