"""One door: every file is opened once, and what a header tells is what reading does."""

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series, zip_files

from modeling_rasalore.scans.reading import inspect_scan, read_scan, read_scan_facts
from modeling_rasalore.scans.volumes import VolumeError

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def save(path: Path, voxels: np.ndarray = VOXELS) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def zip_series(path: Path) -> Path:
    pytest.importorskip("pydicom")
    series = write_series(path.parent / "series", VOXELS, np.eye(4))
    return zip_files(path, {file.name: file.read_bytes() for file in series.iterdir()})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened, in order."""
    paths: list[Path] = []
    plain = io.open

    def recording(file: Any, *args: Any, **settings: Any) -> Any:
        paths.append(Path(file))
        return plain(file, *args, **settings)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", recording)
    return paths


@pytest.mark.parametrize(
    "read", [read_scan, read_scan_facts, lambda path: inspect_scan(path, None, None)]
)
@pytest.mark.parametrize(
    ("name", "make"), [("a.nii", save), ("a.nii.gz", save), ("a.zip", zip_series)]
)
def test_a_scan_is_opened_once(
    tmp_path: Path,
    opened: list[Path],
    name: str,
    make: Callable[[Path], Path],
    read: Callable[[Path], Any],
) -> None:
    path = make(tmp_path / name)
    opened.clear()
    read(path)
    assert opened.count(path) == 1


@pytest.mark.parametrize(
    ("voxels", "channel"),
    [(VOXELS, None), (VOXELS, 0), *((np.stack([VOXELS] * 2, -1), c) for c in (None, 0, 2, -1))],
)
def test_inspecting_says_why_reading_fails(
    tmp_path: Path, voxels: np.ndarray, channel: int | None
) -> None:
    path, reason = save(tmp_path / "a.nii", voxels), None
    try:
        read_scan(path, channel)
    except VolumeError as error:
        reason = str(error)
    assert inspect_scan(path, channel, None)["reason"] == reason


def test_the_modality_chooses_the_channel_of_a_known_layout(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    path = save(tmp_path / "imagesTr" / "a.nii.gz", np.stack([VOXELS + c for c in range(4)], -1))
    assert inspect_scan(path, None, "t2")["volume_used"] == 3
    assert np.array_equal(read_scan(path, modality="t2").slices, read_scan(path, 3).slices)
