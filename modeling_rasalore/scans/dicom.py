"""Read one DICOM series, in a folder or a zip, as voxels with an affine.

No text of the files goes anywhere: a series gives only numbers, and the sequence that its name
tells.
"""

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..files import first_line
from ..formats.dicom_content import (
    HEADER_BYTES,
    decode_slices,
    frame_headers,
    read_header,
    with_preamble,
)
from ..formats.stored_voxels import FormatError
from .header_guard import VOXEL_BUDGET, VolumeError
from .series_files import (
    LARGEST_FILE,
    MOSAIC_TAG,
    PLACE_TAGS,
    LeftOut,
    Namer,
    SeriesError,
    SeriesFiles,
    choose_series,
    open_files,
    say_left_out,
    words_of,
)

GAP_TOLERANCE = 0.02  # of the distance between slices: positions are rounded in the files


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """What one file says about its slice.

    Attributes:
        name: of the file, in its folder or archive.
        position: (3,) centre of the first voxel, LPS mm.
        rows_and_columns: (2, 3) unit vectors along a row and along a column, LPS.
        spacing: mm between rows and between columns.
        thickness: mm; the distance between slices where there is but one.
        shape: rows, columns.
        scaling: slope, intercept.
        index: which slice of its file, counted from 0.
        inverted: whether low values stand for bright.
    """

    name: str
    position: np.ndarray
    rows_and_columns: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    shape: tuple[int, int]
    scaling: tuple[float, float]
    index: int = 0
    inverted: bool = False

    @property
    def normal(self) -> np.ndarray:
        """(3,): which way the slice faces, LPS."""
        return np.cross(*self.rows_and_columns)


@dataclass(frozen=True, eq=False)
class Series:
    """An open series that looks like an array (columns, rows, slices), decoded when sliced.

    Attributes:
        source: the folder or zip.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        sequence: what its description names, such as "t2"; None if nothing.
        warnings: one sentence each, for people.
        left_out: files of the source that are not used.
    """

    source: Path
    files: SeriesFiles
    slices: Sequence[DicomSlice]
    affine: np.ndarray
    sequence: str | None
    warnings: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """What voxels are decoded to."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.slices[0].shape
        return columns, rows, len(self.slices)

    @property
    def slice_files(self) -> tuple[tuple[str, int], ...]:
        """Name of the file and index in it, of each slice."""
        return tuple((part.name, part.index) for part in self.slices)

    @cached_property
    def _brightest(self) -> float:
        """What stands for black in an inverted series: its highest value."""
        with _one_sentence(self.source):
            return max(float(voxels.max()) for voxels in _decode(self.files, self.slices))

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        columns, rows, planes = index
        with _one_sentence(self.source):
            voxels = np.stack(list(_decode(self.files, self.slices[planes])), axis=-1)
        if self.slices[0].inverted:
            voxels = np.float32(self._brightest) - voxels
        return voxels[columns, rows]


@contextmanager
def open_series(
    source: Path, modality: str | None, name_sequence: Namer, chosen: str | None = None
) -> Iterator[Series]:
    """Give the one series of a folder or zip; headers are read, only copies are decoded.

    Args:
        source: a folder, or a zip, with the files of one series at any depth of the zip; or a file
            that holds all slices.
        modality: chooses among several series by what their descriptions name.
        name_sequence: finds the sequence in a description.
        chosen: number of the series, or text of its description.

    Raises:
        VolumeError: pydicom is missing, an archive that is unsafe or damaged, no series or several,
            slices that are missing, or do not lie behind one another.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise VolumeError(
            f"{source}: DICOM needs the extra [dicom]; run pip install 'rasalore[dicom]'."
        )
    with ExitStack() as stack:
        with _one_sentence(source):
            files = stack.enter_context(open_files(source))
            headers, left_out = choose_series(source, files, modality, name_sequence, chosen)
            slices, copies = _drop_copies(
                files,
                [
                    part
                    for name in _originals_first(headers)
                    for part in _parts(name, headers[name])
                ],
            )
            reason = "a copy of slices that were read"
            left_out += [LeftOut(source / name, reason) for name in copies]
            if len(slices) == 1 and list(headers) == [source.name]:
                raise SeriesError("this is one slice of a series; give the folder with all of them")
            slices = _in_order(slices)
            step = _step(slices)
            header = next(iter(headers.values()))
            told = _warnings(slices, step, str(header.get("Modality", "MR")))
            series = Series(
                source=source,
                files=files,
                slices=slices,
                affine=_affine(slices[0], step),
                sequence=name_sequence(words_of(header)),
                warnings=(*told, *say_left_out(left_out)),
                left_out=tuple(left_out),
            )
        yield series


