"""What a folder of scans holds, told from names, and from voxels where names leave doubt."""

from pathlib import Path

import numpy as np
import pytest
from odd_folders import bet, raw_channels, save, tiny_voxels

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.scans.volume_writing import write_volume
from modeling_rasalore.scans.volumes import read_volume

REAL = Path(__file__).parents[3] / "shared" / "data" / "brats2021"


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def brats21(root: Path, names: tuple[str, ...] = ("00001",), mask: bool = True) -> Path:
    for name in names:
        for ending in ("t2", "seg") if mask else ("t2",):
            put(root / f"BraTS2021_{name}/BraTS2021_{name}_{ending}.nii.gz")
    return root


def write_labels(root: Path, *rows: str) -> None:
    (root / "slice_labels.csv").write_text("\n".join(("volume,slice_index,label", *rows)))


BRATS = ["t1", "t1ce", "t2", "flair"]
KNOWN = {
    "BraTS20": [f"BraTS20_Training_001/BraTS20_Training_001_{m}.nii" for m in [*BRATS, "seg"]],
    "BraTS21": [f"BraTS2021_00002/BraTS2021_00002_{m}.nii.gz" for m in [*BRATS, "seg"]],
    "BraTS23": [
        f"BraTS-GLI-00003-000/BraTS-GLI-00003-000-{m}.nii.gz"
        for m in ["t1n", "t1c", "t2w", "t2f", "seg"]
    ],
    "folder": [f"p1/{m}.nii.gz" for m in ["T1_x", "T1POST_x", "T2_x", "FLAIR_x", "GOLD_STANDARD"]],
}


@pytest.mark.parametrize(("source", "files"), KNOWN.items())
def test_a_known_layout_is_read_from_its_names(tmp_path, source, files):
    for name in files:
        put(tmp_path / name)
    (patient,) = find_patients(tmp_path)
    assert patient.source == source
    assert patient.patient_id == files[0].split("/")[0]
    assert [patient.images[m] for m in BRATS] == [tmp_path / name for name in files[:4]]
    assert patient.mask == tmp_path / files[4]


def test_the_brats20_patient_with_another_mask_name_has_a_mask(tmp_path):
    put(tmp_path / "BraTS20_Training_355/BraTS20_Training_355_t2.nii")
    mask = put(tmp_path / "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    assert find_patients(tmp_path)[0].mask == mask


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("sub-01_T2w", "t2"),
        ("T2_FLAIR", "flair"),
        ("t2_tirm_tra_dark-fluid", "flair"),
        ("scan-t2f", "flair"),
        ("T1c_subtrMeanDivStd", "t1ce"),
        ("sub-01_ce-gadolinium_T1w", "t1ce"),
        ("t1_gd", "t1ce"),
        ("T1n", "t1"),
    ],
)
def test_words_in_a_file_name_tell_the_sequence(tmp_path, name, role):
    put(tmp_path / f"p1/anat/{name}.nii.gz")
    put(tmp_path / "p1/anat/flair_seg.nii.gz")
    (patient,) = find_patients(tmp_path)
    assert list(patient.images) == [role]
    assert patient.mask.name == "flair_seg.nii.gz"


@pytest.mark.parametrize("name", ["brainmask", "brain_mask", "T2_brain-mask"])
def test_a_brain_mask_is_not_taken_for_the_lesion_mask(tmp_path, name):
    put(tmp_path / "p1/t2.nii.gz")
    put(tmp_path / "p1/OTMultiClass.nii.gz")
    path = put(tmp_path / f"p1/{name}.nii.gz")
    assert find_patients(tmp_path)[0].brain_mask == path


def test_plain_files_are_grouped_by_what_comes_before_the_sequence(tmp_path):
    for name in ("b-2_t2", "b-2_seg", "a1_T2w_brain", "a1_mask"):
        put(tmp_path / f"{name}.nii.gz")
    patients = find_patients(tmp_path)
    assert [patient.patient_id for patient in patients] == ["a1", "b-2"]
    assert all(patient.mask and list(patient.images) == ["t2"] for patient in patients)


def test_linked_patient_folders_are_followed(tmp_path):
    brats21(tmp_path / "store", ("1",))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/case").symlink_to(tmp_path / "store/BraTS2021_1")
    assert find_patients(tmp_path / "root")[0].patient_id == "case"


