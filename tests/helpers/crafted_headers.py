"""Scan files with crafted headers: those that are refused, and those that are repaired."""

import gzip
import struct
from collections.abc import Callable, Mapping

import nibabel as nib
import numpy as np

from modeling_rasalore.scans.header_guard import FIELDS_1, FIELDS_2

AFFINE = np.array([[-4.0, 0, 0, 9], [0, -3, 0, 8], [0, 0, 5, -7], [0, 0, 0, 1]])
KINDS = {1: nib.Nifti1Image, 2: nib.Nifti2Image}


def scan_bytes(data: np.ndarray | None = None, version: int = 1, byte_order: str = "<") -> bytes:
    """A whole, valid file of 8 x 7 x 6 voxels."""
    data = np.arange(336, dtype=np.int16).reshape(8, 7, 6) if data is None else data
    header = KINDS[version].header_class(endianness=byte_order)
    header.set_data_dtype(data.dtype)
    image = KINDS[version](data, AFFINE, header)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    return image.to_bytes()


def with_field(
    name: str,
    *values: float,
    first: int = 0,
    version: int = 1,
    also: Mapping[str, float] | None = None,
) -> bytes:
    """A valid file whose header field holds `values` from its place `first` on."""
    raw = bytearray(scan_bytes(version=version))
    for other, value in (also or {}).items():
        _put(raw, other, version, 0, value)
    _put(raw, name, version, first, *values)
    return bytes(raw)


def _put(raw: bytearray, name: str, version: int, first: int, *values: float) -> None:
    kind, offset = (FIELDS_1, FIELDS_2)[version - 1][name]
    number = np.dtype(f"<{kind[-2:]}")
    packed = np.array(values).astype(number).tobytes()
    place = offset + first * number.itemsize
    raw[place : place + len(packed)] = packed


def zeros(count: int, header: bytes) -> bytes:
    """The header with `count` MiB of zeros behind it, gzipped; gzip files may be concatenated."""
    return gzip.compress(header[:352]) + count * gzip.compress(bytes(2**20))


def rgb() -> np.ndarray:
    return np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])


def nested_extension() -> bytes:
    """A header extension that claims 2 GiB, before voxels that are all there."""
    raw = scan_bytes()
    extension = struct.pack("<ii", 2**31 - 16, 4) + b"DOE JANE"
    raw = raw[:348] + b"\1\0\0\0" + extension + raw[352:]
    return raw[:108] + struct.pack("<f", 352 + len(extension)) + raw[112:]


