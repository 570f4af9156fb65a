"""Scans in the slice frame, from NIfTI or from voxels with an affine.

Whatever voxel order a file uses, reading brings it into the slice frame (see `slice_frame`). A
volume is held once: reading fills it piece by piece.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from ..files import first_line
from .header_guard import UNITS, VOXEL_SIZES_MM, VolumeError, check_header
from .slice_frame import Geometry, has_three_axes

PIECE_VOXELS = 2**22  # decoded at once


READ_ERRORS = (
    HeaderDataError,
    OSError,  # also a body shorter than the header says, and a damaged gzip header
    EOFError,  # gzip stream cut off
    zlib.error,
    ValueError,
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan in the slice frame, with what is needed to write results beside it.

    Attributes:
        slices: (S, H, W) float32, finite.
        geometry: where its voxels lie.
        path: the file it was read from.
        replaced_voxels: how many NaN or infinite voxels were set to 0.
        header: the file's own header, with what the header guard had to put right.
        warnings: what it put right, one sentence each.
        sequence: MRI sequence that it is known to be, such as "t2"; None where it is not told.
    """

    slices: np.ndarray
    geometry: Geometry
    path: Path
    replaced_voxels: int
    header: nib.Nifti1Header
    warnings: tuple[str, ...] = ()
    sequence: str | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between slices, between rows and between columns."""
        return self.geometry.spacing

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel indices of the file -> its world coordinates."""
        return self.geometry.affine


class ScanFile(NamedTuple):
    """A file whose header passed the guard; no voxel is read yet.

    Attributes:
        stored: the voxels in the file's own order, an array or something that decodes when sliced;
            its shape has 3 or 4 numbers.
    """

    header: nib.Nifti1Header
    geometry: Geometry
    stored: Any
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ScanFacts:
    """What the header alone says about a scan.

    Attributes:
        geometry: where its voxels lie.
        volumes: how many volumes the file holds, 1 for a 3-D file.
        dtype: name of the stored number type.
        warnings: what the header guard put right.
    """

    geometry: Geometry
    volumes: int
    dtype: str
    warnings: tuple[str, ...]


def read_volume(path: str | Path, channel: int | None = None) -> Volume:
    """Return the scan at `path` in the slice frame.

    Args:
        path: a .nii or .nii.gz file, any voxel order.
        channel: which volume of a 4-D file to read, counted from 0; None for a 3-D file.

    Raises:
        VolumeError: no such file, not NIfTI, a header that the guard refuses, damaged, or a 4-D
            file without `channel`.
    """
    path = Path(path)
    scan = _open(path)
    return _fill(path, scan, _pick_channel(path, scan.stored.shape, channel))


def volume_from_voxels(
    voxels: Any, affine: np.ndarray, path: Path, warnings: Sequence[str] = ()
) -> Volume:
    """Return a scan that did not come as NIfTI; what is written for it lies on the same grid.

    Args:
        voxels: (I, J, K), anything with a shape, a dtype and slicing.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        path: what it was read from.
        warnings: one sentence each, for people.

    Raises:
        VolumeError: an affine that loses an axis, or voxels that no scanner makes.
    """
    return _fill(path, _scan_file(path, voxels, affine, tuple(warnings)), None)


def read_facts(path: str | Path) -> ScanFacts:
    """Return what the header of the scan at `path` says; no voxel is read.

    Raises:
        VolumeError: the header guard refuses the file.
    """
    return _facts(_open(Path(path)))


def facts_from_voxels(
    voxels: Any, affine: np.ndarray, path: Path, warnings: Sequence[str] = ()
) -> ScanFacts:
    """As `read_facts`, of what `volume_from_voxels` would make a volume of."""
    return _facts(_scan_file(path, voxels, affine, tuple(warnings)))


def _facts(scan: ScanFile) -> ScanFacts:
    shape = scan.stored.shape
    return ScanFacts(
        geometry=scan.geometry,
        volumes=shape[3] if len(shape) == 4 else 1,
        dtype=scan.stored.dtype.name,
        warnings=scan.warnings,
    )


def read_mask(path: str | Path, like: Volume) -> np.ndarray:
    """Return the label map at `path` as (S, H, W) uint8 in the slice frame of the scan `like`.

    Raises:
        VolumeError: unreadable, a shape or a place in space other than the scan's, or values that
            are not whole numbers from 0 to 255.
    """
    mask = read_volume(path)
    if mask.slices.shape != like.slices.shape:
        raise VolumeError(
            f"{path}: a mask needs the shape of its scan, {like.slices.shape} (slices, rows, "
            f"columns), got {mask.slices.shape}; resample it onto {like.path.name}."
        )
    offset = mask.geometry.offset_from(like.geometry)
    if offset > min(like.spacing):
        raise VolumeError(
            f"{path}: a mask needs the place in space of its scan, but its corners lie up to "
            f"{offset:.1f} away from those of {like.path.name}; copy the scan's affine to it."
        )
    with np.errstate(invalid="ignore"):  # what does not fit 0..255 differs below
        labels = mask.slices.astype(np.uint8)
        if np.array_equal(labels, mask.slices):
            return labels
        labels = np.rint(mask.slices).astype(np.uint8)
    if np.abs(labels - mask.slices).max() > 1e-3:
        raise VolumeError(
            f"{path}: a mask needs whole numbers from 0 to 255, got values from "
            f"{mask.slices.min():g} to {mask.slices.max():g}; threshold it or round it first."
        )
    return labels


