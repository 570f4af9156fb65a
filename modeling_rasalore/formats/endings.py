"""Choose reader and writer of a scan by the ending of its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..files import first_line
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
WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], Path]] = {
    **{".nrrd": write_nrrd, ".mha": write_metaimage},
}
FOUND = tuple(end for end in READERS if not end.startswith(".hdr"))  # of scans in folders
COMPANIONS = (".hdr", ".hdr.gz", ".raw", ".raw.gz", ".zraw")  # parts of a scan of another ending
# What needs a library that may be missing.
REQUIREMENTS: dict[str, Callable[[], Any]] = {".nrrd": require_pynrrd, ".dcm": require_highdicom}


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
    except FormatError:
        raise
    except Exception as error:  # a parser meets anything in a damaged header
        reason = first_line(error).rstrip(".")
        raise FormatError(
            f"cannot be read as {ending}: its header is damaged ({reason}); save the scan again"
        ) from error
