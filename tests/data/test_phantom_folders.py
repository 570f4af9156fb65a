"""Folders of synthetic patients: BraTS files, the same for any number of patients."""

import json
from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore.data import phantoms
from modeling_rasalore.data.phantoms import make_phantom, write_phantoms
from modeling_rasalore.scans.volumes import read_mask, read_volume

SHAPE, VOXEL = (48, 56, 48), 4.0  # a whole head in 0.1 s


def write(folder: Path, patients: int = 2, **options: int) -> list[Path]:
    options = {"processes": 1, **options}
    return write_phantoms(folder, patients, shape=SHAPE, voxel_size=VOXEL, **options)


def test_folders_hold_brats_files_with_the_values_of_the_phantom(tmp_path: Path) -> None:
    folder = write(tmp_path, seed=5)[1]
    assert folder == tmp_path / "BraTS2021_phantom002"
    record = json.loads((folder / "phantom.json").read_text())
    made = make_phantom(record["seed"], SHAPE, VOXEL)
    scan = read_volume(folder / f"{folder.name}_t2.nii.gz")
    np.testing.assert_array_equal(scan.slices, np.rint(made.images["t2"]).transpose(2, 1, 0))
    np.testing.assert_array_equal(
        read_mask(folder / f"{folder.name}_seg.nii.gz", scan), made.mask.transpose(2, 1, 0)
    )
    assert scan.geometry.axis_codes == "LPS" and scan.spacing == (VOXEL,) * 3
    assert scan.header.get_data_dtype() == np.int16
    assert len(list(folder.glob("*.nii.gz"))) == 5


def test_patients_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, many = write(tmp_path / "a", 1, seed=3)[0], write(tmp_path / "b", 3, seed=3)
    name = f"{few.name}_flair.nii.gz"
    assert (few / name).read_bytes() == (many[0] / name).read_bytes()
    assert (many[0] / name).read_bytes() != (many[1] / f"{many[1].name}_flair.nii.gz").read_bytes()


def test_first_patients_are_the_healthy_ones(tmp_path: Path) -> None:
    masks = [read_volume(f / f"{f.name}_seg.nii.gz") for f in write(tmp_path, healthy_patients=1)]
    assert [bool(mask.slices.any()) for mask in masks] == [False, True]


def test_a_folder_of_patients_with_white_matter_lesions_has_no_tumour(tmp_path: Path) -> None:
    folders = write(tmp_path, healthy_patients=1, white_matter_lesions=True)
    masks = [read_volume(f / f"{f.name}_seg.nii.gz").slices for f in folders]
    assert [set(np.unique(mask)) for mask in masks] == [{0}, {0, 2}]


def test_repeating_keeps_patients_and_other_settings_replace_them(tmp_path: Path) -> None:
    record = write(tmp_path, 1)[0] / "phantom.json"
    first = record.stat().st_mtime_ns
    write(tmp_path, 2)
    assert record.stat().st_mtime_ns == first
    write(tmp_path, 2, seed=1)
    assert record.stat().st_mtime_ns != first
    write(tmp_path, 1, seed=1)  # the other one is as it would be made
    with pytest.raises(ValueError, match=r"made with other arguments, such as .*phantom002; give"):
        write(tmp_path, 1)


def test_patients_made_at_once_equal_patients_made_one_by_one(tmp_path: Path) -> None:
    one_by_one, at_once = write(tmp_path / "a", 2), write(tmp_path / "b", 2, processes=2)
    for ours, theirs in zip(one_by_one, at_once, strict=True):
        files = [p.name for p in sorted(ours.glob("*.nii.gz"))]
        assert files == [p.name for p in sorted(theirs.glob("*.nii.gz"))]
        assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in files)


def test_interrupted_patient_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "write_nifti", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_phantom001").mkdir()
    with pytest.raises(ValueError, match="holds no phantom"):
        write(tmp_path)


@pytest.mark.parametrize(("patients", "healthy"), [(-1, 0), (2, 3), (2, -1)])
def test_impossible_numbers_of_patients_are_refused(
    tmp_path: Path, patients: int, healthy: int
) -> None:
    with pytest.raises(ValueError, match="healthy_patients"):
        write(tmp_path, patients, healthy_patients=healthy)
