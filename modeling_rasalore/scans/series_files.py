"""Open the files of a folder or zip, under byte budgets, and choose the DICOM series among them.

Files are read one by one into memory; nothing of an archive is written to disk.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..files import LeftOut, first_line, some
from ..formats.dicom_content import HEADER_BYTES, START_BYTES, read_header, with_preamble
from ..formats.dicom_slices import MOSAIC_TAG, PLACE_TAGS
from ..formats.endings import other_ending
from ..formats.stored_voxels import FormatError
from .header_guard import SUSPECT_BYTES, SUSPECT_RATIO, VOXEL_BUDGET

LARGEST_FILE = 2**28  # bytes; 512 slices of 512 x 512 voxels in one file
LARGEST_ARCHIVE = 2 * VOXEL_BUDGET  # bytes of all files once unpacked
MOST_FILES = 20_000

GROUPS = "PerFrameFunctionalGroupsSequence"  # where slices of one file tell their places
HEADER_TAGS = [
    *("SeriesInstanceUID", "SeriesDescription", "ProtocolName", "Modality", *PLACE_TAGS),
    *("SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "SamplesPerPixel"),
    *("NumberOfFrames", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("SequenceName", "EchoTime", "RepetitionTime", "InversionTime", "ContrastBolusAgent"),
    *("SOPClassUID", "SeriesNumber", "ImageType", "Manufacturer"),
    *("SharedFunctionalGroupsSequence", GROUPS),
]
NO_SCANS = {  # classes of images, by the start of their identifier
    "1.2.840.10008.5.1.4.1.1.66": "a segmentation or registration, no scan",
    "1.2.840.10008.5.1.4.1.1.481": "part of a radiotherapy plan, no scan",
}
SCREENSHOT = "1.2.840.10008.5.1.4.1.1.7"  # and, with more digits, photographs
NO_DICOM = "no DICOM file"
OUTSIDE_ONLY = "a scan in another format, which is read outside of archives"
OTHER_SERIES = "part of another series"

Namer = Callable[[str], str | None]  # words -> the sequence they name, such as "t2"


class SeriesError(FormatError):
    """Why a series cannot be read; the sentence without the source's name and without its end."""


class NoSuchSeriesError(SeriesError):
    """A folder or zip without the series that was chosen."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of an open folder or zip.

    Attributes:
        names: sorted.
        read: returns so many bytes of one, from its start; what was read last stays in memory.
        left_out: what is too large to be read.
    """

    names: Sequence[str]
    read: Callable[[str, int], bytes]
    left_out: tuple[LeftOut, ...]


