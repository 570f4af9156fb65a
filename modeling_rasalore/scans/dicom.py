"""Read one DICOM series, in a folder or a zip, as voxels with an affine.

No text of the files goes anywhere: a series gives only numbers, and the sequence that its name
tells.
"""

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..files import LeftOut, first_line
from ..formats.dicom_content import (
    HEADER_BYTES,
    decode_slices,
    read_header,
    with_preamble,
)
from ..formats.dicom_slices import DicomSlice, describe_slices
from ..formats.stored_voxels import FormatError
from .header_guard import VOXEL_BUDGET, VolumeError
from .naming import Times, kind_of_image
from .series_files import (
    LARGEST_FILE,
    NO_DICOM,
    Namer,
    SeriesError,
    SeriesFiles,
    choose_series,
    open_files,
    read_image_header,
    say_left_out,
    told_sequence,
)

GAP_TOLERANCE = 0.02  # of the distance between slices
LARGEST_ROUNDING = 0.2  # of that distance; a missing slice moves another by more
SPACING_TOLERANCE = 3e-3  # relative; 0.94 for 0.9375 is one pixel size


@dataclass(frozen=True)
class Description:
    """What the headers of a series say it shows.

    Attributes:
        sequence: what its texts name, such as "t2"; None if nothing.
        times: echo, repetition and inversion time.
        kind: how it was made, "MR" or another of DICOM's modalities.
        image: what its image type says where it is no plain picture, such as "phase".
    """

    sequence: str | None
    times: Times
    kind: str
    image: str | None


@dataclass(frozen=True, eq=False)
class Series:
    """An open series that looks like an array (columns, rows, slices), decoded when sliced.

    Attributes:
        source: the folder or zip.
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        described: what its headers say it shows.
        uid: its identifier.
        warnings: one sentence each, for people.
        left_out: files of the source that are not used.
    """

    source: Path
    files: SeriesFiles
    slices: Sequence[DicomSlice]
    affine: np.ndarray
    described: Description
    uid: str
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
    source: Path,
    modality: str | None,
    name_sequence: Namer,
    chosen: str | None,
    accept: Callable[[Description], None],
) -> Iterator[Series]:
    """Give the one series of a folder or zip; headers are read, only copies are decoded.

    Args:
        source: a folder, or a zip, with the files of one series at any depth of the zip; or a file
            that holds all slices.
        modality: chooses among several series by what their descriptions name.
        name_sequence: finds the sequence in a description.
        chosen: number of the series, or text of its description.
        accept: is told what the series says of itself before its slices are put together, which
            localizers would not survive; what it raises is passed on.

    Raises:
        VolumeError: pydicom is missing, an archive that is unsafe or damaged, no series or several,
            slices that are missing, or do not lie behind one another.
    """
    require_pydicom(source)
    with ExitStack() as stack:
        with _one_sentence(source):
            files = stack.enter_context(open_files(source))
            headers, left_out = choose_series(source, files, modality, name_sequence, chosen)
            header = next(iter(headers.values()))
            described = _describe(header, name_sequence)
            accept(described)
            slices, copies = _drop_copies(
                files,
                [
                    part
                    for name in _originals_first(headers)
                    for part in describe_slices(name, headers[name])
                ],
            )
            reason = "a copy of slices that were read"
            left_out += [LeftOut(source / name, reason) for name in copies]
            if len(slices) == 1 and list(headers) == [source.name]:
                raise SeriesError("this is one slice of a series; give the folder with all of them")
            slices = _in_order(slices)
            step = _step(slices)
            told = _warnings(slices, step, described.kind)
            series = Series(
                source=source,
                files=files,
                slices=slices,
                affine=_affine(slices[0], step),
                described=described,
                uid=str(header.get("SeriesInstanceUID", "")),
                warnings=(*told, *say_left_out(left_out)),
                left_out=tuple(left_out),
            )
        yield series


def require_pydicom(source: Path) -> None:
    """Refuse to read a series where pydicom is not installed."""
    if importlib.util.find_spec("pydicom") is None:
        raise VolumeError(
            f"{source}: DICOM needs the extra [dicom]; run pip install 'rasalore[dicom]'."
        )


def why_no_image(source: Path) -> str | None:
    """Return why a folder or zip holds no image of a series; None where it holds one.

    Raises:
        VolumeError: pydicom is missing, or nothing can be told before the files are read whole.
    """
    require_pydicom(source)
    reasons = []
    with _one_sentence(source), open_files(source) as files:
        for name in files.names:
            header = read_image_header(files, name)
            if not isinstance(header, str):
                return None
            reasons.append(header)
    told = next((reason for reason in reasons if reason != NO_DICOM), None)
    return f"holds {told}" if told else "holds no DICOM image"


def _times(header: Any) -> Times:
    """Return the times in ms that a header tells."""
    tags = ("EchoTime", "RepetitionTime", "InversionTime")
    values = (str(header.get(tag) or "") for tag in tags)  # a damaged one is text, or several
    return Times(*(float(v) if re.fullmatch(r"[0-9]{1,7}(\.[0-9]*)?", v) else None for v in values))


def _describe(header: Any, name_sequence: Namer) -> Description:
    kinds = header.get("ImageType") or ()
    return Description(
        told_sequence(header, name_sequence),
        _times(header),
        str(header.get("Modality", "MR")),
        kind_of_image(list(map(str, kinds)) if not isinstance(kinds, str) else [kinds]),
    )


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
