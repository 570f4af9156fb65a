"""Read and write NRRD files, .nrrd and .nhdr, as 3D Slicer holds scans.

https://teem.sourceforge.net/nrrd/format.html
"""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .stored_voxels import FormatError, StoredVoxels, file_beside

HEADER_BYTES = 2**16
# World axes of a file -> RAS+.
SPACES = {
    **{"right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1)},
    **{"left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1)},
    **{"left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1)},
}
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
ORDERS: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
ENCODINGS = {"raw": False, "gzip": True, "gz": True}  # -> compressed


def read_nrrd(path: Path) -> StoredVoxels:
    """Return the voxels that a .nrrd or .nhdr file describes.

    Raises:
        FormatError: pynrrd is missing, or a header that cannot be true or be used.
    """
    nrrd = require_pynrrd()
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    text, _, _ = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = nrrd.read_header([f"{line}\n" for line in text.decode("latin-1").split("\n")])
    detached = fields.get("data file", fields.get("datafile"))
    encoding = str(fields.get("encoding", "")).lower()
    if encoding not in ENCODINGS:
        raise FormatError(f"the encoding must be raw or gzip, got {encoding[:40]!r}")
    skips = [fields.get(f"{unit} skip", fields.get(f"{unit}skip", 0)) for unit in ("line", "byte")]
    shape = tuple(int(size) for size in fields["sizes"])
    voxels = StoredVoxels(
        path=file_beside(path, str(detached)) if detached else path,
        offset=0 if detached else _end(head),
        shape=shape,
        dtype=_dtype(fields),
        affine=_affine(fields, shape),
        compressed=ENCODINGS[encoding],
    )
    if skips[1] == -1 and not voxels.compressed:  # the voxels are the end of the file
        return voxels.at(voxels.path.stat().st_size - voxels.nbytes)
    if any(skips):
        raise FormatError(f"lines or bytes before the voxels are not skipped, got {skips}")
    return voxels


def require_pynrrd() -> Any:
    """Return the library; say how it is installed where it is not."""
    if importlib.util.find_spec("nrrd") is None:
        raise FormatError("NRRD needs the extra [formats]; run pip install 'rasalore[formats]'")
    import nrrd

    return nrrd


def _end(head: bytes) -> int:
    """Return where a header ends: behind the first empty line."""
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := head.find(mark)) >= 0]
    if not ends:
        raise FormatError("cannot be read as NRRD: its header has no end")
    return min(ends)


def _dtype(fields: Any) -> np.dtype:
    kind, order = str(fields.get("type", "")), str(fields.get("endian", "")).lower()
    dtype = np.dtype(TYPES.get(kind, "V1"))
    if dtype.kind == "V" or (dtype.itemsize > 1 and order not in ORDERS):
        raise FormatError(
            f"expected one number per voxel and its byte order, got type {kind[:40]!r} and endian "
            f"{order[:40]!r}"
        )
    return dtype.newbyteorder(ORDERS.get(order, "<"))


def _affine(fields: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the affine of the first three axes to RAS+ mm."""
    space = str(fields.get("space", "")).lower()
    directions = fields.get("space directions")
    if space not in SPACES or directions is None:
        raise FormatError(
            "the place in space must be told by `space` (such as left-posterior-superior) and "
            f"`space directions`, got space {space[:40]!r}"
        )
    units = {str(unit).lower() for unit in fields.get("space units", ())}
    if not units <= {"mm", "millimeter", "millimeters", "millimetre", ""}:
        raise FormatError(f"the space units must be mm, got {', '.join(sorted(units))[:80]}")
    spatial = np.array([np.full(3, np.nan) if row is None else row for row in directions], float)
    if spatial.shape != (len(shape), 3) or not np.isfinite(spatial[:3]).all():
        raise FormatError("the first three axes must lie in space; save the scan as a 3-D volume")
    affine = np.eye(4)
    affine[:3, :3] = spatial[:3].T
    affine[:3, 3] = fields.get("space origin", np.zeros(3))
    return np.diag([*SPACES[space], 1.0]) @ affine


def write_nrrd(path: Path, voxels: np.ndarray, affine: np.ndarray, comment: str = "") -> Path:
    """Return `path` after writing voxels (I, J, K) as a compressed .nrrd file.

    Args:
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        comment: what the file is; "" for none.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # what 3D Slicer writes
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain", "domain", "domain"],
        "encoding": "gzip",
    }
    header |= {"content": comment} if comment else {}
    require_pynrrd().write(str(path), voxels, header, compression_level=1)
    return path