def _warnings(slices: Sequence[DicomSlice], step: np.ndarray, kind: str) -> tuple[str, ...]:
    """Return what people should know of a series whose slices lie `step` mm apart."""
    sentences = []
    length = float(np.linalg.norm(step))
    if len(slices) > 1 and abs(float(step @ slices[0].normal)) < 0.999 * length:
        sentences.append("the slices are shifted against one another (tilted gantry).")
    if slices[0].inverted:
        sentences.append("the series is stored with low values for bright; it was inverted.")
    if kind != "MR":
        sentences.append(f"the series is {kind}, not MR; models are trained on MRI.")
    return tuple(sentences)


@contextmanager
def _one_sentence(source: Path) -> Iterator[None]:
    """Turn whatever pydicom or zipfile raise about a damaged file into one VolumeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that are checked here anyway
            yield
    except VolumeError:
        raise
    except FormatError as error:
        sentence = " ".join(str(error).splitlines())  # a name in an archive may hold any character
        raise VolumeError(f"{source}: {sentence}.") from error
    except Exception as error:  # a DICOM parser meets anything in a damaged file
        reason = first_line(error).rstrip(".")
        raise VolumeError(
            f"{source}: cannot be read as DICOM: {reason}; copy or export it again."
        ) from error


def _parts(name: str, header: Any) -> list[DicomSlice]:
    """Return all slices of a file."""
    manufacturer = str(header.get("Manufacturer", "")).upper()
    is_mosaic = MOSAIC_TAG in header and manufacturer.startswith("SIEMENS")
    if is_mosaic or "MOSAIC" in (header.get("ImageType") or ()):
        raise SeriesError(
            f"{name} is a mosaic, many slices as tiles of one picture; convert it with dcm2niix"
        )
    frames = [_describe(name, frame) for frame in frame_headers(header)]
    return [replace(part, index=index) for index, part in enumerate(frames)]


def _describe(name: str, header: Any) -> DicomSlice:
    """Return what is needed of a slice's header, checked."""
    colours = int(header.get("SamplesPerPixel", 1)), header.get("PhotometricInterpretation")
    if colours not in ((1, "MONOCHROME1"), (1, "MONOCHROME2")):
        raise SeriesError(f"expected one grey value per voxel, got {colours[1]!r}")
    missing = [tag for tag in PLACE_TAGS if header.get(tag) is None]
    if missing:
        raise SeriesError(f"a slice lacks {missing[0]}, so its place in space is unknown")
    vectors = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    spacing = tuple(float(size) for size in header.PixelSpacing)
    distance = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    described = DicomSlice(
        name=name,
        position=np.array(header.ImagePositionPatient, float),
        rows_and_columns=vectors,
        spacing=(spacing[0], spacing[1]),
        thickness=abs(float(distance)),
        shape=(int(header.Rows), int(header.Columns)),
        scaling=(1.0 if slope is None else float(slope), float(intercept or 0)),
        inverted=colours[1] == "MONOCHROME1",
    )
    numbers = [*described.position, *vectors.ravel(), *spacing, described.thickness]
    numbers += described.scaling
    if not np.isfinite(numbers).all() or min(*spacing, *described.shape) <= 0:
        raise SeriesError("a slice's position, spacing or scaling is not a usable number")
    return described


