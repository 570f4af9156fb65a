"""Odd geometry, one function per case, each made from one small phantom."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from dicom_files import write_series

from modeling_rasalore.scans.header_guard import FIELDS_1

AXIAL = np.array([[-2.0, 0, 0, 23], [0, -2, 0, 27], [0, 0, 2, -11], [0, 0, 0, 1]])


def phantom() -> np.ndarray:
    """(24, 28, 12) int16, LPS: a brain of random tissue around 100; 48 x 56 x 24 mm in AXIAL."""
    voxels = np.zeros((24, 28, 12), np.int16)
    voxels[4:20, 5:23, 1:11] = np.random.default_rng(0).integers(20, 200, (16, 18, 10))
    return voxels


# Geometry


def write_two_forms(path: Path, affine: np.ndarray = AXIAL, data: np.ndarray | None = None) -> Path:
    """Return `path` of a scan with an sform and a qform."""
    image = nib.Nifti1Image(phantom() if data is None else data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    nib.save(image, path)
    return path


def overwrite(path: Path, first: int = 0, **fields: list[float]) -> Path:
    """Return `path` of an uncompressed scan after writing header fields from place `first` on."""
    raw = bytearray(path.read_bytes())
    for name, values in fields.items():
        kind, offset = FIELDS_1[name]
        packed = np.array(values).astype(f"<{kind[-2:]}")
        start = offset + first * packed.itemsize
        raw[start : start + packed.nbytes] = packed.tobytes()
    path.write_bytes(raw)
    return path


def tilted() -> np.ndarray:
    """AXIAL with slices shifted against one another, as a gantry tilted by 20 degrees leaves it."""
    affine = AXIAL.copy()
    affine[1, 2] = -2 * np.tan(np.radians(20))
    return affine


def write_tilted(folder: Path) -> Path:
    return write_two_forms(folder / "tilted_t2.nii.gz", tilted())


def write_tilted_series(folder: Path) -> Path:
    return write_series(folder / "tilted_t2", phantom(), tilted())


def write_long_quaternion(folder: Path, excess: float, sform_code: int = 0) -> Path:
    """b2 + c2 + d2 is above 1 by `excess`, as rounding makes it; left and right as in AXIAL."""
    path = write_two_forms(folder / "quaternion_t2.nii")
    return overwrite(path, quatern=[0, 0, np.sqrt(1 + excess)], sform_code=[sform_code])


def write_unusable_sform(folder: Path, values: list[float]) -> Path:
    return overwrite(write_two_forms(folder / "sform_t2.nii"), srow=values)


def write_other_sizes(folder: Path, qform_code: int) -> Path:
    """pixdim, and with it the qform, says 3 x 3 x 5 mm."""
    path = write_two_forms(folder / "sizes_t2.nii")
    return overwrite(overwrite(path, 1, pixdim=[3, 3, 5]), qform_code=[qform_code])


def write_mirrored_sform(folder: Path) -> Path:
    return overwrite(write_two_forms(folder / "mirror_t2.nii"), srow=[2, 0, 0, -23])


def write_unit(folder: Path, code: int) -> Path:
    """Numbers in mm under the code of another unit."""
    return overwrite(write_two_forms(folder / "unit_t2.nii"), xyzt_units=[code])


def write_five_axes(folder: Path) -> Path:
    return write_two_forms(folder / "five_t2.nii.gz", data=phantom()[..., None, None])


def write_no_volumes(folder: Path) -> Path:
    path = write_two_forms(folder / "four_t2.nii", data=phantom()[..., None])
    return overwrite(path, 4, dim=[0])


def write_split_members(folder: Path) -> Path:
    """A gzip file whose first member ends within the header."""
    raw = write_two_forms(folder / "whole.nii").read_bytes()
    (folder / "whole.nii").unlink()
    path = folder / "members_t2.nii.gz"
    path.write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:340]))
    with path.open("ab") as file:
        file.write(gzip.compress(raw[340:]))
    return path


def write_rounded_series(folder: Path) -> Path:
    """Slices 0.94 mm apart whose positions have one decimal."""
    affine = AXIAL @ np.diag([1, 1, 0.47, 1])

    def change(dataset: pydicom.Dataset, _: int) -> None:
        position = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [f"{float(number):.1f}" for number in position]

    return edit_series(write_series(folder / "rounded_t2", phantom(), affine), change)


def write_spacing_text(folder: Path) -> Path:
    """Every other file writes its pixel size with more digits."""

    def change(dataset: pydicom.Dataset, number: int) -> None:
        if number % 2:
            dataset.PixelSpacing = ["2.0000001", "2.0000001"]

    return edit_series(write_series(folder / "spacing_t2", phantom(), AXIAL), change)


def edit_series(folder: Path, change: Callable[[pydicom.Dataset, int], None]) -> Path:
    """Return `folder` after changing its files; they are numbered by name."""
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        change(dataset, number)
        dataset.save_as(path)
    return folder


def write_thick(folder: Path, axis: int, thickness: float) -> Path:
    """A phantom of 2 mm whose voxels are `thickness` mm long along one of its own axes."""
    sizes = np.ones(4)
    sizes[axis] = thickness / 2
    return write_two_forms(folder / "thick_t2.nii.gz", AXIAL @ np.diag(sizes))
