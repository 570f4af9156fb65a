"""A slice comes back from Parquet with every value it had."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_rasalore.layouts import Patient, find_patients
from modeling_rasalore.slice_files import image_bytes, write_slice_files
from modeling_rasalore.slices import read_slices
from modeling_rasalore.volumes import write_nifti


def decode(stored: dict[str, bytes]) -> Image.Image:
    return Image.open(io.BytesIO(stored["bytes"]))


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([0, 1, 65535], "PNG"),
        ([0, 0.5, 3], "TIFF"),
        ([0, 65536, 3], "TIFF"),
        ([0, 1e-30, 3e38], "TIFF"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_a_slice_is_stored_without_loss(values: list[float], form: str) -> None:
    image = np.array([values, values[::-1]], np.float32)
    stored = decode(image_bytes(image))
    assert stored.format == form
    np.testing.assert_array_equal(np.asarray(stored, np.float32), image)


@pytest.fixture
def patients(tmp_path: Path) -> list[Patient]:
    random = np.random.default_rng(0)
    for number in range(2):
        folder = tmp_path / f"BraTS2021_{number:05d}"
        folder.mkdir()
        scan = random.integers(1, 900, (20, 22, 6)).astype(np.int16)
        mask = np.zeros_like(scan)
        mask[2:18, 2:18, 3] = 4
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        write_nifti(folder / f"{folder.name}_t2.nii.gz", scan, affine)
        write_nifti(folder / f"{folder.name}_seg.nii.gz", mask, affine)
    return find_patients(tmp_path)


def test_a_file_holds_one_patients_slices_in_order(patients: list[Patient], tmp_path: Path) -> None:
    split = {"train": patients[:1], "validation": [], "test": patients[1:]}
    counts = write_slice_files(split, tmp_path / "out", "t2", skip=1, with_masks=True)
    numbers = {"patients": 1, "slices": 4, "unhealthy": 1, "healthy": 3, "neither": 0}
    assert counts == [{"split": "train", **numbers}, {"split": "test", **numbers}]
    assert not (tmp_path / "out" / "data" / "validation").exists()
    path = tmp_path / "out" / "data" / "test" / f"{patients[1].patient_id}.parquet"
    rows = pq.read_table(path).to_pylist()
    for row, slice_ in zip(rows, read_slices(patients[1], "t2", True, 1), strict=True):
        np.testing.assert_array_equal(np.asarray(decode(row["image"])), slice_["image"])
        np.testing.assert_array_equal(np.asarray(decode(row["mask"])) > 0, slice_["mask"] > 0)
        assert row["spacing"] == list(slice_["spacing"])
        assert (row["label"], row["slice_index"]) == (slice_["label"], slice_["slice_index"])


def test_writing_twice_gives_the_same_bytes(patients: list[Patient], tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        write_slice_files({"train": patients}, tmp_path / name, "t2", skip=1)
        files.append([p.read_bytes() for p in sorted((tmp_path / name).rglob("*.parquet"))])
    assert len(files[0]) == 2
    assert files[0] == files[1]


def test_masks_are_published_only_when_asked_for(patients: list[Patient], tmp_path: Path) -> None:
    write_slice_files({"train": patients}, tmp_path / "out", "t2", skip=1)
    path = next((tmp_path / "out").rglob("*.parquet"))
    assert "mask" not in pq.read_schema(path).names
