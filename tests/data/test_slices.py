"""Slice labels, the slice stream and splits, on scans made here and on real ones."""

import logging
from pathlib import Path

import numpy as np
import pytest
from label_files import write_slice_labels

from modeling_rasalore.data import slices as slices_module
from modeling_rasalore.data.labels import label_slices
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice, Patient, used_slices
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import VolumeError

REAL = Path(__file__).parents[3] / "shared" / "data"
TWO_MM = np.diag([-2.0, -2, 2, 1])  # LPS
LESION_PIXELS = (0, 0, 1, 50, 51, 0, 0, 0)  # per slice; 50 px of 4 mm2 are exactly 200 mm2
LABELS = [0, 0, -1, -1, 1, 0, 0, 0]


def brain() -> np.ndarray:
    """A scan (12, 10, 8), slice k holding the value k + 1 but for a border of 0."""
    data = np.zeros((12, 10, 8), np.float32)
    data[1:-1, 1:-1] = np.arange(1, 9)
    return data


def lesion() -> np.ndarray:
    flat = np.zeros((8, 120), np.uint8)
    for row, pixels in zip(flat, LESION_PIXELS, strict=True):
        row[:pixels] = 4
    return np.moveaxis(flat.reshape(8, 12, 10), 0, 2)


def put(path: Path, data: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, brain() if data is None else data, TWO_MM)


def brats21(root: Path, names: tuple[str, ...] = ("00001",), mask: bool = True) -> Path:
    for name in names:
        stem = f"BraTS2021_{name}/BraTS2021_{name}"
        put(root / f"{stem}_t2.nii.gz")
        if mask:
            put(root / f"{stem}_seg.nii.gz", lesion())
    return root


def write_labels(root: Path, *rows: str) -> None:
    (root / "slice_labels.csv").write_text("\n".join(("volume,slice_index,label", *rows)))


def rows_of(patient: Patient, **settings) -> list[LabelledSlice]:
    return list(read_slices(patient, "t2", **{"skip": 0, **settings}))


def test_a_missing_sequence_says_who_lacks_it_and_what_is_there(tmp_path):
    (patient,) = find_patients(brats21(tmp_path))
    with pytest.raises(ValueError, match="needs a flair scan, but BraTS2021_00001 has t2"):
        list(read_slices(patient, "flair"))
    with pytest.raises(ValueError, match="modality must be one of t1, t1ce, t2, flair, all, got"):
        list(read_slices(patient, "T2"))


def test_more_than_200_square_millimetres_make_a_slice_unhealthy():
    mask = lesion().transpose(2, 0, 1) > 0
    assert label_slices(mask, (2.0, 2.0)) == LABELS
    assert label_slices(mask, (1.0, 1.0)) == [0, 0, -1, -1, -1, 0, 0, 0]
    assert label_slices(mask, (2.0, 2.0 + 1e-7)) == LABELS  # as float32 geometry gives it


def test_slices_carry_labels_masks_and_where_they_come_from(tmp_path):
    (patient,) = find_patients(brats21(tmp_path))
    rows = rows_of(patient, with_mask=True)
    assert [row.label for row in rows] == LABELS
    assert [row.mask.sum() for row in rows] == list(LESION_PIXELS)
    assert np.array_equal(rows[3].image, brain()[:, :, 3].T)
    assert rows[3].image.dtype == np.float32
    assert (rows[3].slice_index, rows[3].spacing) == (3, (2.0, 2.0, 2.0))
    assert (rows[3].patient_id, rows[3].source) == ("BraTS2021_00001", "BraTS21")


def test_msd_reads_each_modality_from_its_channel(tmp_path):
    channels = np.stack([brain() * factor for factor in (1, 2, 3, 4)], axis=3)
    put(tmp_path / "imagesTr/BRATS_001.nii.gz", channels)
    (tmp_path / "imagesTr/._BRATS_001.nii.gz").write_bytes(b"left by an archive")
    put(tmp_path / "labelsTr/BRATS_001.nii.gz", lesion())
    (patient,) = find_patients(tmp_path)
    for factor, modality in enumerate(("flair", "t1", "t1ce", "t2"), start=1):
        first = next(read_slices(patient, modality, skip=0))
        assert first.image.max() == factor
    assert [row.label for row in rows_of(patient)] == LABELS


def test_the_first_and_last_slices_are_skipped(tmp_path):
    (patient,) = find_patients(brats21(tmp_path))
    assert [row.slice_index for row in rows_of(patient, skip=3)] == [3, 4]
    with pytest.raises(ValueError, match="skip_slices=4 leaves none of the 8 slices"):
        rows_of(patient, skip=4)


@pytest.mark.parametrize(
    ("count", "skip", "first"),
    [(155, "auto", 15), (24, "auto", 0), (49, "auto", 0), (50, "auto", 5), (96, "auto", 9),
     (310, "auto", 30), (155, 15, 15), (96, 15, 15), (31, 15, 15), (24, 0, 0)],
)  # fmt: skip
def test_how_many_slices_are_left_out_follows_the_scan_unless_a_number_is_given(count, skip, first):
    assert used_slices("p", count, skip) == range(first, count - first)


