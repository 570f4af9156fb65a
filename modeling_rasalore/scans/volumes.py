"""Read scans into the slice frame, from files or from voxels with an affine.

Whatever voxel order a file uses, reading brings it into the slice frame (see `slice_frame`). A
volume is held once: reading fills it piece by piece.
"""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from ..files import LeftOut, first_line
from ..formats.endings import open_voxels, other_ending
from ..formats.stored_voxels import FormatError
from .header_guard import VolumeError, open_checked
from .slice_frame import Geometry, check_geometry, choose_form, compare_forms, has_three_axes

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
        sequence_source: what tells the sequence, such as "its name says t2"; "" where nothing does.
        brain_source: what told the brain from the rest of a head; "" where nothing had to.
        slice_files: name of the DICOM file, and index in it, of each slice of the third axis.
        left_out: files of the folder or zip that are not used.
    """

    slices: np.ndarray
    geometry: Geometry
    path: Path
    replaced_voxels: int
    header: nib.Nifti1Header
    warnings: tuple[str, ...] = ()
    sequence: str | None = None
    sequence_source: str = ""
    brain_source: str = ""
    slice_files: tuple[tuple[str, int], ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between slices, between rows and between columns."""
        return self.geometry.spacing

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) float64, voxel indices of the file -> its world coordinates."""
        return self.geometry.affine


class Unfit(str):
    """A warning that the result of a scan is not to be relied on."""

    __slots__ = ()


@dataclass(frozen=True)
class ScanFacts:
    """What the header alone says about a scan.

    Attributes:
        geometry: where its voxels lie.
        channels: how many volumes the file holds, 1 for a 3-D file.
        dtype: name of the stored number type.
        warnings: what the header guard put right.
    """

    geometry: Geometry
    channels: int
    dtype: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ScanFile:
    """An open scan whose header passed the guard; voxels are decoded when `read`.

    Attributes:
        path: the file, folder or archive.
        header: its own header, or one that was made for it.
        geometry: where its voxels lie.
        stored: the voxels in the file's own order, an array or something that decodes when sliced;
            its shape has 3 or 4 numbers.
        warnings: what was put right, one sentence each.
        sequence: MRI sequence that it is known to be; None where it is not told.
        sequence_source: what tells it, for people.
        slice_files, left_out: as of `Volume`.
        series_uid: identifier of its DICOM series.
    """

    path: Path
    header: nib.Nifti1Header
    geometry: Geometry
    stored: Any
    warnings: tuple[str, ...]
    sequence: str | None = None
    sequence_source: str = ""
    slice_files: tuple[tuple[str, int], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    series_uid: str = ""

    @property
    def facts(self) -> ScanFacts:
        """What the header says."""
        shape = self.stored.shape
        channels = shape[3] if len(shape) == 4 else 1
        return ScanFacts(self.geometry, channels, self.stored.dtype.name, self.warnings)

    def channel_problem(self, channel: int | None) -> str | None:
        """Return why the file cannot give this channel, in one sentence; None where it can."""
        if len(self.stored.shape) == 3:
            if channel is None:
                return None
            return f"{self.path}: channel={channel} was asked for, but the scan is 3-D."
        count = self.facts.channels
        if 0 <= (channel or 0) < count and (channel is not None or count == 1):
            return None
        return (
            f"{self.path}: of a 4-D scan with {count} volumes one must be chosen, --volume 0 to "
            f"{count - 1} (channel=... in Python; --modality for the scans of MSD Task01), got "
            f"{'none' if channel is None else channel}."
        )

    def read(self, channel: int | None = None) -> Volume:
        """Return the volume, decoded piece by piece straight into the slice frame.

        Args:
            channel: which volume of a 4-D file, counted from 0; None for a 3-D file.

        Raises:
            VolumeError: no such channel, or damaged voxels.
        """
        if problem := self.channel_problem(channel):
            raise VolumeError(problem)
        slices = np.empty(self.geometry.shape, np.float32)
        target = self.geometry.in_own_order(slices)  # a view: writing to it fills `slices`
        planes = max(PIECE_VOXELS // (target.shape[0] * target.shape[1]), 1)
        replaced = 0
        for start in range(0, target.shape[2], planes):
            piece = self._decode(slice(start, start + planes), channel or 0)
            wrong = ~np.isfinite(piece)
            piece[wrong] = 0
            replaced += int(np.count_nonzero(wrong))
            target[:, :, start : start + planes] = piece
        return Volume(
            slices,
            self.geometry,
            self.path,
            replaced,
            self.header,
            self.warnings,
            self.sequence,
            self.sequence_source,
            slice_files=self.slice_files,
            left_out=self.left_out,
        )

    def _decode(self, planes: slice, channel: int) -> np.ndarray:
        """Return some planes of one channel, (I, J, planes) float32, infinite where too large."""
        index: tuple[Any, ...] = (slice(None), slice(None), planes, channel)
        with _one_sentence(self.path), np.errstate(over="ignore", invalid="ignore"):
            return np.array(self.stored[index[: len(self.stored.shape)]], dtype=np.float32)


@contextmanager
def open_file(path: str | Path) -> Iterator[ScanFile]:
    """Give a scan in one file, NIfTI or another format that `formats.endings` lists, opened once.

    Raises:
        VolumeError: as `open_nifti`, or whatever is wrong with a file of another format.
    """
    path = Path(path)
    if not other_ending(path):
        with open_nifti(path) as scan:
            yield scan
        return
    try:
        voxels = open_voxels(path)
    except FormatError as error:
        raise VolumeError(f"{path}: {error}.") from error
    yield scan_from_voxels(voxels, voxels.affine, path, voxels.warnings)


@contextmanager
def open_nifti(path: str | Path) -> Iterator[ScanFile]:
    """Give a .nii or .nii.gz file behind the header guard, opened once: every one comes in here.

    Header extensions are never parsed: they may be huge, and they may name a person.

    Raises:
        VolumeError: the header guard refuses the file.
    """
    path = Path(path)
    with open_checked(path) as (file, checked):
        kind = nib.Nifti1Header if checked.version == 1 else nib.Nifti2Header
        header = kind(checked.content, checked.byte_order, check=False)
        try:
            affine, told = choose_form(header)
        except ValueError as error:
            raise VolumeError(f"{path}: {error}.") from error
        with _one_sentence(path):
            scaling = header.get_slope_inter()
        geometry, more = check_geometry(path, affine, header, checked.shape)
        if disagreement := compare_forms(header, geometry):
            told.append(disagreement)
        slope, inter = (1.0, 0.0) if None in scaling else scaling
        layout = (checked.shape, checked.dtype, header.get_data_offset(), slope, inter)
        content = gzip.GzipFile(fileobj=file) if checked.compressed else file
        stored = ArrayProxy(content, layout, mmap=False)
        yield ScanFile(path, header, geometry, stored, (*checked.warnings, *told, *more))


def scan_from_voxels(
    voxels: Any, affine: np.ndarray, path: Path, warnings: Sequence[str] = ()
) -> ScanFile:
    """Return a scan that did not come as NIfTI, as if it had, with sform and qform.

    Args:
        voxels: (I, J, K), anything with a shape, a dtype and slicing.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        path: what it comes from.
        warnings: one sentence each, for people.

    Raises:
        VolumeError: an affine that loses an axis, or voxels that no scanner makes.
    """
    if not has_three_axes(affine):
        raise VolumeError(f"{path}: the affine must map voxels to 3-D space, got {affine}.")
    header = nib.Nifti1Header()
    with _one_sentence(path):
        header.set_data_shape(voxels.shape)
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1)
        header.set_xyzt_units("mm")
        stored = np.asarray(header.get_best_affine(), dtype=np.float64)
    geometry, more = check_geometry(path, stored, header, voxels.shape)
    return ScanFile(path, header, geometry, voxels, (*warnings, *more))


def read_volume(path: str | Path, channel: int | None = None) -> Volume:
    """Return the scan at `path` in the slice frame.

    Args:
        path: a file as for `open_file`, any voxel order.
        channel: which volume of a 4-D file to read, counted from 0; None for a 3-D file.

    Raises:
        VolumeError: no such file, a format that is not read, a header that the guard refuses,
            damaged, or a 4-D file without `channel`.
    """
    with open_file(path) as scan:
        return scan.read(channel)


def read_facts(path: str | Path) -> ScanFacts:
    """Return what the header of the file at `path` says; no voxel is read.

    Raises:
        VolumeError: as `open_file`.
    """
    with open_file(path) as scan:
        return scan.facts


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
            f"{offset:.1f} mm away from those of {like.path.name}; copy the scan's affine to it."
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


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever the reader raises into one VolumeError that names the file."""
    try:
        yield
    except VolumeError:
        raise
    except READ_ERRORS as error:
        reason = first_line(error).rstrip(".")
        raise VolumeError(f"{path}: cannot be read as NIfTI: {reason}; copy it again.") from error
