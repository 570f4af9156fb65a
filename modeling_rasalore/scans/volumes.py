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
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from ..files import first_line
from .header_guard import UNITS, VOXEL_SIZES_MM, VolumeError, check_header
from .slice_frame import axis_codes, corners, has_three_axes, in_own_order, own_axes, slice_affine

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
        spacing: mm between slices, between rows, between columns.
        path: the file it was read from.
        replaced_voxels: how many NaN or infinite voxels were set to 0.
        affine: (4, 4) float64, voxel indices of the file -> its world coordinates.
        header: the file's own header, with what the header guard had to put right.
        warnings: what it put right, one sentence each.
        sequence: MRI sequence that it is known to be, such as "t2"; None where it is not told.
    """

    slices: np.ndarray
    spacing: tuple[float, float, float]
    path: Path
    replaced_voxels: int
    affine: np.ndarray
    header: nib.Nifti1Header
    warnings: tuple[str, ...] = ()
    sequence: str | None = None

    @property
    def axis_codes(self) -> str:
        """Three letters: the directions in which the file's own voxel axes run, such as "LPS"."""
        return axis_codes(self.affine)

    @property
    def slice_affine(self) -> np.ndarray:
        """(4, 4): slice, row and column, counted from 0, -> world coordinates in mm."""
        return _slice_affine(self.affine, self.header, self.slices.shape)


class ScanFile(NamedTuple):
    """A file whose header passed the guard; no voxel is read yet.

    Attributes:
        shape: voxels along each axis of the file, 3 or 4 numbers.
        stored: the voxels, an array or something that decodes when sliced.
    """

    header: nib.Nifti1Header
    affine: np.ndarray
    shape: tuple[int, ...]
    stored: Any
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ScanFacts:
    """What the header alone says about a scan.

    Attributes:
        shape: (S, H, W) in the slice frame.
        spacing: mm between slices, rows and columns.
        axis_codes: where the file's voxel axes run, such as "LPS".
        volumes: how many volumes the file holds, 1 for a 3-D file.
        dtype: name of the stored number type.
        warnings: what the header guard put right.
        corners: where the corner voxels lie, (8, 3) in mm, in slice-frame order.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axis_codes: str
    volumes: int
    dtype: str
    warnings: tuple[str, ...]
    corners: np.ndarray


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
    return _fill(path, scan, _pick_channel(path, scan.shape, channel))


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
    slices, rows, columns = (scan.shape[axis] for axis in own_axes(scan.affine))
    shape = (slices, rows, columns)
    return ScanFacts(
        shape=shape,
        spacing=_spacing(scan.affine, scan.header),
        axis_codes=axis_codes(scan.affine),
        volumes=scan.shape[3] if len(scan.shape) == 4 else 1,
        dtype=scan.stored.dtype.name,
        warnings=scan.warnings,
        corners=_corners(_slice_affine(scan.affine, scan.header, shape), shape),
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
    places = [_corners(volume.slice_affine, volume.slices.shape) for volume in (mask, like)]
    offset = float(np.abs(places[0] - places[1]).max())
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
    _check_affine(path, affine, header)
    slope, inter = (1.0, 0.0) if None in scaling else scaling
    layout = (checked.shape, checked.dtype, header.get_data_offset(), slope, inter)
    stored = ArrayProxy(path, layout, mmap=False, keep_file_open=True)  # read on, not anew
    return ScanFile(header, affine, checked.shape, stored, checked.warnings)


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
    axes = own_axes(scan.affine)
    slices = np.empty([scan.shape[axis] for axis in axes], np.float32)
    target = in_own_order(slices, scan.affine)  # a view: writing to it fills `slices`
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
    spacing = _spacing(scan.affine, scan.header)
    return Volume(slices, spacing, path, replaced, scan.affine, scan.header, scan.warnings)


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
    _check_affine(path, stored, header)
    return ScanFile(header, stored, tuple(voxels.shape), voxels, warnings)


def _check_affine(path: Path, affine: np.ndarray, header: nib.Nifti1Header) -> None:
    """Refuse an affine that loses an axis, or whose voxels no scanner makes."""
    if not has_three_axes(affine):
        raise VolumeError(
            f"{path}: the affine must map voxels to 3-D space, got {affine.tolist()}; save the "
            "scan with a valid sform or qform."
        )
    sizes, (low, high) = _spacing(affine, header), VOXEL_SIZES_MM
    if not low <= min(sizes) <= max(sizes) <= high:
        raise VolumeError(
            f"{path}: voxels must measure {low:g} to {high:g} mm, got {sizes} mm from the affine; "
            "write the true sizes and unit into the header."
        )


def _spacing(affine: np.ndarray, header: nib.Nifti1Header) -> tuple[float, float, float]:
    """Return mm per slice, row and column: the lengths of the affine's columns, as mm."""
    millimetres = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    between_slices, rows, columns = voxel_sizes(affine)[own_axes(affine)] * millimetres
    return float(between_slices), float(rows), float(columns)


def _slice_affine(
    affine: np.ndarray, header: nib.Nifti1Header, shape: tuple[int, ...]
) -> np.ndarray:
    scale = np.array([UNITS.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    return scale[:, None] * slice_affine(affine, shape)


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return where the corner voxels lie, (8, 3) in mm, in slice-frame order."""
    return corners(affine, np.zeros(3), np.array(shape) - 1)


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
