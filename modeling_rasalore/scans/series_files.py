"""Open the files of a DICOM series, in a folder or a zip, under byte budgets.

Files are read one by one into memory; nothing of an archive is written to disk.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..files import some
from .header_guard import SUSPECT_BYTES, SUSPECT_RATIO, VOXEL_BUDGET

LARGEST_FILE = 2**26  # bytes of one slice's file; 2048 x 2048 voxels of 16 bits are 8 MiB
LARGEST_ARCHIVE = 2 * VOXEL_BUDGET  # bytes of all files once unpacked
MOST_FILES = 20_000


class SeriesError(Exception):
    """Why a series cannot be read; the sentence without the source's name and without its end."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of an open folder or zip: their names, sorted, and what reads one of them."""

    names: Sequence[str]
    read: Callable[[str], bytes]


def is_dicom(path: Path) -> bool:
    """Whether a path is a zip, or a folder with a DICOM file right in it."""
    if path.is_dir():
        return any(True for _ in dicom_files(path))
    return path.suffix.lower() == ".zip"


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the files right in a folder that begin as DICOM, without DICOMDIR, which lists others.

    One that cannot be opened is among them, so that reading says so.
    """
    for file in _plain_files(folder):
        try:
            begins = _starts_like_dicom(file)
        except OSError:
            begins = True
        if begins and file.name.upper() != "DICOMDIR":
            yield file


@contextmanager
def open_files(source: Path) -> Iterator[SeriesFiles]:
    """Give the files in a folder or zip, which stays open.

    Raises:
        SeriesError: an archive that is too large, leads out of itself, or is packed unusually.
    """
    if source.is_dir():
        _require_targets(source)
        names = [path.name for path in _plain_files(source)]
        yield SeriesFiles(names, lambda name: _read(source / name))
        return
    with zipfile.ZipFile(source) as archive:
        members = _check_archive(archive.infolist(), source.stat().st_size)
        yield SeriesFiles(sorted(members), lambda name: archive.read(members[name]))


def _plain_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _require_targets(folder: Path) -> None:
    """Refuse a folder where a slice may be missing because its file was never fetched."""
    links = sorted(p.name for p in folder.iterdir() if p.is_symlink() and not p.exists())
    if links:
        raise SeriesError(f"{some(links)} lead to files that are not there; fetch them first")


def _read(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_FILE or not _starts_like_dicom(path):
        return b""
    return path.read_bytes()


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


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
    return {
        member.filename: member
        for member in members
        if not member.is_dir() and member.file_size <= LARGEST_FILE
    }
