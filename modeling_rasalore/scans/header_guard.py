"""Check what a NIfTI header claims against a byte budget and the file, before any decoding.

Only the first 540 bytes are looked at, so a crafted file costs milliseconds and no memory. A claim
that cannot be true or would make results wrong is refused; one that can be put right is, and said.
"""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ..formats.endings import tell_content
from ..formats.stored_voxels import (
    GZIP_MAGIC,
    LARGEST_RATIO,
    SUSPECT_BYTES,
    SUSPECT_RATIO,
    VOXEL_BUDGET,
)

ByteOrder = Literal["<", ">"]

HEADER_BYTES = 540  # NIfTI-2; NIfTI-1 has 348, and 4 more before the voxels
LARGEST_OFFSET = 2**24  # bytes before the voxels; header extensions are kilobytes
SCALES = (1e-30, 1e30)  # outside them a float32 overflows or vanishes
VOXEL_SIZES_MM = (1e-4, 1e4)
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # code -> mm; unknown counts as mm
UNIT_NAMES = {1: "metre", 2: "millimetre", 3: "micrometre"}
LONGEST_QUATERNION = 1 + 1e-5  # b2 + c2 + d2; rounding makes it longer than 1
NUMBER_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
NUMBER_TYPES |= {1024: "i8", 1280: "u8"}
OTHER_TYPES = {1: "bit", 32: "complex", 128: "RGB", 1536: "128-bit float", 1792: "complex"}
OTHER_TYPES |= {2048: "complex", 2304: "RGB"}

# name: (type, offset in bytes) in NIfTI-1 and NIfTI-2.
FIELDS_1 = {
    **{"sizeof_hdr": ("i4", 0), "dim": ("8i2", 40), "datatype": ("i2", 70), "bitpix": ("i2", 72)},
    **{"pixdim": ("8f4", 76), "vox_offset": ("f4", 108), "scl_slope": ("f4", 112)},
    **{"scl_inter": ("f4", 116), "xyzt_units": ("u1", 123), "qform_code": ("i2", 252)},
    **{"sform_code": ("i2", 254), "quatern": ("6f4", 256), "srow": ("12f4", 280)},
    "magic": ("S4", 344),
}
FIELDS_2 = {
    **{"sizeof_hdr": ("i4", 0), "magic": ("S8", 4), "datatype": ("i2", 12), "bitpix": ("i2", 14)},
    **{"dim": ("8i8", 16), "pixdim": ("8f8", 104), "vox_offset": ("i8", 168)},
    **{"scl_slope": ("f8", 176), "scl_inter": ("f8", 184), "qform_code": ("i4", 344)},
    **{"sform_code": ("i4", 348), "quatern": ("6f8", 352), "srow": ("12f8", 400)},
    "xyzt_units": ("i4", 500),
}


class VolumeError(ValueError):
    """A scan or mask that cannot be used; the message is one sentence that names the file."""


@dataclass(frozen=True)
class CheckedHeader:
    """A header that passed, with what had to be put right.

    Attributes:
        content: 348 or 540 bytes, repaired; the byte order is the file's.
        version: 1 or 2.
        byte_order: "<" or ">".
        shape: voxels along each axis, 3 or 4 numbers, all above 0.
        dtype: of the stored voxels.
        compressed: whether the file is gzip data.
        warnings: one sentence per repair, for people.
    """

    content: bytes
    version: int
    byte_order: ByteOrder
    shape: tuple[int, ...]
    dtype: np.dtype
    compressed: bool
    warnings: tuple[str, ...]


@contextmanager
def open_checked(path: str | Path) -> Iterator[tuple[BinaryIO, CheckedHeader]]:
    """Give the NIfTI file at `path`, at its start, and its header: it is safe to decode.

    What was checked is what is decoded, whatever takes the file's name in between.

    Raises:
        VolumeError: no NIfTI-1 or NIfTI-2 file, or a header that cannot be true or be used; the
            sentence says the rule, the value found and the way out.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open(path))
            raw = file.read(2**16)
            compressed = _check_ending(path.name.lower(), raw)
            start = _decompress(raw) if compressed else raw[:HEADER_BYTES]
            header = _check(start, compressed, os.fstat(file.fileno()).st_size)
            file.seek(0)
        except (_HeaderError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VolumeError(f"{path}: {reason.rstrip('.')}.") from error
        yield file, header


class _HeaderError(Exception):
    """The sentence without the file's name."""


def _open(path: Path) -> BinaryIO:
    if path.is_dir():
        raise _HeaderError("a folder is a scan only with DICOM files right in it; name the file")
    if not path.is_file():
        raise _HeaderError("there is no such file")
    return path.open("rb")


