"""Read one DICOM series, in a folder or a zip, as voxels with an affine.

Only this file imports pydicom. No text of the files goes anywhere: a series gives only numbers, and
the sequence that its name tells.
"""

import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from ..files import first_line
from .header_guard import VOXEL_BUDGET, VolumeError
from .naming import Times
from .series_files import SeriesError, SeriesFiles, open_files

GAP_TOLERANCE = 0.02  # of the distance between slices
LARGEST_ROUNDING = 0.2  # of that distance; a missing slice moves another by more
SPACING_TOLERANCE = 3e-3  # relative; 0.94 for 0.9375 is one pixel size
UNIT_TOLERANCE = 0.02  # of the length of a direction, which text with two decimals keeps
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
PLACE_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
HEADER_TAGS = [
    *("SeriesInstanceUID", "SeriesDescription", "ProtocolName", "Modality", *PLACE_TAGS),
    *("SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "SamplesPerPixel"),
    *("NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("SequenceName", "EchoTime", "RepetitionTime", "InversionTime", "ContrastBolusAgent"),
]

Namer = Callable[[str], str | None]  # words -> the sequence they name, such as "t2"


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
        last_digit: mm of the last decimal in which the position is written.
    """

    name: str
    position: np.ndarray
    rows_and_columns: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    shape: tuple[int, int]
    scaling: tuple[float, float]
    last_digit: float

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
        times: echo, repetition and inversion time.
        kind: how it was made, "MR" or another of DICOM's modalities.
        warnings: one sentence each, for people.
    """

    source: Path
    files: SeriesFiles
    slices: Sequence[DicomSlice]
    affine: np.ndarray
    sequence: str | None
    times: Times
    kind: str
    warnings: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """What voxels are decoded to."""
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.slices[0].shape
        return columns, rows, len(self.slices)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        columns, rows, planes = index
        with _one_sentence(self.source):
            voxels = [_decode(self.files.read(part.name), part) for part in self.slices[planes]]
        return np.stack(voxels, axis=-1)[columns, rows]


@contextmanager
def open_series(source: Path, modality: str | None, name_sequence: Namer) -> Iterator[Series]:
    """Give the one series of a folder or zip; headers are read, no voxel is decoded.

    Args:
        source: a folder, or a zip, with the files of one series at any depth of the zip.
        modality: chooses among several series by what their descriptions name.
        name_sequence: finds the sequence in a description.

    Raises:
        VolumeError: pydicom is missing, an archive that is unsafe or damaged, no series or several,
            slices that are compressed, missing, or do not lie behind one another.
    """
    require_pydicom(source)
    with ExitStack() as stack:
        with _one_sentence(source):
            files = stack.enter_context(open_files(source))
            headers = _choose(_read_headers(files), modality, name_sequence)
            slices = _in_order([_describe(name, header) for name, header in headers.items()])
            step = _step(slices)
            header = next(iter(headers.values()))
            series = Series(
                source=source,
                files=files,
                slices=slices,
                affine=_affine(slices[0], step),
                sequence=_sequence(header, name_sequence),
                times=_times(header),
                kind=_kind(header),
                warnings=_warnings(slices, step, _kind(header)),
            )
        yield series


def require_pydicom(source: Path) -> None:
    """Refuse to read a series where pydicom is not installed."""
    if importlib.util.find_spec("pydicom") is None:
        raise VolumeError(
            f"{source}: DICOM needs the extra [dicom]; run pip install 'rasalore[dicom]'."
        )


def _read_headers(files: SeriesFiles) -> dict[str, dict[str, Any]]:
    """Return the headers by series and by the name of their file."""
    series: dict[str, dict[str, Any]] = {}
    for name in files.names:
        header = _header(files.read(name))
        if header is not None:
            series.setdefault(str(header.get("SeriesInstanceUID", "")), {})[name] = header
    return series


def _warnings(slices: Sequence[DicomSlice], step: np.ndarray, kind: str) -> tuple[str, ...]:
    """Return what people should know of a series whose slices lie `step` mm apart."""
    sentences = []
    length = float(np.linalg.norm(step))
    if len(slices) > 1 and abs(float(step @ slices[0].normal)) < 0.999 * length:
        sentences.append("the slices are shifted against one another (tilted gantry).")
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
    except SeriesError as error:
        raise VolumeError(f"{source}: {error}.") from error
    except Exception as error:  # a DICOM parser meets anything in a damaged file
        reason = first_line(error).rstrip(".")
        raise VolumeError(f"{source}: cannot be read as DICOM: {reason}.") from error


def _header(content: bytes) -> Any:
    """Return what HEADER_TAGS say in a file with an image, None for any other file."""
    import pydicom

    if content[128:132] != b"DICM":
        return None
    # The syntax comes first: a deflated file would be unpacked whole, whatever its size.
    file = io.BytesIO(content)
    file.seek(132)
    meta = pydicom.filereader.read_dataset(file, False, True, stop_when=_after_meta)
    if str(meta.get("TransferSyntaxUID", "")) not in UNCOMPRESSED:
        raise SeriesError(
            "the slices are compressed; decompress them, for example with gdcmconv --raw, or "
            "convert the series with dcm2niix"
        )
    file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    return header if "Rows" in header else None


def _after_meta(tag: Any, *_: Any) -> bool:
    return tag >> 16 != 2  # the group of the file meta information


def _choose(
    series: dict[str, dict[str, Any]], modality: str | None, name_sequence: Namer
) -> dict[str, Any]:
    """Return the headers of the one series, or of the one that names the modality."""
    if not series:
        raise SeriesError("there is no DICOM file with an image in it")
    if len(series) == 1:
        return next(iter(series.values()))
    first = {uid: next(iter(headers.values())) for uid, headers in series.items()}
    named = {uid: _sequence(header, name_sequence) for uid, header in first.items()}
    fitting = [uid for uid, sequence in named.items() if sequence and sequence == modality]
    if len(fitting) == 1:
        return series[fitting[0]]
    known = ", ".join(sorted({sequence for sequence in named.values() if sequence})) or "nothing"
    raise SeriesError(
        "there must be one series (or one that --modality chooses, on the command line), got "
        f"{len(series)} series whose descriptions name {known}; give each one a folder or zip"
    )


def _sequence(header: Any, name_sequence: Namer) -> str | None:
    """Return the sequence that a series names, by the most telling text that names one."""
    contrast = " contrast" if header.get("ContrastBolusAgent") else ""
    texts = [header.get(tag) for tag in ("SeriesDescription", "ProtocolName", "SequenceName")]
    return next(filter(None, (name_sequence(f"{text}{contrast}") for text in texts if text)), None)


def _times(header: Any) -> Times:
    """Return the times in ms that a header tells."""
    tags = ("EchoTime", "RepetitionTime", "InversionTime")
    values = (str(header.get(tag) or "") for tag in tags)  # a damaged one is text, or several
    return Times(*(float(v) if re.fullmatch(r"[0-9]{1,7}(\.[0-9]*)?", v) else None for v in values))


def _kind(header: Any) -> str:
    return str(header.get("Modality", "MR"))


def find_image(source: Path) -> str | None:
    """Return how the first image in a folder or zip was made, such as "MR"; None without images.

    Raises:
        VolumeError: pydicom is missing, or nothing can be told before the files are read whole.
    """
    require_pydicom(source)
    with _one_sentence(source), open_files(source) as files:
        headers = (_header(files.read(name)) for name in files.names)
        first = next((header for header in headers if header is not None), None)
        return None if first is None else _kind(first)


def _describe(name: str, header: Any) -> DicomSlice:
    """Return what is needed of a slice's header, checked."""
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise SeriesError("several slices in one file are not read; convert it with dcm2niix")
    colours = int(header.get("SamplesPerPixel", 1)), header.get("PhotometricInterpretation")
    if colours != (1, "MONOCHROME2"):
        raise SeriesError(f"expected one grey value per voxel, bright for high, got {colours[1]}")
    missing = [tag for tag in PLACE_TAGS if header.get(tag) is None]
    if missing:
        raise SeriesError(f"a slice lacks {missing[0]}, so its place in space is unknown")
    vectors = _unit_vectors(np.array(header.ImageOrientationPatient, float).reshape(2, 3))
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
        last_digit=min(_last_digit(number) for number in header.ImagePositionPatient),
    )
    numbers = [*described.position, *vectors.ravel(), *spacing, described.thickness]
    numbers += described.scaling
    if not np.isfinite(numbers).all() or min(*spacing, *described.shape) <= 0:
        raise SeriesError("a slice's position, spacing or scaling is not a usable number")
    return described


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return directions (2, 3) whose length rounded text has changed, with length 1 again."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
        raise SeriesError(
            "the two directions in ImageOrientationPatient must have length 1, got "
            f"{lengths[0, 0]:.3g} and {lengths[1, 0]:.3g}; export the series again"
        )
    return vectors / lengths


def _last_digit(number: Any) -> float:
    """Return the value of the last decimal of a number as the file writes it, such as 0.1."""
    try:
        exponent = Decimal(getattr(number, "original_string", None) or str(number)).as_tuple()[2]
    except InvalidOperation:  # no number, which is refused with all others
        return 0.0
    return float(f"1e{exponent}") if isinstance(exponent, int) else 0.0  # a letter for infinity


def _in_order(slices: Sequence[DicomSlice]) -> list[DicomSlice]:
    """Return slices of one grid, sorted along their normal."""
    first = slices[0]
    if any(
        s.shape != first.shape
        or not np.allclose(s.spacing, first.spacing, SPACING_TOLERANCE, 0)
        or np.abs(s.rows_and_columns - first.rows_and_columns).max() > 1e-3
        for s in slices
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
    # The straight line nearest to all positions: each is rounded, so no two are trusted alone.
    numbers = (np.arange(len(slices)) - (len(slices) - 1) / 2)[:, None]
    step = (numbers * positions).sum(axis=0) / np.square(numbers).sum()
    expected = positions.mean(axis=0) + numbers * step
    length = float(np.linalg.norm(step))
    gaps = np.diff(positions @ normal)
    if length == 0 or gaps.min() < length * GAP_TOLERANCE:
        raise SeriesError("several slices lie at one place; give one volume, not a time series")
    # Trailing zeros are often left out, so the finest of all numbers tells how they were rounded.
    rounding = min(min(part.last_digit for part in slices), length * LARGEST_ROUNDING)
    if np.abs(positions - expected).max() > max(length * GAP_TOLERANCE, 0.01, rounding * 1.001):
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


def _decode(content: bytes, described: DicomSlice) -> np.ndarray:
    """Return the voxels of one slice, (columns, rows) float32."""
    import pydicom

    pixels = pydicom.dcmread(io.BytesIO(content)).pixel_array
    if pixels.shape != described.shape:
        raise ValueError(f"a slice of shape {pixels.shape} was announced as {described.shape}")
    slope, intercept = described.scaling
    return (pixels.T * np.float64(slope) + intercept).astype(np.float32)
