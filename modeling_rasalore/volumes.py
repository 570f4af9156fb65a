"""NIfTI scans in and out of the slice frame; no other file imports nibabel or permutes axes.

Slice frame: an array (S, H, W) of axial slices. Slices run inferior -> superior, rows anterior ->
posterior, columns patient right -> left (the radiological view). Whatever voxel order a file uses,
reading brings it here and writing puts it back on the file's own grid.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike

from .files import replace_file
from .header_guard import UNITS, VOXEL_SIZES_MM, VolumeError, check_header

READ_ERRORS = (
    HeaderDataError,
    OSError,  # also a body shorter than the header says, and a damaged gzip header
    EOFError,  # gzip stream cut off
    zlib.error,
    ValueError,
    OverflowError,
    MemoryError,
)

# All that an output takes over from the scan's header: where the voxels lie, in which unit. Copied
# field by field, so the affine is never recomputed, and no free-text field can carry a name out.
GEOMETRY_FIELDS = (
    "pixdim",
    "dim_info",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
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
    """

    slices: np.ndarray
    spacing: tuple[float, float, float]
    path: Path
    replaced_voxels: int
    affine: np.ndarray
    header: nib.Nifti1Header
    warnings: tuple[str, ...] = ()

    @property
    def axis_codes(self) -> str:
        """Three letters: the directions in which the file's own voxel axes run, such as "LPS"."""
        return _axis_codes(self.affine)


class ScanFile(NamedTuple):
    """A file whose header passed the guard; no voxel is read yet.

    Attributes:
        shape: voxels along each axis of the file, 3 or 4 numbers.
        stored: the voxels, decoded when indexed.
    """

    header: nib.Nifti1Header
    affine: np.ndarray
    shape: tuple[int, ...]
    stored: ArrayProxy
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
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axis_codes: str
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
    data = _read_voxels(path, scan.stored, _pick_channel(path, scan.shape, channel))
    replaced_voxels = data.size - int(np.count_nonzero(np.isfinite(data)))
    if replaced_voxels:
        data = np.nan_to_num(data, nan=0, posinf=0, neginf=0)
    return Volume(
        slices=_to_slice_frame(data, scan.affine),
        spacing=_spacing(scan.affine, scan.header),
        path=path,
        replaced_voxels=replaced_voxels,
        affine=scan.affine,
        header=scan.header,
        warnings=scan.warnings,
    )


def read_facts(path: str | Path) -> ScanFacts:
    """Return what the header of the scan at `path` says; no voxel is read.

    Raises:
        VolumeError: the header guard refuses the file.
    """
    scan = _open(Path(path))
    columns, rows, slices = (scan.shape[axis] for axis in _file_axes(scan.affine))
    return ScanFacts(
        shape=(slices, rows, columns),
        spacing=_spacing(scan.affine, scan.header),
        axis_codes=_axis_codes(scan.affine),
        volumes=scan.shape[3] if len(scan.shape) == 4 else 1,
        dtype=scan.stored.dtype.name,
        warnings=scan.warnings,
    )


def count_slices(path: str | Path) -> int:
    """Return S, how many axial slices the scan at `path` has, from its header alone.

    Raises:
        VolumeError: the header guard refuses the file.
    """
    return read_facts(path).shape[0]


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
    offset = float(np.abs(_corners(mask) - _corners(like)).max())
    if offset > min(voxel_sizes(like.affine)):
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


def zero_background(slices: np.ndarray, brain: np.ndarray | None = None) -> np.ndarray:
    """Return slices (S, H, W) float32 whose background is 0 and whose brain starts at 0.

    With `brain` (S, H, W) bool, the least value inside it becomes 0 and all outside is 0. Without,
    only slices with values below 0 change: the corner voxel's value is the background then, and
    all else is brain. So z-scored scans and scans with interpolation overshoot are usable.
    """
    if brain is None:
        if slices.min() >= 0:
            return slices
        brain = slices != slices[0, 0, 0]
    if not brain.any():
        return np.zeros_like(slices)
    return np.where(brain, slices - slices[brain].min(), np.float32(0))