def _check_ending(name: str, raw: bytes) -> bool:
    """Return whether a file that starts with `raw` is compressed, as its name must say."""
    if not raw:
        raise _HeaderError("the file is empty")
    told = tell_content(raw, name)
    if not name.endswith((".nii", ".nii.gz")):
        raise _HeaderError(told or "expected a .nii or .nii.gz file; convert it to NIfTI")
    if told:
        raise _HeaderError(told)
    compressed = raw.startswith(GZIP_MAGIC)
    if compressed != name.endswith(".gz"):
        content, ending = ("gzip", ".nii.gz") if compressed else ("plain", ".nii")
        raise _HeaderError(f"the content is {content} data; rename the file to end in {ending}")
    return compressed


def _decompress(raw: bytes) -> bytes:
    """Return up to HEADER_BYTES bytes, whatever the compressed `raw` would grow to.

    A header may go on in the next gzip member, after zeros that fill up a block.
    """
    start = b""
    while raw and len(start) < HEADER_BYTES:
        member = zlib.decompressobj(wbits=31)
        try:
            start += member.decompress(raw, HEADER_BYTES - len(start))
        except zlib.error as error:
            if start:  # bytes after the last member
                break
            raise _HeaderError(f"cannot be read as NIfTI: {error}; copy it again") from error
        raw = member.unused_data.lstrip(b"\0")
    return start


def _check(start: bytes, compressed: bool, file_bytes: int) -> CheckedHeader:
    header, version, byte_order = _parse(start)
    warnings: list[str] = []
    shape = _check_shape(header, warnings)
    dtype = _check_type(header, byte_order, warnings)
    offset = _check_offset(header, version)
    _check_size(shape, dtype, offset, file_bytes, compressed)
    _check_scaling(header, dtype, warnings)
    _check_geometry(header, warnings)
    return CheckedHeader(
        header.tobytes(), version, byte_order, shape, dtype, compressed, tuple(warnings)
    )


def _parse(start: bytes) -> tuple[np.ndarray, int, ByteOrder]:
    """Return the header as a writable record, the NIfTI version and the byte order."""
    orders: tuple[ByteOrder, ...] = ("<", ">")
    for version, size, fields, magic in (
        (1, 348, FIELDS_1, b"n+1"),
        (2, 540, FIELDS_2, b"n+2\0\r\n\x1a\n"),
    ):
        for byte_order in orders:
            if len(start) < size or int(np.frombuffer(start, f"{byte_order}i4", 1)[0]) != size:
                continue
            layout = np.dtype(
                {
                    "names": list(fields),
                    "formats": [_in_order(kind, byte_order) for kind, _ in fields.values()],
                    "offsets": [offset for _, offset in fields.values()],
                    "itemsize": size,
                }
            )
            # A structured copy would drop the bytes between the fields, hence the bytearray.
            header = np.frombuffer(bytearray(start[:size]), layout)
            stored = bytes(header["magic"][0])
            if stored in (b"ni1", b"ni2\0\r\n\x1a\n"):
                raise _HeaderError("the voxels are in a separate .img file; save as one file")
            if stored != magic:
                raise _HeaderError(f"cannot be read as NIfTI: the magic word is {stored!r}")
            return header, version, byte_order
    raise _HeaderError(
        "cannot be read as NIfTI: the file does not start with 348 or 540, the size of a header, "
        "or ends within it"
    )


def _in_order(kind: str, byte_order: ByteOrder) -> str:
    return kind if kind.startswith("S") else f"{kind[:-2]}{byte_order}{kind[-2:]}"


def _check_shape(header: np.ndarray, warnings: list[str]) -> tuple[int, ...]:
    sizes = [int(size) for size in header["dim"][0]]
    if not 1 <= sizes[0] <= 7:
        raise _HeaderError(f"the number of axes, dim[0], must be 1 to 7, got {sizes[0]}")
    shape = tuple(sizes[1 : sizes[0] + 1])
    if len(shape) > 3 and set(shape[3:]) <= {0, 1}:  # one volume, however many axes say so
        if 0 in shape[3:]:
            warnings.append(f"the axes after the third, {shape[3:]}, are taken as one volume.")
        shape = (*shape[:3], 1)
        header["dim"][0, :5] = 4, *shape
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise _HeaderError(
            f"expected a 3-D scan with no empty axis, got shape {shape}; save one volume as a file"
        )
    return shape


def _check_type(header: np.ndarray, byte_order: ByteOrder, warnings: list[str]) -> np.dtype:
    code, bits = int(header["datatype"][0]), int(header["bitpix"][0])
    if code not in NUMBER_TYPES:
        kind = OTHER_TYPES.get(code, f"unknown (datatype {code})")
        raise _HeaderError(
            f"expected one real number per voxel, got {kind} voxels; save the scan in grey values"
        )
    dtype = np.dtype(NUMBER_TYPES[code]).newbyteorder(byte_order)
    if bits != 8 * dtype.itemsize:
        warnings.append(f"bitpix is {bits}, but {dtype.name} voxels have {8 * dtype.itemsize}.")
        header["bitpix"] = 8 * dtype.itemsize
    return dtype


