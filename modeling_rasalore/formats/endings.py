"""Choose reader and writer of a scan by the ending of its name; tell what a file begins as."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import first_line
from .dicom_content import START_BYTES, with_preamble
from .dicom_segmentation import require_highdicom
from .metaimage import read_metaimage, write_metaimage
from .neuroimaging import read_mgh, read_pair
from .nrrd_files import read_nrrd, require_pynrrd, write_nrrd
from .stored_voxels import FormatError, StoredVoxels

READERS: dict[str, Callable[[Path], StoredVoxels]] = {
    **{".nrrd": read_nrrd, ".nhdr": read_nrrd, ".mha": read_metaimage, ".mhd": read_metaimage},
    **{".mgz": read_mgh, ".mgh": read_mgh, ".mgh.gz": read_mgh},
    **{".img": read_pair, ".img.gz": read_pair, ".hdr": read_pair, ".hdr.gz": read_pair},
}
WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray, str], Path]] = {
    **{".nrrd": write_nrrd, ".mha": write_metaimage},
}
FOUND = tuple(end for end in READERS if not end.startswith(".hdr"))  # of scans in folders
ALONE = (".nrrd", ".mha", ".mgz", ".mgh", ".mgh.gz")  # of scans that are always one file
COMPANIONS = (".hdr", ".hdr.gz", ".raw", ".raw.gz", ".zraw")  # parts of a scan of another ending
# What needs a library that may be missing.
REQUIREMENTS: dict[str, Callable[[], Any]] = {".nrrd": require_pynrrd, ".dcm": require_highdicom}

NIFTI_STARTS = {size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big")}
# How contents begin -> the endings that say so.
STARTS: dict[bytes, tuple[str, ...]] = {
    **{b"NRRD000": (".nrrd", ".nhdr"), b"ObjectType": (".mha", ".mhd"), b"NDims": (".mha", ".mhd")},
    **{b"PK\3\4": (".zip",), b"BZh": (".bz2",), b"\xfd7zXZ": (".xz",), b"\x89PNG": (".png",)},
}
NO_FILES = {
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file; run git lfs pull",
    b"<": "it is a web page in place of the file; download it again",
    b"{": "it is a message of a server in place of the file; download it again",
}


def tell_content(start: bytes, name: str) -> str | None:
    """Return what a file is by its first bytes, and what to do; None where its name says so too.

    None, too, for contents that are not known.
    """
    packed = start.startswith(b"\x1f\x8b")
    if packed:
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, START_BYTES)
        except zlib.error:
            return None
    endings: tuple[str, ...]
    if start[:4] in NIFTI_STARTS:
        endings, kind = ((".nii.gz",) if packed else (".nii", ".hdr")), "NIfTI"
    elif with_preamble(start[:START_BYTES]) is not None:
        endings, kind = (".dcm",), "DICOM"
    else:
        known = next((mark for mark in STARTS if start.startswith(mark)), None)
        if known is None:
            return next((say for mark, say in NO_FILES.items() if start.startswith(mark)), None)
        endings, kind = STARTS[known], f"{STARTS[known][0][1:]} data"
    if name.lower().endswith(endings):
        return None
    return f"its content is {kind}; rename the file to end in {endings[0]}"


def require_writer(ending: str) -> None:
    """Refuse an ending that cannot be written here; say what is to be installed."""
    REQUIREMENTS.get(ending, lambda: None)()


def other_ending(path: Path) -> str | None:
    """Return the ending of a name that means a scan of another format than NIfTI; None if none."""
    name = path.name.lower()
    return max((end for end in READERS if name.endswith(end)), key=len, default=None)


def open_voxels(path: Path) -> StoredVoxels:
    """Return the voxels of a scan that is no NIfTI file, checked and not yet decoded.

    Raises:
        FormatError: whatever is wrong with the file, in one sentence without its name and end.
    """
    ending = other_ending(path)
    if ending is None:
        raise FormatError(f"expected a name ending in one of {', '.join(READERS)}")
    if not path.is_file():
        raise FormatError("there is no such file")
    try:
        return READERS[ending](path).check()
    except Exception as error:  # a parser meets anything in a damaged header
        with path.open("rb") as file:
            told = tell_content(file.read(2 * START_BYTES), path.name)
        if told and ending not in (".img", ".img.gz", ".hdr.gz"):  # whose starts tell nothing
            raise FormatError(told) from error
        if isinstance(error, FormatError):
            raise
        reason = first_line(error).rstrip(".")
        raise FormatError(
            f"cannot be read as {ending}: its header is damaged ({reason}); save the scan again"
        ) from error


def files_of(path: Path) -> list[Path]:
    """Return the files that a scan consists of; the named one alone where it cannot be read."""
    if other_ending(path) is None:
        return [path]
    try:
        voxels = open_voxels(path)
    except FormatError:
        return [path]
    return list(dict.fromkeys([path, voxels.header or path, voxels.path]))
