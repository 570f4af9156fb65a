"""Read and write MetaImage files, .mha and .mhd, as ITK, 3D Slicer and Elastix hold scans.

https://itk.org/Wiki/MetaIO/Documentation: lines of `Key = value`, then the voxels.
"""

import zlib
from pathlib import Path

import numpy as np

from .stored_voxels import FormatError, StoredVoxels, file_beside

HEADER_BYTES = 2**16
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # MetaImage's world
TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
NAMES = {np.dtype(code): name for name, code in TYPES.items() if "LONG" not in name}
# Keys of equal meaning, and what counts where none is there.
ORIGIN = ("Offset", "Position", "Origin")
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
BIG_ENDIAN = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read_metaimage(path: Path) -> StoredVoxels:
    """Return the voxels that a .mha or .mhd file describes.

    Raises:
        FormatError: a header that cannot be true, or voxels spread over several files.
    """
    with path.open("rb") as file:
        fields, end = _parse(file.read(HEADER_BYTES))
    count = int(fields.get("NDims", "3"))
    if count not in (3, 4):
        raise FormatError(f"expected a 3-D scan, got NDims {count}")
    shape = tuple(int(size) for size in _numbers(fields.get("DimSize", ""), count))
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise FormatError("expected one number per voxel, got several channels")
    kind = fields.get("ElementType", "")
    if kind not in TYPES:
        raise FormatError(f"ElementType must be one of {', '.join(TYPES)}, got {kind[:40]!r}")
    is_big_endian = _first(fields, BIG_ENDIAN, "False").lower() == "true"
    name = fields["ElementDataFile"]
    compressed = fields.get("CompressedData", "False").lower() == "true"
    voxels = StoredVoxels(
        path=path if name == "LOCAL" else file_beside(path, name),
        offset=end if name == "LOCAL" else 0,
        shape=shape,
        dtype=np.dtype(TYPES[kind]).newbyteorder(">" if is_big_endian else "<"),
        affine=_affine(fields, count),
        compressed=compressed,
    )
    skipped = int(fields.get("HeaderSize", "0"))
    if skipped == -1 and not compressed:  # the voxels are the end of the file
        return voxels.at(voxels.path.stat().st_size - voxels.nbytes)
    return voxels.at(voxels.offset + skipped)


def _parse(start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header and where it ends."""
    fields: dict[str, str] = {}
    end = 0
    for line in start.splitlines(keepends=True):
        end += len(line)
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":  # the last one
            return fields, end
    raise FormatError("cannot be read as MetaImage: its header does not end in ElementDataFile")


def _first(fields: dict[str, str], keys: tuple[str, ...], default: str) -> str:
    return next((fields[key] for key in keys if key in fields), default)


def _affine(fields: dict[str, str], count: int) -> np.ndarray:
    """Return the affine of the first three axes to RAS+ mm."""
    unit = " ".join("1" if i == j else "0" for i in range(count) for j in range(count))
    directions = _numbers(_first(fields, DIRECTIONS, unit), count * count).reshape(count, count)
    spacing = _numbers(_first(fields, ("ElementSpacing", "ElementSize"), "1 " * count), count)
    origin = _numbers(_first(fields, ORIGIN, "0 " * count), count)
    affine = np.eye(4)
    affine[:3, :3] = directions.T[:3, :3] * spacing[:3]  # a row of the file is an axis
    affine[:3, 3] = origin[:3]
    return RAS_TO_LPS @ affine


def _numbers(text: str, count: int) -> np.ndarray:
    try:
        values = np.array(text.split(), float)
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise FormatError(f"expected {count} numbers, got {text[:80]!r}")
    return values


def write_metaimage(path: Path, voxels: np.ndarray, affine: np.ndarray, comment: str = "") -> Path:
    """Return `path` after writing voxels (I, J, K) as a compressed .mha file.

    Args:
        affine: (4, 4), voxel indices -> mm in RAS+ world coordinates.
        comment: what the file is; "" for none.
    """
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    content = zlib.compress(voxels.astype(voxels.dtype.newbyteorder("<")).tobytes(order="F"), 1)
    fields = {
        "ObjectType": "Image",
        **({"Comment": comment} if comment else {}),
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(content),
        "TransformMatrix": _text((lps[:3, :3] / spacing).T),
        "Offset": _text(lps[:3, 3]),
        "AnatomicalOrientation": "RAI",  # of the world: right to left, anterior to posterior, up
        "ElementSpacing": _text(spacing),
        "DimSize": _text(np.array(voxels.shape)),
        "ElementType": NAMES[voxels.dtype],
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{key} = {value}\n" for key, value in fields.items())
    path.write_bytes(header.encode() + content)
    return path


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.17g}" for number in numbers.ravel())