def _check_offset(header: np.ndarray, version: int) -> int:
    offset, least = float(header["vox_offset"][0]), (352, 544)[version - 1]
    if offset == 0:  # written by some programs for "right after the header"
        header["vox_offset"] = offset = least
    if not least <= offset <= LARGEST_OFFSET or offset != int(offset):
        raise _HeaderError(
            f"the voxels must start at a whole byte from {least} to {LARGEST_OFFSET}, got "
            f"vox_offset {offset:g}"
        )
    return int(offset)


def _check_size(
    shape: tuple[int, ...], dtype: np.dtype, offset: int, file_bytes: int, compressed: bool
) -> None:
    """Compare what the header announces with the budget, then with the file's size."""
    volume = math.prod(shape[:3]) * max(dtype.itemsize, 4)  # decoded to float32
    if volume > VOXEL_BUDGET:
        raise _HeaderError(
            f"one volume may take {_size(VOXEL_BUDGET)} once decoded, but shape {shape} of "
            f"{dtype.name} takes {_size(volume)}; crop or resample it"
        )
    announced = offset + math.prod(shape) * dtype.itemsize
    if announced > file_bytes * (LARGEST_RATIO if compressed else 1):
        raise _HeaderError(
            f"cannot be read as NIfTI: the header announces {_size(announced)}, but the file of "
            f"{_size(file_bytes)} ends before; copy it again"
        )
    if announced > max(SUSPECT_BYTES, file_bytes * SUSPECT_RATIO):
        raise _HeaderError(
            f"{_size(file_bytes)} that unpack to {_size(announced)} are no scan but a bomb: at "
            f"most {SUSPECT_RATIO} to 1 is read from {_size(SUSPECT_BYTES)} on; unpack it first"
        )


def _check_scaling(header: np.ndarray, dtype: np.dtype, warnings: list[str]) -> None:
    slope, inter = float(header["scl_slope"][0]), float(header["scl_inter"][0])
    if slope == 0:  # the standard's way to say that nothing is scaled
        return
    if math.isnan(slope):
        warnings.append("scl_slope is NaN: the stored values are taken unscaled.")
        header["scl_slope"], header["scl_inter"] = 1, 0
        return
    largest = 1.0 if dtype.kind == "f" else float(2 ** (8 * dtype.itemsize))
    if (
        not SCALES[0] <= abs(slope) <= SCALES[1]
        or not math.isfinite(inter)
        or abs(slope) * largest + abs(inter) > SCALES[1]
    ):
        raise _HeaderError(
            f"scaling must give finite numbers, got scl_slope {slope:g} and scl_inter {inter:g}; "
            "save the scan with slope 1"
        )


def _check_geometry(header: np.ndarray, warnings: list[str]) -> None:
    sizes = header["pixdim"][0, 1:4]
    unit = int(header["xyzt_units"][0]) & 7
    if unit not in UNITS:
        warnings.append(f"the unit of length, code {unit}, is unknown and taken as mm.")
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise _HeaderError(
            f"voxel sizes must be above 0, got pixdim {sizes.tolist()}; volumes in mL would be "
            "wrong, so write the true sizes into the header"
        )
    if (sizes < 0).any():
        warnings.append(f"voxel sizes below 0, {sizes.tolist()}, are taken as positive.")
        sizes[...] = np.abs(sizes)
    _check_voxel_sizes(sizes, UNITS.get(unit, 1.0))
    for form in ("qform_code", "sform_code"):
        code = int(header[form][0])
        if not 0 <= code <= 5:
            warnings.append(f"{form} {code} has no meaning; this form is left out.")
            header[form] = 0
    if header["qform_code"][0] == header["sform_code"][0] == 0:
        warnings.append("the header says nothing about orientation; left and right may be swapped.")
    if header["pixdim"][0, 0] not in (-1, 1):
        header["pixdim"][0, 0] = 1  # the sign of the third axis; the standard reads 0 as 1
    _shorten_quaternion(header)


def _shorten_quaternion(header: np.ndarray) -> None:
    """Put right a quaternion that rounding made longer than that of any rotation."""
    parts = header["quatern"][0, :3]  # a view
    with np.errstate(over="ignore", invalid="ignore"):  # to infinity, which is above 1 too
        length = float(np.square(parts, dtype=float).sum())
    if 1 + 3 * float(np.finfo(parts.dtype).eps) < length <= LONGEST_QUATERNION:
        parts[...] = parts / math.sqrt(length)


def _check_voxel_sizes(sizes: np.ndarray, unit: float) -> None:
    """Refuse sizes that are impossible both in the header's unit and as mm."""
    low, high = VOXEL_SIZES_MM
    with np.errstate(over="ignore"):  # to infinity, which is above every limit
        in_unit = sizes.astype(np.float64) * unit
    if not any(((mm >= low) & (mm <= high)).all() for mm in (in_unit, sizes)):
        raise _HeaderError(
            f"voxels must measure {low:g} to {high:g} mm, got {in_unit.tolist()} mm; "
            "write the true sizes and unit into the header"
        )


def _size(count: float) -> str:
    """Bytes for people, such as `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
