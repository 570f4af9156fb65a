"""Whom a name or a folder means, and that visits of one person stay in one part of a split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_files import table
from prepare_slices import PrepareRecipe
from prepare_slices import main as prepare_slices

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.persons import patient_id_of_name, person_of
from modeling_rasalore.data.splits import (
    read_split,
    refuse_other_split,
    split_patients,
    write_split,
)
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.volume_writing import write_nifti

FAMILIES = ("GLI", "MET", "PED", "SSA", "MEN")
SEEDS = range(10)


def put(root: Path, *names: str) -> Path:
    """Return `root` with files that are there, and no more; masks among them have a word for it."""
    for name in names:
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def put_scans(root: Path, *stems: str) -> Path:
    """Return `root` with a T2 scan and a lesion mask per stem, that can be read."""
    scan, mask = np.zeros((2, 12, 10, 6), np.uint8)
    scan[1:-1, 1:-1] = np.arange(1, 7)
    mask[2:-2, 2:-2, 2:4] = 1  # 8 x 6 pixels of 9 mm2
    for stem in stems:
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        for ending, data in (("_T2w", scan), ("_dseg", mask)):
            write_nifti(root / f"{stem}{ending}.nii.gz", data, np.diag([-3.0, -3, 3, 1]))
    return root


def prepared_ids(root: Path) -> list[str]:
    """Return whose slices are in the files of train/prepare_slices.py."""
    out = root.parent / "slices"
    assert prepare_slices(load_recipe(PrepareRecipe, [f"root={root}", f"out={out}"])) == 0
    index = pq.read_table(out / "index.parquet", columns=["patient_id", "label"]).to_pylist()
    assert {row["label"] for row in index} == {0, 1}
    return sorted({row["patient_id"] for row in index})


# --- Who a patient is -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("patient_id", "person"),
    [
        *((f"BraTS-{family}-00001-003", f"BraTS-{family}-00001") for family in FAMILIES),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("BraTS-GoAT-00001", "BraTS-GoAT-00001"),
        ("BraTS2021_00001", "BraTS2021_00001"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
        ("UCSF-PDGM-0004_FU003d", "UCSF-PDGM-0004"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-tp01", "sub-tp01"),
        ("sub-tp01_ses-post", "sub-tp01"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("PatientID_0003_Timepoint_1", "PatientID_0003"),
        ("anna_visit2", "anna"),
        ("p1_baseline", "p1"),
        ("p1-followup", "p1"),
        ("TCGA_CS_4941_19960909", "TCGA_CS_4941"),
        ("anna_ses-2019-01-31", "anna"),
        ("scan_20190131", "scan_20190131"),  # a date may be all that tells patients apart
        ("p07_v2", "p07"),
        ("brain_v2", "brain_v2"),
        ("patient_02", "patient_02"),
        ("brats_2013_pat0001_1", "brats_2013_pat0001_1"),
    ],
)
def test_visits_have_the_name_of_their_person(patient_id: str, person: str) -> None:
    assert person_of(patient_id) == Patient(patient_id, {}).person == person


@pytest.mark.parametrize(
    ("name", "patient_id"),
    [
        ("case7_t2.nii.gz", "case7"),
        ("t2_case7", "case7"),
        ("brain_001_t2", "001"),
        ("brain_001_seg", "001"),
        ("brain_mask_001", "001"),
        ("tumor_007_t2", "007"),
        ("MS-lesion_012_t2", "MS_012"),
        ("MS-lesion_012_seg", "MS_012"),
        ("anna_lesion_manual_mask", "anna"),
        ("anna_t2_3d_tse", "anna"),
        ("anna_t2_3d_tse_seg", "anna"),
        ("b-2_flair_v2", "b-2"),
        ("T2_FLAIR", ""),
        ("scan", "scan"),
        ("sub-01_ses-1_ce-gadolinium_T1w", "sub-01_ses-1"),
    ],
)
def test_the_name_of_a_file_tells_its_patient(name: str, patient_id: str) -> None:
    assert patient_id_of_name(name) == patient_id


def test_numbers_between_words_are_patients(tmp_path: Path) -> None:
    root = put_scans(tmp_path / "scans", *(f"brain_{number}" for number in ("001", "002")))
    patients = find_patients(root)
    assert [p.patient_id for p in patients] == ["001", "002"]
    assert all(p.mask and p.mask.name == f"brain_{p.patient_id}_dseg.nii.gz" for p in patients)
    assert prepared_ids(root) == ["001", "002"]


def test_files_named_by_their_sequence_alone_are_of_the_patient_of_their_folder(
    tmp_path: Path,
) -> None:
    (patient,) = find_patients(put(tmp_path / "p1", "t2", "seg", "brain_mask"))
    assert patient.patient_id == "p1"
    assert patient.brain_mask is not None


# --- Visits ---------------------------------------------------------------------------------------
def test_sessions_of_bids_are_patients_of_their_own_and_one_person(tmp_path: Path) -> None:
    stems = [f"sub-{n}/ses-{s}/anat/sub-{n}_ses-{s}" for n in ("01", "02") for s in (1, 2)]
    root = put_scans(tmp_path / "scans", *stems)
    patients = find_patients(root)
    ids = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2"]
    assert [p.patient_id for p in patients] == ids == prepared_ids(root)
    assert [p.person for p in patients] == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert [p.person for p in find_patients(tmp_path / "slices")] == [p.person for p in patients]
    split = split_patients(patients, seed=0, validation=0, test=1)
    assert len(split["test"]) == 2 and len({p.person for p in split["test"]}) == 1


@pytest.mark.parametrize(
    ("visits", "ids"),
    [
        (("visit1", "visit_02"), ["anna_visit1", "anna_visit_02"]),
        (("2019-01-31", "20200201"), ["anna_ses-2019-01-31", "anna_ses-20200201"]),
        (("baseline", "Follow-up"), ["anna_Follow-up", "anna_baseline"]),
        (("week-000-1", "week-044"), ["anna_week-000-1", "anna_week-044"]),
    ],
)
def test_folders_of_visits_below_a_patient_are_visits(
    tmp_path: Path, visits: tuple[str, str], ids: list[str]
) -> None:
    put(tmp_path, *(f"anna/{visit}/{name}" for visit in visits for name in ("t2", "seg")))
    patients = find_patients(tmp_path)
    assert [p.patient_id for p in patients] == ids
    assert {p.person for p in patients} == {"anna"}


def test_a_table_names_a_session_by_id_or_by_path(tmp_path: Path) -> None:
    put(tmp_path, *(f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T2w" for s in (1, 2)), "p/2019-01-31/t2")
    volumes = ("sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz", "p/2019-01-31")
    rows = [(volume, index, 0) for index, volume in enumerate(volumes, 3)]
    (tmp_path / "slice_labels.csv").write_text(table(rows))
    labels = {p.patient_id: p.slice_labels for p in find_patients(tmp_path)}
    assert labels == {
        "p_ses-2019-01-31": {5: 0},
        "sub-01_ses-1": {3: 0},
        "sub-01_ses-2": {4: 0},
    }
    (tmp_path / "slice_labels.csv").write_text(table([("sub-01", 3, 0)]))
    with pytest.raises(ValueError, match=r"'sub-01' is no patient .* one is 'sub-01_ses-1'"):
        find_patients(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_visits_of_a_brats_family_never_lie_in_two_parts(tmp_path: Path, family: str) -> None:
    """Six people of two visits each, whatever the seed and the fold."""
    for person in range(1, 7):
        for visit in (0, 1):
            name = f"BraTS-{family}-{person:05d}-{visit:03d}"
            put(tmp_path, f"{name}/{name}-t2w", f"{name}/{name}-seg")
    patients = find_patients(tmp_path)
    assert {p.source for p in patients} == {"BraTS23"}
    assert len({p.person for p in patients}) == 6
    for seed in SEEDS:
        splits = [split_patients(patients, seed, validation=1, test=2)]
        splits += [split_patients(patients, seed, 1, folds=3, fold=fold) for fold in (1, 2, 3)]
        for split in splits:
            persons = [{p.person for p in part} for part in split.values()]
            assert [len(part) for part in persons] == [3, 1, 2]
            assert len(set.union(*persons)) == 6
            assert sum(map(len, split.values())) == 12


def test_a_stored_split_with_one_person_in_two_parts_is_refused(tmp_path: Path) -> None:
    first, second = (Patient(f"BraTS-MET-00001-00{visit}", {}) for visit in (0, 1))
    split = {"train": [first], "validation": [], "test": [second]}
    path = write_split(split, tmp_path / "split.json")
    with pytest.raises(ValueError, match="BraTS-MET-00001 is in train and in test"):
        read_split(path, [first, second])


def test_a_model_that_knows_another_visit_of_a_tested_person_is_refused(tmp_path: Path) -> None:
    write_split({"train": [Patient("sub-01_ses-1", {})], "validation": [], "test": []},
                tmp_path / "split.json")  # fmt: skip
    stranger, other = Patient("sub-02", {}), Patient("sub-01_ses-2", {})
    refuse_other_split(tmp_path, {"train": [], "validation": [], "test": [stranger]})
    with pytest.raises(ValueError, match="may know those who are held out here"):
        refuse_other_split(tmp_path, {"train": [stranger], "validation": [], "test": [other]})


# --- What is left out -----------------------------------------------------------------------------
def test_folders_of_other_names_beside_a_known_layout_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "BraTS2021_1/BraTS2021_1_t2", "BraTS2021_1/BraTS2021_1_seg", "own/own_t2")
    assert [p.patient_id for p in find_patients(tmp_path)] == ["BraTS2021_1"]
    assert "own left out, whose names are not those of the layout" in caplog.text


def test_patients_whose_names_tell_no_sequence_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "p1/t2", "p1/seg", "p2/scan", "p2/seg")
    assert [p.patient_id for p in find_patients(tmp_path)] == ["p1"]
    assert "no file name tells a sequence of p2; left out" in caplog.text