def is_dicom(path: Path) -> bool:
    """Whether a path is a zip, a DICOM file, or a folder with a DICOM file right in it."""
    if path.is_dir():
        return any(True for _ in dicom_files(path))
    if path.suffix.lower() == ".zip":
        return True
    return not _is_named_as_scan(path.name) and path.is_file() and _starts_like_dicom(path)


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the files right in a folder that begin as DICOM, without DICOMDIR, which lists others.

    One that cannot be opened is among them, so that reading says so.
    """
    for file in _plain_files(folder):
        is_slice = file.name.upper() != "DICOMDIR" and not _is_named_as_scan(file.name)
        if is_slice and _starts_like_dicom(file):
            yield file


def _is_named_as_scan(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz")) or other_ending(Path(name)) is not None


@contextmanager
def open_files(source: Path) -> Iterator[SeriesFiles]:
    """Give the files in a folder or zip, which stays open, or a file alone.

    Raises:
        SeriesError: an archive that is too large, leads out of itself, or is packed unusually.
    """
    if source.is_dir():
        _require_targets(source)
        sizes = {path.name: path.stat().st_size for path in _plain_files(source)}
        yield _within_budget(source, sizes, lambda name: (source / name).open("rb"))
        return
    if source.suffix.lower() != ".zip":
        sizes = {source.name: source.stat().st_size}
        yield _within_budget(source, sizes, lambda name: source.open("rb"))
        return
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise SeriesError("it is no zip archive, or a damaged one; pack it again") from error
    with archive:
        members = _check_archive(archive.infolist(), source.stat().st_size)
        sizes = {name: member.file_size for name, member in members.items()}
        yield _within_budget(source, sizes, lambda name: archive.open(members[name]))


def _within_budget(
    source: Path, sizes: dict[str, int], open_file: Callable[[str], IO[bytes]]
) -> SeriesFiles:
    """Return the files that are not too large."""

    @lru_cache(1)
    def read(name: str, most: int) -> bytes:
        with open_file(name) as file:
            return file.read(min(most, sizes[name]))  # as much memory is taken at once

    large = {name for name, size in sizes.items() if size > LARGEST_FILE}
    reason = f"larger than {LARGEST_FILE >> 20} MiB"
    left_out = tuple(LeftOut(source / name, reason) for name in sorted(large))
    return SeriesFiles(sorted(sizes.keys() - large), read, left_out)


def _plain_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _require_targets(folder: Path) -> None:
    """Refuse a folder where a slice may be missing because its file was never fetched."""
    links = sorted(p.name for p in folder.iterdir() if p.is_symlink() and not p.exists())
    if links:
        raise SeriesError(f"{some(links)} lead to files that are not there; fetch them first")


def _starts_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return with_preamble(file.read(START_BYTES)) is not None
    except OSError:  # told when the series is opened
        return True


def choose_series(
    source: Path,
    files: SeriesFiles,
    modality: str | None,
    name_sequence: Namer,
    chosen: str | None = None,
) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return the headers of one series by the names of its files, and what is not used.

    Args:
        source: the folder or zip.
        files: what it holds.
        modality: chooses among several series by what their descriptions name.
        name_sequence: finds the sequence in a description.
        chosen: number of the series, or text of its description.

    Raises:
        SeriesError: no series or several, or a file that is damaged.
    """
    series, left_out = _read_headers(source, files)
    if not series:
        raise SeriesError(_no_image(left_out))
    headers = series.pop(_choose(series, chosen, modality, name_sequence))
    left_out += _leave_out_series(source, series, name_sequence)
    return headers, left_out


def _read_headers(
    source: Path, files: SeriesFiles
) -> tuple[dict[str, dict[str, Any]], list[LeftOut]]:
    """Return the headers by series and by the name of their file, and what is no part of any."""
    series: dict[str, dict[str, Any]] = {}
    left_out = list(files.left_out)
    for name in files.names:
        if source.is_dir() and _is_named_as_scan(name):
            continue  # a scan of its own
        header = read_image_header(files, name)
        if source.is_dir() and header == NO_DICOM:
            continue  # the search of the folder lists it
        if isinstance(header, str):
            left_out.append(LeftOut(source / name, header))
        else:
            series.setdefault(str(header.get("SeriesInstanceUID", "")), {})[name] = header
    return series, left_out


def _no_image(left_out: Sequence[LeftOut]) -> str:
    """Return what to say where no file has an image."""
    others = [item.path.name for item in left_out if item.reason == OUTSIDE_ONLY]
    hint = f", but {some(others)}; unpack that and give it alone" if others else ""
    return f"there is no DICOM file with an image in it{hint}"


def _leave_out_series(
    source: Path, series: dict[str, dict[str, Any]], name_sequence: Namer
) -> list[LeftOut]:
    """Return the files of series that were not chosen."""
    return [
        LeftOut(source / name, f"{OTHER_SERIES}, {_title(headers, name_sequence)}")
        for headers in series.values()
        for name in headers
    ]


def say_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for item in left_out:
        reasons.setdefault(item.reason, []).append(item.path.name)
    return [
        f"{len(names)} {'file was' if len(names) == 1 else 'files were'} left out ({some(names)}): "
        f"{reason}."
        for reason, names in reasons.items()
    ]