@pytest.mark.parametrize("skip", [-1, "all", 1.5, None])
def test_words_that_are_no_number_of_slices_are_refused(skip):
    with pytest.raises(ValueError, match="skip_slices must be auto or a number from 0 on, got"):
        used_slices("p", 100, skip)


def test_a_number_that_leaves_no_slice_is_told_with_the_way_out():
    with pytest.raises(ValueError, match="skip_slices=15 leaves none of the 24 slices of p; give"):
        used_slices("p", 24, 15)


def test_labels_choose_the_slices_that_are_kept(tmp_path):
    (patient,) = find_patients(brats21(tmp_path))
    assert [row.slice_index for row in rows_of(patient, labels={1})] == [4]


def test_slices_without_brain_are_skipped_and_counted_once(tmp_path, caplog):
    data = brain()
    data[:, :, 5:7] = 0
    patients = [Patient("p", {"t2": put(tmp_path / "t2.nii.gz", data)})]
    with caplog.at_level(logging.INFO, slices_module.__name__):
        for _ in range(2):
            assert len(rows_of(patients[0])) == 6
    assert caplog.text.count("2 slices without brain") == 1


def test_replaced_voxels_are_reported(tmp_path, caplog):
    data = brain()
    data[5, 5, 5] = np.nan
    rows_of(Patient("p", {"t2": put(tmp_path / "t2.nii.gz", data)}))
    assert "1 NaN or infinite voxels" in caplog.text


def test_a_labels_file_decides_and_no_mask_is_opened(tmp_path):
    root = brats21(tmp_path)
    (root / "BraTS2021_00001/BraTS2021_00001_seg.nii.gz").write_bytes(b"never opened")
    write_labels(root, "BraTS2021_00001,0,unhealthy", "BraTS2021_00001,2,0")
    (patient,) = find_patients(root)
    rows = rows_of(patient)
    assert [row.label for row in rows] == [1, -1, 0, -1, -1, -1, -1, -1]
    assert {row.mask for row in rows} == {None}
    with pytest.raises(VolumeError, match="_seg"):
        rows_of(patient, with_mask=True)


def test_a_labelled_slice_beyond_the_scan_is_refused(tmp_path):
    write_labels(brats21(tmp_path), "BraTS2021_00001,8,healthy")
    with pytest.raises(
        ValueError, match="names slice 8 of BraTS2021_00001, whose scan has slices 0 to 7"
    ):
        rows_of(find_patients(tmp_path)[0])


def test_written_slice_labels_replace_the_masks(tmp_path):
    root = brats21(tmp_path, ("1", "2"))
    write_slice_labels(find_patients(root), root / "slice_labels.csv")
    for mask in root.glob("*/*_seg.nii.gz"):
        mask.unlink()
    patients = find_patients(root)
    assert [[row.label for row in rows_of(patient)] for patient in patients] == [LABELS] * 2


def test_each_volume_is_decoded_once_per_pass(tmp_path, monkeypatch):
    opened = []
    read = slices_module.read_volume
    monkeypatch.setattr(slices_module, "read_volume", lambda *a: opened.append(a) or read(*a))
    patients = find_patients(brats21(tmp_path, ("1", "2")))
    for patient in patients:
        rows_of(patient)
    assert len(opened) == 2


def test_a_slice_does_not_keep_its_volume_in_memory(tmp_path):
    row = rows_of(find_patients(brats21(tmp_path))[0], with_mask=True)[0]
    assert row.image.base is None
    assert row.mask.base is None


def test_a_scan_that_cannot_be_decoded_is_named(tmp_path):
    patients = find_patients(brats21(tmp_path, ("1", "2")))
    patients[1].images["t2"].write_bytes(patients[0].images["t2"].read_bytes()[:200])
    with pytest.raises(VolumeError, match="BraTS2021_2_t2"):
        rows_of(patients[1])


def real(name: str) -> list[Patient]:
    if not (REAL / name).is_dir():
        pytest.skip(f"the real scans {name} are not beside the checkout")
    return find_patients(REAL / name)


def test_real_slice_labels_agree_with_the_masks(tmp_path):
    patients = real("brats2013")
    written = write_slice_labels(patients, tmp_path / "slice_labels.csv").read_text().splitlines()
    published = (REAL / "brats2013/slice_labels.csv").read_text().splitlines()
    assert len(published) == 490
    assert set(published) <= set(written)


@pytest.mark.parametrize(("name", "modality"), [("mslub", "t2"), ("brats2013", "flair")])
def test_real_scans_with_negative_values_start_at_0(name, modality):
    rows = list(read_slices(real(name)[0], modality, skip=40))
    assert min(row.image.min() for row in rows) == 0
    assert all((row.image == 0).mean() > 0.2 for row in rows)  # the background is 0 too