SCAN = scan_bytes()
# file name, content, what the refusal says
REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "huge dims": ("a.nii", lambda: with_field("dim", 3, 32767, 32767, 8), "crop or resample"),
    "huge dims, 64-bit": (
        "a.nii",
        lambda: with_field("dim", 3, 2**40, 2**40, 2**40, version=2),
        "crop or resample",
    ),
    "huge dims, gzip": (
        "a.nii.gz",
        lambda: gzip.compress(with_field("dim", 3, 32767, 32767, 8)),
        "crop or resample",
    ),
    "more volumes than the file": ("a.nii", lambda: with_field("dim", 4, 8, 7, 6, 9999), "ends"),
    "more than deflate can hold": (
        "a.nii.gz",
        lambda: gzip.compress(with_field("dim", 3, 600, 600, 600)),
        "ends before",
    ),
    "1 GiB of zeros": (
        "a.nii.gz",
        lambda: zeros(1024, with_field("dim", 3, 1024, 1024, 500)),
        "crop or resample",
    ),
    "1 GiB of zeros within budget": (
        "a.nii.gz",
        lambda: zeros(1024, with_field("dim", 4, 500, 500, 500, 4)),
        "a bomb",
    ),
    "truncated body": ("a.nii", lambda: SCAN[:-1], "copy it again"),
    "truncated header": ("a.nii", lambda: SCAN[:200], "ends within it"),
    "cut gzip": ("a.nii.gz", lambda: gzip.compress(SCAN)[:-20], "cannot be read as NIfTI"),
    "cut gzip header": ("a.nii.gz", lambda: gzip.compress(SCAN)[:12], "cannot be read as NIfTI"),
    "damaged gzip": ("a.nii.gz", lambda: b"\x1f\x8b" + SCAN, "cannot be read as NIfTI"),
    "slope 3e38": ("a.nii", lambda: with_field("scl_slope", 3e38), "save the scan with slope 1"),
    "slope infinite": ("a.nii", lambda: with_field("scl_slope", np.inf), "finite"),
    "slope that vanishes": ("a.nii", lambda: with_field("scl_slope", 1e-40), "finite"),
    "intercept infinite": ("a.nii", lambda: with_field("scl_inter", np.inf), "finite"),
    "pixdim 0": ("a.nii", lambda: with_field("pixdim", 0, first=2), "mL would be wrong"),
    "pixdim NaN": ("a.nii", lambda: with_field("pixdim", np.nan, first=3), "above 0"),
    "pixdim 1e20": ("a.nii", lambda: with_field("pixdim", 1e20, first=1), "0.0001 to 10000 mm"),
    "empty axis": ("a.nii", lambda: with_field("dim", 3, 0, 8, 8), "no empty axis"),
    "negative axis": ("a.nii", lambda: with_field("dim", 3, -8, 7, 6), "no empty axis"),
    "2-D": ("a.nii", lambda: with_field("dim", 2), "3-D scan"),
    "5-D": ("a.nii", lambda: with_field("dim", 5, 2, 2, 2, 2, 2), "3-D scan"),
    "dim[0] = 9": ("a.nii", lambda: with_field("dim", 9), "must be 1 to 7, got 9"),
    "dim[0] = -1": ("a.nii", lambda: with_field("dim", -1), "must be 1 to 7, got -1"),
    "complex64": ("a.nii", lambda: scan_bytes(np.ones((4, 4, 4), np.complex64)), "complex"),
    "RGB24": ("a.nii", lambda: scan_bytes(rgb()), "RGB"),
    "unknown datatype": ("a.nii", lambda: with_field("datatype", 999), "unknown"),
    "1-bit voxels": ("a.nii", lambda: with_field("datatype", 1), "bit"),
    "128-bit floats": ("a.nii", lambda: with_field("datatype", 1536), "128-bit"),
    "vox_offset -1": ("a.nii", lambda: with_field("vox_offset", -1), "vox_offset -1"),
    "vox_offset in the header": ("a.nii", lambda: with_field("vox_offset", 16), "from 352"),
    "vox_offset 352.5": ("a.nii", lambda: with_field("vox_offset", 352.5), "whole byte"),
    "vox_offset NaN": ("a.nii", lambda: with_field("vox_offset", np.nan), "vox_offset nan"),
    "vox_offset 2 GiB": ("a.nii", lambda: with_field("vox_offset", 2.0**31), "whole byte"),
    "sform NaN": (
        "a.nii",
        lambda: with_field("srow", np.nan, first=5, also={"qform_code": 0}),
        "affine must be finite",
    ),
    "no usable form": (
        "a.nii",
        lambda: with_field("srow", np.nan, first=5, also={"quatern": 2}),
        "affine must be finite, .* and the affine must be a rotation",
    ),
    "a tenth too long a quaternion": (
        "a.nii",
        lambda: with_field("quatern", 0, 0, 1.1, also={"sform_code": 0}),
        "affine must be a rotation, got quaternion",
    ),
    "quaternion 1e200": (
        "a.nii",
        lambda: with_field("quatern", 1e200, version=2, also={"sform_code": 0}),
        "affine must be a rotation",
    ),
    "sform without an axis": (
        "a.nii",
        lambda: with_field("srow", 0, first=10, also={"qform_code": 0}),
        "affine must map voxels to 3-D",
    ),
    "micrometres called mm": (
        "a.nii",
        lambda: with_field("srow", -4000, 0, 0, 9, 0, -3000, 0, 8, 0, 0, 5000, -7),
        "30000 x 21000 x 32000 mm .* same numbers in micrometres make 30 x 21 x 32 mm",
    ),
    "voxels of 1e38 m": (
        "a.nii",
        lambda: with_field("pixdim", 1e38, first=1, also={"xyzt_units": 1}),
        "voxels must measure 0.0001 to 10000 mm",
    ),
    "voxels of 1e308 m": (
        "a.nii",
        lambda: with_field("pixdim", 1e308, first=1, version=2, also={"xyzt_units": 1}),
        "voxels must measure 0.0001 to 10000 mm",
    ),
    "metres called mm": (
        "a.nii",
        lambda: with_field("srow", -4e-3, 0, 0, 0, 0, -3e-3, 0, 0, 0, 0, 5e-3, 0),
        "got 0.03 x 0.021 x 0.032 mm .* same numbers in metres make 30 x 21 x 32 mm",
    ),
    "a head of 800 mm": (
        "a.nii",
        lambda: with_field("srow", -100, 0, 0, 0, 0, -3, 0, 0, 0, 0, 5, 0),
        "a head measures 20 to 600 mm along each axis, got 30 x 21 x 800 mm",
    ),
    "plain file named .gz": ("a.nii.gz", lambda: SCAN, r"end in \.nii$"),
    "gzip named .nii": ("a.nii", lambda: gzip.compress(SCAN), r"end in \.nii\.gz"),
    "header of a pair": ("a.nii", lambda: SCAN.replace(b"n+1", b"ni1"), "separate .img"),
    "no magic word": ("a.nii", lambda: SCAN.replace(b"n+1", b"abc"), "magic word"),
    "another format": ("a.nii", lambda: b"DICM" * 200, "its content is DICOM; rename"),
    "an empty file": ("a.nii", lambda: b"", "the file is empty"),
    "another ending": ("a.mgz", lambda: gzip.compress(SCAN), "rename the file to end in .nii.gz"),
}
# file name, content, what the warning says, None where nothing needs saying
REPAIRED: dict[str, tuple[str, Callable[[], bytes], str | None]] = {
    "slope NaN": ("a.nii", lambda: with_field("scl_slope", np.nan), "taken unscaled"),
    "slope 0": ("a.nii", lambda: with_field("scl_slope", 0), None),
    "wrong bitpix": ("a.nii", lambda: with_field("bitpix", 64), "bitpix is 64"),
    "pixdim below 0": ("a.nii", lambda: with_field("pixdim", -4, first=1), "taken as positive"),
    "unknown unit": ("a.nii", lambda: with_field("xyzt_units", 7), "code 7"),
    "sform NaN, good qform": (
        "a.nii",
        lambda: with_field("srow", np.nan, first=5),
        "got the sform .* so the qform is used",
    ),
    "sform without an axis, good qform": (
        "a.nii",
        lambda: with_field("srow", 0, first=10),
        "so the qform is used",
    ),
    "quaternion rounded up": (
        "a.nii",
        lambda: with_field("quatern", 0, 0, 1.000004, also={"sform_code": 0}),
        None,
    ),
    "quaternion rounded up, 64-bit": (
        "a.nii",
        lambda: with_field("quatern", 0, 0, 1.000004, version=2, also={"sform_code": 0}),
        None,
    ),
    "5-D with one volume": ("a.nii", lambda: with_field("dim", 5, 8, 7, 6, 1, 1), None),
    "7-D with one volume": ("a.nii", lambda: with_field("dim", 7, 8, 7, 6, 1, 1, 0, 1), "as one"),
    "no volumes": ("a.nii", lambda: with_field("dim", 4, 8, 7, 6, 0), "taken as one volume"),
    "gzip members within the header": (
        "a.nii.gz",
        lambda: b"".join(gzip.compress(SCAN[i : i + 50]) for i in range(0, len(SCAN), 50)),
        None,
    ),
    "gzip members with zeros between": (
        "a.nii.gz",
        lambda: gzip.compress(SCAN[:9]) + bytes(999) + gzip.compress(SCAN[9:]) + bytes(9),
        None,
    ),
    "micrometres": ("a.nii", lambda: with_field("xyzt_units", 3), "micrometre, in which the scan"),
    "metres": ("a.nii", lambda: with_field("xyzt_units", 1), "metre, in which .* 32000 mm long"),
    "pixdim of other voxels": (
        "a.nii",
        lambda: with_field("pixdim", 4, 3, 7, first=1, also={"qform_code": 0}),
        "pixdim says voxels of 4 x 3 x 7 mm, but the sform, which is used, 4 x 3 x 5 mm",
    ),
    "forms that disagree": (
        "a.nii",
        lambda: with_field("pixdim", 4, 3, 7, first=1),
        "disagree by up to 2 voxels: .* says 5 x 3 x 4 mm stored LPS, the qform 7 x 3 x 4 mm",
    ),
    "mirrored forms": (
        "a.nii",
        lambda: with_field("pixdim", -1),
        "stored LPS, the qform 5 x 3 x 4 mm stored LPI; left and right may be swapped",
    ),
    "unknown form": ("a.nii", lambda: with_field("qform_code", 77), "qform_code 77"),
    "qfac 0": ("a.nii", lambda: with_field("pixdim", 0), None),
    "vox_offset 0": ("a.nii", lambda: with_field("vox_offset", 0), None),
    "unaligned vox_offset": (
        "a.nii",
        lambda: with_field("vox_offset", 353)[:352] + b"\0" + SCAN[352:],
        None,
    ),
    "extension of 2 GiB": ("a.nii", nested_extension, None),
    "extension of 2 GiB, gzip": ("a.nii.gz", lambda: gzip.compress(nested_extension()), None),
    "bytes after the voxels": ("a.nii", lambda: SCAN + bytes(999), None),
}