def _originals_first(names: Iterable[str]) -> list[str]:
    """Return names of files with those first that no program added "(1)" or "copy" to."""
    return sorted(names, key=lambda name: (len(name), name))


def _drop_copies(
    files: SeriesFiles, slices: Sequence[DicomSlice]
) -> tuple[list[DicomSlice], list[str]]:
    """Return slices without those that have place and voxels of an earlier one; names of these."""
    places: dict[tuple[Any, ...], DicomSlice] = {}
    for part in slices:
        place = (*part.position.round(3), *part.rows_and_columns.ravel().round(3), part.shape)
        first = places.setdefault(place, part)
        if first is part:
            continue
        voxels, other = _decode(files, [first, part])
        if not np.array_equal(voxels, other):
            return list(slices), []  # several volumes, which `_step` refuses
    remaining = list(places.values())
    names = {part.name for part in remaining}
    return remaining, sorted({part.name for part in slices} - names)


def _in_order(slices: Sequence[DicomSlice]) -> list[DicomSlice]:
    """Return slices of one grid, sorted along their normal."""
    first = slices[0]
    if any(s.inverted != first.inverted for s in slices):
        raise SeriesError("some slices store low values for bright, others high; export them again")
    if any(s.shape != first.shape or s.spacing != first.spacing for s in slices) or any(
        np.abs(s.rows_and_columns - first.rows_and_columns).max() > 1e-3 for s in slices
    ):
        raise SeriesError("the slices differ in size, spacing or direction; give one series")
    size = first.shape[0] * first.shape[1] * len(slices) * 4
    if size > VOXEL_BUDGET:
        raise SeriesError(f"a volume may take {VOXEL_BUDGET / 2**30:g} GiB; got {size / 2**30:g}")
    return sorted(slices, key=lambda part: float(part.position @ first.normal))


def _step(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return the vector from slice to slice, (3,) mm; a tilted gantry makes it leave the normal."""
    normal = slices[0].normal
    if len(slices) == 1:
        return normal * slices[0].thickness
    positions = np.array([part.position for part in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    expected = positions[0] + np.arange(len(slices))[:, None] * step
    length = float(np.linalg.norm(step))
    gaps = np.diff(positions @ normal)
    if length == 0 or gaps.min() < length * GAP_TOLERANCE:
        raise SeriesError("several slices lie at one place; give one volume, not a time series")
    if np.abs(positions - expected).max() > max(length * GAP_TOLERANCE, 0.01):
        raise SeriesError(
            f"slices are missing or unevenly spaced: {gaps.min():.3g} to {gaps.max():.3g} mm from "
            "one to the next; export the series again"
        )
    return step


def _affine(first: DicomSlice, step: np.ndarray) -> np.ndarray:
    """Return the affine of (column, row, slice) to RAS+ mm."""
    row, column = first.rows_and_columns
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([row * first.spacing[1], column * first.spacing[0], step])
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS -> RAS


def _decode(files: SeriesFiles, slices: Sequence[DicomSlice]) -> Iterator[np.ndarray]:
    """Yield the voxels of each slice, (columns, rows) float32."""
    for name, group in groupby(slices, lambda part: part.name):
        parts = list(group)
        content = with_preamble(files.read(name, LARGEST_FILE)) or b""
        for part, pixels in zip(
            parts, decode_slices(content, [p.index for p in parts]), strict=True
        ):
            if pixels.shape != part.shape:
                raise FormatError(f"a slice of shape {pixels.shape} was announced as {part.shape}")
            slope, intercept = part.scaling
            yield (pixels.T * np.float64(slope) + intercept).astype(np.float32)


def read_sources(source: Path, names: Sequence[str]) -> list[Any]:
    """Return the whole headers of files of a folder or zip, for what refers to them.

    Raises:
        VolumeError: one is no longer there, or is damaged.
    """
    with _one_sentence(source), open_files(source) as files:
        starts = (with_preamble(files.read(name, HEADER_BYTES)) for name in names)
        return [read_header(start or b"") for start in starts]