def test_an_unknown_layout_says_what_was_looked_for_and_found(tmp_path):
    for name in ("notes.txt", "scan.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"BraTS-GLI-\*.*found notes\.txt, scan\.nii\.gz"):
        find_patients(tmp_path)
    with pytest.raises(ValueError, match="not there"):
        find_patients(tmp_path / "absent")


def test_two_files_for_one_sequence_are_refused(tmp_path):
    brats21(tmp_path / "archive", ("1", "2"))
    with pytest.raises(ValueError, match="patient archive must have one mask file"):
        find_patients(tmp_path)


def test_neither_masks_nor_labels_names_both_ways_out(tmp_path):
    with pytest.raises(ValueError, match=r"BraTS2021_00001 .*mask files, or a slice_labels\.csv"):
        find_patients(brats21(tmp_path, mask=False))


def test_labels_are_read_by_patient_and_slice(tmp_path):
    write_labels(brats21(tmp_path, ("1", "2")), "BraTS2021_1,7,Unhealthy", "BraTS2021_1,0,0")
    labelled, unnamed = find_patients(tmp_path)
    assert labelled.slice_labels == {7: 1, 0: 0}
    assert unnamed.slice_labels == {}  # none of its slices has a label, whatever its mask says


def test_a_patient_that_the_labels_file_leaves_out_is_reported(tmp_path, caplog):
    write_labels(brats21(tmp_path, ("1", "2")), "BraTS2021_1,7,unhealthy")
    find_patients(tmp_path)
    assert "names no slice of BraTS2021_2" in caplog.text


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("BraTS2021_0001,3,healthy", "'BraTS2021_0001' is no patient.*'BraTS2021_00001'"),
        ("BraTS2021_00001,3,sick", "line 2: a row needs"),
        ("BraTS2021_00001,-3,healthy", "line 2: a row needs"),
        ("BraTS2021_00001,3", "line 2: a row needs"),
        ("BraTS2021_00001,3,0\nBraTS2021_00001,3,1", "line 3: slice 3 .* both"),
    ],
)
def test_a_wrong_row_in_the_labels_file_is_named(tmp_path, row, sentence):
    write_labels(brats21(tmp_path), row)
    with pytest.raises(ValueError, match=sentence):
        find_patients(tmp_path)


def test_a_labels_file_without_its_columns_is_refused(tmp_path):
    (brats21(tmp_path) / "slice_labels.csv").write_text("volume,index,label\n")
    with pytest.raises(ValueError, match="slice_index not found"):
        find_patients(tmp_path)


def test_eight_real_brats21_patients_are_found():
    if not REAL.is_dir():
        pytest.skip("the real scans are not beside the checkout")
    patients = find_patients(REAL)
    assert len(patients) == 8
    assert {patient.source for patient in patients} == {"BraTS21"}
    assert all(set(patient.images) == set(BRATS) and patient.mask for patient in patients)


def test_a_mask_of_the_brain_is_never_the_truth(tmp_path):
    with pytest.raises(ValueError, match=r"p01, p02 .* have no mask"):
        find_patients(bet(tmp_path / "named"))
    with pytest.raises(ValueError, match=r"p01, p02 .* have no mask"):
        find_patients(bet(tmp_path / "unnamed", "mask"))  # known by its voxels
    write_labels(bet(tmp_path / "labelled", "mask"), "p01,3,healthy", "p02,3,unhealthy")
    patients = find_patients(tmp_path / "labelled")
    assert [p.brain_mask.name for p in patients] == ["p01_mask.nii.gz", "p02_mask.nii.gz"]
    assert all(patient.mask is None for patient in patients)


def test_a_truth_that_covers_the_brain_is_refused_when_it_is_read(tmp_path):
    for patient in find_patients(bet(tmp_path, "seg")):
        with pytest.raises(ValueError, match="a lesion mask must not cover the whole brain, got"):
            list(read_slices(patient, "t2", skip=0))


def test_raw_channels_are_patients_with_masks(tmp_path):
    names = {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    patients = find_patients(raw_channels(tmp_path / "told", names))
    assert [patient.patient_id for patient in patients] == ["BRATS_001", "BRATS_002"]
    assert patients[0].source == "nnU-Net"
    assert patients[0].images["t2"].name == "BRATS_001_0003.nii.gz"
    assert patients[0].mask.name == "BRATS_001.nii.gz"
    with pytest.raises(ValueError, match=r"no dataset\.json beside it tells their sequences"):
        find_patients(raw_channels(tmp_path / "untold"))


def test_patients_may_be_named_after_what_they_have(tmp_path):
    for name in ("tumor_007", "tumor_008"):
        save(tmp_path / name / f"{name}_t2.nii.gz")
        save(tmp_path / name / f"{name}_seg.nii.gz", (tiny_voxels() > 300).astype(np.uint8))
    assert all(list(p.images) == ["t2"] and p.mask for p in find_patients(tmp_path))


def test_a_predicted_mask_is_no_truth_to_learn_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = save(tmp_path / "p1" / "p1_t2.nii.gz")
    volume = read_volume(scan)
    write_volume(tmp_path / "p1" / "p1_t2_mask.nii.gz", volume.slices > 300, volume, np.uint8)
    with pytest.raises(ValueError, match=r"p1 in .* have no mask"):
        find_patients(tmp_path)
    assert "p1_t2_mask.nii.gz are results of this software, and left out" in caplog.text