def write_volume(path: str | Path, slices: np.ndarray, like: Volume, dtype: DTypeLike) -> Path:
    """Return `path` after writing `slices` on the voxel grid of the scan `like`.

    Shape, affine, qform, sform, their codes and units are the scan's, bit for bit; text fields
    (descrip, aux_file, intent_name, ...) and header extensions are left out.

    Args:
        path: where to write, .nii or .nii.gz; replaced only once the new file is complete.
        slices: (S, H, W) array in the slice frame, shaped like `like.slices`.
        like: the scan that the array belongs to.
        dtype: voxel type of the file; an integer type must hold every value exactly.
    """
    if slices.shape != like.slices.shape:
        raise ValueError(
            f"slices must have the shape of the scan, {like.slices.shape}, got {slices.shape}."
        )
    with np.errstate(invalid="ignore"):  # a NaN that does not fit is reported below
        voxels = slices.astype(dtype)
    if np.issubdtype(voxels.dtype, np.integer) and not np.array_equal(voxels, slices):
        raise ValueError(
            f"slices from {slices.min():g} to {slices.max():g} do not fit {voxels.dtype} exactly; "
            "round them first or write a float type."
        )
    kind = nib.Nifti2Image if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(_from_slice_frame(voxels, like.affine), affine=None)  # None: no form is set
    for field in GEOMETRY_FIELDS:
        image.header[field] = like.header[field]
    return _write(Path(path), image)


def write_nifti(path: str | Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """Return `path` after writing `data` (I, J, K), in voxel order, as NIfTI in mm.

    Args:
        path: where to write, .nii or .nii.gz; replaced only once the new file is complete.
        data: array of a type NIfTI can hold (not bool, not int64), kept as it is.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
    """
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    return _write(Path(path), image)


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
    stored = ArrayProxy(path, layout, mmap=False)
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


def _read_voxels(path: Path, stored: ArrayProxy, channel: int | None) -> np.ndarray:
    """Return float32 voxels (I, J, K) in the file's own order, decoded once."""
    with _one_sentence(path), np.errstate(over="ignore", invalid="ignore"):
        voxels = stored if channel is None else stored[..., channel]
        return np.asarray(voxels, dtype=np.float32)


def _check_affine(path: Path, affine: np.ndarray, header: nib.Nifti1Header) -> None:
    """Refuse an affine that loses an axis, or whose voxels no scanner makes."""
    with np.errstate(all="ignore"):
        usable = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
        usable = usable and np.isfinite(orientations.io_orientation(affine)).all()
    if not usable:
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


# The one place where axes change. nibabel describes "file voxel order -> LPS" as a permutation with
# flips; LPS arrays are (column, row, slice), so reversing their axes gives (slice, row, column).


def _to_lps(affine: np.ndarray) -> np.ndarray:
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("LPS")
    )


def _file_axes(affine: np.ndarray) -> np.ndarray:
    """Return which axis of the file runs along columns, rows and slices, in this order."""
    return np.argsort(_to_lps(affine)[:, 0])


def _axis_codes(affine: np.ndarray) -> str:
    return "".join(orientations.aff2axcodes(affine))


def _to_slice_frame(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    lps = orientations.apply_orientation(voxels, _to_lps(affine))  # (W, H, S)
    return np.ascontiguousarray(lps.transpose(2, 1, 0))  # (S, H, W)


def _from_slice_frame(slices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    from_lps = orientations.ornt_transform(
        orientations.axcodes2ornt("LPS"), orientations.io_orientation(affine)
    )
    return orientations.apply_orientation(slices.transpose(2, 1, 0), from_lps)


def _spacing(affine: np.ndarray, header: nib.Nifti1Header) -> tuple[float, float, float]:
    """Return mm per slice, row and column: the lengths of the affine's columns, as mm."""
    millimetres = UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    sizes = voxel_sizes(affine)[_file_axes(affine)] * millimetres
    return float(sizes[2]), float(sizes[1]), float(sizes[0])


def _corners(volume: Volume) -> np.ndarray:
    """Return the world coordinates (8, 3) of the corner voxels, in slice-frame order."""
    depth, height, width = volume.slices.shape
    lps_to_file = orientations.inv_ornt_aff(
        _to_lps(volume.affine), volume.header.get_data_shape()[:3]
    )
    indices = list(product((0, width - 1), (0, height - 1), (0, depth - 1)))
    return apply_affine(volume.affine @ lps_to_file, indices)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever the reader raises into one VolumeError that names the file."""
    try:
        yield
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise VolumeError(f"{path}: cannot be read as NIfTI: {reason}.") from error


def _write(path: Path, image: nib.Nifti1Image) -> Path:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"a NIfTI file is written to a name ending in .nii or .nii.gz, got {path}."
        )
    return replace_file(path, image.to_filename)  # gzip level 1, without a time stamp