def _open(path: Path) -> ScanFile:
    """Return the file behind the header guard: every file comes in here.

    Header extensions are never parsed: they may be huge, and they may name a person.
    """
    checked = check_header(path)
    kind = nib.Nifti1Header if checked.version == 1 else nib.Nifti2Header
    header = kind(checked.content, checked.byte_order, check=False)
    with _one_sentence(path):
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        scaling = header.get_slope_inter()
    geometry = _geometry(path, affine, header, checked.shape)
    slope, inter = (1.0, 0.0) if None in scaling else scaling
    layout = (checked.shape, checked.dtype, header.get_data_offset(), slope, inter)
    stored = ArrayProxy(path, layout, mmap=False, keep_file_open=True)  # read on, not anew
    return ScanFile(header, geometry, stored, checked.warnings)


def _pick_channel(path: Path, shape: tuple[int, ...], channel: int | None) -> int | None:
    if len(shape) == 3:
        if channel is not None:
            raise VolumeError(f"{path}: channel={channel} was asked for, but the scan is 3-D.")
        return None
    count = shape[3]
    if channel is None and count == 1:
        return 0
    if channel is None or not 0 <= channel < count:
        raise VolumeError(
            f"{path}: a 4-D scan with {count} channels needs channel=0 to channel={count - 1} "
            f"(--volume on the command line), got channel={channel}."
        )
    return channel


def _fill(path: Path, scan: ScanFile, channel: int | None) -> Volume:
    """Return the volume, decoded piece by piece straight into the slice frame."""
    slices = np.empty(scan.geometry.shape, np.float32)
    target = scan.geometry.in_own_order(slices)  # a view: writing to it fills `slices`
    planes = max(PIECE_VOXELS // (target.shape[0] * target.shape[1]), 1)
    replaced = 0
    for start in range(0, target.shape[2], planes):
        index: tuple[Any, ...] = (slice(None), slice(None), slice(start, start + planes))
        with _one_sentence(path), np.errstate(over="ignore", invalid="ignore"):
            stored = scan.stored[index if channel is None else (*index, channel)]
            piece = np.array(stored, dtype=np.float32).reshape(target[index].shape)
        wrong = ~np.isfinite(piece)
        piece[wrong] = 0
        replaced += int(np.count_nonzero(wrong))
        target[index] = piece
    return Volume(slices, scan.geometry, path, replaced, scan.header, scan.warnings)


def _scan_file(path: Path, voxels: Any, affine: np.ndarray, warnings: tuple[str, ...]) -> ScanFile:
    """Return voxels with an affine as if they had come as NIfTI, with sform and qform."""
    if not has_three_axes(affine):
        raise VolumeError(f"{path}: the affine must map voxels to 3-D space, got {affine}.")
    header = nib.Nifti1Header()
    with _one_sentence(path):
        header.set_data_shape(voxels.shape)
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1)
        header.set_xyzt_units("mm")
        stored = np.asarray(header.get_best_affine(), dtype=np.float64)
    return ScanFile(header, _geometry(path, stored, header, voxels.shape), voxels, warnings)


def _geometry(
    path: Path, affine: np.ndarray, header: nib.Nifti1Header, shape: tuple[int, ...]
) -> Geometry:
    """Return where voxels of `shape` lie; refuse a lost axis, and voxels that no scanner makes."""
    if not has_three_axes(affine):
        raise VolumeError(
            f"{path}: the affine must map voxels to 3-D space, got {affine.tolist()}; save the "
            "scan with a valid sform or qform."
        )
    unit = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    geometry = Geometry.of_voxels(affine, unit, shape)
    sizes, (low, high) = geometry.spacing, VOXEL_SIZES_MM
    if not low <= min(sizes) <= max(sizes) <= high:
        raise VolumeError(
            f"{path}: voxels must measure {low:g} to {high:g} mm, got {sizes} mm from the affine; "
            "write the true sizes and unit into the header."
        )
    return geometry


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever the reader raises into one VolumeError that names the file."""
    try:
        yield
    except VolumeError:
        raise
    except READ_ERRORS as error:
        reason = first_line(error).rstrip(".")
        raise VolumeError(f"{path}: cannot be read as NIfTI: {reason}.") from error