def read_image_header(files: SeriesFiles, name: str) -> Any:
    """Return what HEADER_TAGS say in a file with an image, or why it is no part of a series."""
    if _is_named_as_scan(name):
        return OUTSIDE_ONLY
    try:
        if with_preamble(files.read(name, START_BYTES)) is None:
            return NO_DICOM
        content = with_preamble(files.read(name, HEADER_BYTES)) or b""
    except OSError as error:
        return f"a file that cannot be opened: {error.strerror}"
    try:
        header = read_header(content, [*HEADER_TAGS, MOSAIC_TAG])
    except FormatError as error:
        raise SeriesError(f"{name}: {error}") from error
    except Exception as error:  # a DICOM parser meets anything in a damaged file
        reason = first_line(error).rstrip(".")
        raise SeriesError(
            f"{name} cannot be read as DICOM: {reason}; copy or export it again"
        ) from error
    kind = str(header.get("SOPClassUID", ""))
    no_scan = next((reason for start, reason in NO_SCANS.items() if kind.startswith(start)), None)
    if header.get("Modality") == "SEG":
        no_scan = "a segmentation, no scan"
    if kind.startswith(SCREENSHOT) and not {"ImagePositionPatient", GROUPS} & set(header.dir()):
        no_scan = "a screenshot, no scan"
    return no_scan or (header if "Rows" in header else "a DICOM file without an image")


def _choose(
    series: dict[str, dict[str, Any]],
    chosen: str | None,
    modality: str | None,
    name_sequence: Namer,
) -> str:
    """Return the identifier of the one series that was chosen, or that names the modality."""
    first = {uid: next(iter(headers.values())) for uid, headers in series.items()}
    fitting = [uid for uid, header in first.items() if chosen is None or _is_chosen(header, chosen)]
    titles = sorted(_title(headers, name_sequence) for headers in series.values())
    if not fitting:
        raise NoSuchSeriesError(f"there is no series {chosen!r}; got {some(titles)}")
    if len(fitting) == 1:
        return fitting[0]
    named = {uid: told_sequence(first[uid], name_sequence) for uid in fitting}
    fitting = [uid for uid, sequence in named.items() if sequence and sequence == modality]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(sorted({sequence for sequence in named.values() if sequence})) or "nothing"
    raise SeriesError(
        "there must be one series (or one that --series or --modality chooses, on the command "
        f"line), got {len(named)} series whose descriptions name {known}: {some(titles)}"
    )


def _is_chosen(header: Any, chosen: str) -> bool:
    """Whether a series has this number, or this text in its description."""
    if chosen.isdecimal():
        return str(header.get("SeriesNumber", "")) == str(int(chosen))
    return any(chosen.lower() in text.lower() for text in _texts(header))


def _title(headers: dict[str, Any], name_sequence: Namer) -> str:
    """Return what may be said of a series: its number, never its texts."""
    header = next(iter(headers.values()))
    number = header.get("SeriesNumber")
    return (
        f"{'without a number' if number is None else f'number {number}'} "
        f"({told_sequence(header, name_sequence) or 'unknown sequence'}, {len(headers)} files)"
    )


def told_sequence(header: Any, name_sequence: Namer) -> str | None:
    """Return the sequence that a series names, by the most telling text that names one."""
    contrast = " contrast" if header.get("ContrastBolusAgent") else ""
    return next(filter(None, (name_sequence(text + contrast) for text in _texts(header))), None)


def _texts(header: Any) -> list[str]:
    """Return where a series says what it shows, the most telling text first."""
    texts = (header.get(tag) for tag in ("SeriesDescription", "ProtocolName", "SequenceName"))
    return [str(text) for text in texts if text]


def _check_archive(members: Sequence[zipfile.ZipInfo], packed: int) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a safe archive of `packed` bytes by name; it is unpacked in memory."""
    total = sum(member.file_size for member in members)
    if len(members) > MOST_FILES or total > LARGEST_ARCHIVE:
        raise SeriesError(
            f"an archive may hold {MOST_FILES} files and {LARGEST_ARCHIVE / 2**30:.0f} GiB, got "
            f"{len(members)} files and {total / 2**30:.2f} GiB; pack one series"
        )
    if total > max(SUSPECT_BYTES, SUSPECT_RATIO * packed):
        raise SeriesError(
            f"an archive may unpack to {SUSPECT_RATIO} times its size, got {total / packed:.0f}; "
            "pack the slices as the scanner wrote them"
        )
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise SeriesError(
                f"names in an archive must stay inside it, got {str(name)[:80]!r}; pack it anew"
            )
        if member.flag_bits & 1:
            raise SeriesError("the archive asks for a password; pack it without one")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SeriesError("the archive must be stored or deflated; pack it as plain zip")
    return {member.filename: member for member in members if not member.is_dir()}
