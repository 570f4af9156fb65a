"""Crafted and mutated headers: each is refused or repaired, in milliseconds, in one sentence.

The mutation test runs 300 cases; `FUZZ_CASES=10000 pytest tests/test_header_guard.py` runs more.
"""

import gzip
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_rasalore.header_guard import FIELDS_1, FIELDS_2, VolumeError, check_header
from modeling_rasalore.volume_writing import write_volume
from modeling_rasalore.volumes import read_facts, read_volume

SECONDS, MEBIBYTES = 1.0, 200
AFFINE = np.array([[-2.0, 0, 0, 9], [0, -1.5, 0, 8], [0, 0, 3, -7], [0, 0, 0, 1]])
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
    "sform NaN": ("a.nii", lambda: with_field("srow", np.nan, first=5), "affine must be finite"),
    "quaternion 1e200": (
        "a.nii",
        lambda: with_field("quatern", 1e200, version=2, also={"sform_code": 0}),
        "affine must be a rotation",
    ),
    "sform without an axis": ("a.nii", lambda: with_field("srow", 0, first=10), "affine"),
    "plain file named .gz": ("a.nii.gz", lambda: SCAN, r"end in \.nii$"),
    "gzip named .nii": ("a.nii", lambda: gzip.compress(SCAN), r"end in \.nii\.gz"),
    "header of a pair": ("a.nii", lambda: SCAN.replace(b"n+1", b"ni1"), "separate .img"),
    "no magic word": ("a.nii", lambda: SCAN.replace(b"n+1", b"abc"), "magic word"),
    "another format": ("a.nii", lambda: b"DICM" * 200, "does not start with 348"),
    "an empty file": ("a.nii", lambda: b"", "the file is empty"),
    "another ending": ("a.mgz", lambda: gzip.compress(SCAN), "convert it to NIfTI"),
}
# file name, content, what the warning says, None where nothing needs saying
REPAIRED: dict[str, tuple[str, Callable[[], bytes], str | None]] = {
    "slope NaN": ("a.nii", lambda: with_field("scl_slope", np.nan), "taken unscaled"),
    "slope 0": ("a.nii", lambda: with_field("scl_slope", 0), None),
    "wrong bitpix": ("a.nii", lambda: with_field("bitpix", 64), "bitpix is 64"),
    "pixdim below 0": ("a.nii", lambda: with_field("pixdim", -2, first=1), "taken as positive"),
    "unknown unit": ("a.nii", lambda: with_field("xyzt_units", 7), "code 7"),
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


@contextmanager
def small_and_fast() -> Iterator[None]:
    """Fail when what runs inside computes over SECONDS or allocates over MEBIBYTES."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds < SECONDS
    assert peak < MEBIBYTES * 2**20


@pytest.mark.parametrize("case", REFUSED)
def test_a_crafted_file_is_refused_in_one_sentence_at_no_cost(tmp_path: Path, case: str) -> None:
    name, make, sentence = REFUSED[case]
    (tmp_path / name).write_bytes(make())
    with small_and_fast(), pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert message.count("\n") == 0
    assert message.endswith(".")

    assert re.search(sentence, message.removesuffix(".")), message


@pytest.mark.parametrize("case", REPAIRED)
def test_a_file_that_can_be_put_right_is_read_and_the_repair_said(
    tmp_path: Path, case: str
) -> None:
    name, make, sentence = REPAIRED[case]
    (tmp_path / name).write_bytes(make())
    with small_and_fast():
        volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.slices.transpose(2, 1, 0).ravel(), np.arange(336))
    assert volume.spacing == (3.0, 1.5, 2.0)
    assert [sentence in warning for warning in volume.warnings] == [True] * (sentence is not None)


def test_a_header_without_any_form_warns_about_left_and_right(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(with_field("qform_code", 0, 0))
    (tmp_path / "b.nii").write_bytes(with_field("sform_code", 0))
    assert "left and right" not in " ".join(check_header(tmp_path / "b.nii").warnings)
    raw = bytearray(with_field("sform_code", 0))
    raw[252:254] = bytes(2)
    (tmp_path / "a.nii").write_bytes(raw)
    assert "left and right" in " ".join(check_header(tmp_path / "a.nii").warnings)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_good_header_passes_unchanged(tmp_path: Path, version: int, byte_order: str) -> None:
    raw = scan_bytes(version=version, byte_order=byte_order)
    (tmp_path / "a.nii").write_bytes(raw)
    header = check_header(tmp_path / "a.nii")
    assert header.content == raw[: len(header.content)]
    assert (header.version, header.byte_order, header.shape) == (version, byte_order, (8, 7, 6))
    assert header.warnings == ()
    assert read_volume(tmp_path / "a.nii").slices.max() == 335


def test_the_header_alone_tells_what_a_scan_is(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(scan_bytes(np.zeros((4, 5, 6, 2), np.uint8)))
    facts = read_facts(tmp_path / "a.nii")
    assert (facts.shape, facts.spacing, facts.axis_codes) == ((6, 5, 4), (3.0, 1.5, 2.0), "LPS")
    assert (facts.volumes, facts.dtype, facts.warnings) == (2, "uint8", ())


def test_a_large_blank_mask_is_no_bomb(tmp_path: Path) -> None:
    raw = with_field("dim", 3, 512, 512, 400)  # 100 MiB of zeros in 100 KiB
    raw = raw[:70] + struct.pack("<hh", 2, 8) + raw[74:]
    (tmp_path / "a.nii.gz").write_bytes(zeros(100, raw))
    assert check_header(tmp_path / "a.nii.gz").shape == (512, 512, 400)


# Mutations: numbers at their limits in the fields that matter, and bytes anywhere.

FLOATS = [0.0, -1.0, 1e-40, 1e38, -3e38, np.nan, np.inf, -np.inf, 352.5, 2.0**31, 0.7]
INTEGERS = [0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 255, 512, 1024, 2304, 32767, -32768, 2**31 - 1, 2**62]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file name and a valid file of which up to five places were overwritten."""
    version, byte_order = draw(st.sampled_from([1, 2])), draw(st.sampled_from("<>"))
    kinds = st.sampled_from([np.uint8, np.int16, np.float32, np.float64])
    data = np.arange(336).reshape(8, 7, 6).astype(draw(kinds))
    raw = bytearray(scan_bytes(data, version, byte_order))
    fields = (FIELDS_1, FIELDS_2)[version - 1]
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            kind, place = fields[draw(st.sampled_from(sorted(fields)))]
            number = np.dtype(kind[-2:]).newbyteorder(byte_order)
            if number.kind == "S":
                number = np.dtype("u1")
            values = FLOATS if number.kind == "f" else INTEGERS
            count = int(kind[:-2] or 1) if kind[0] != "S" else 4
            with np.errstate(over="ignore"):
                value = np.array(draw(st.sampled_from(values))).astype(number).tobytes()
            place += number.itemsize * draw(st.integers(0, count - 1))
        else:
            place, value = draw(st.integers(0, 560)), draw(st.binary(min_size=1, max_size=8))
        raw[place : place + len(value)] = value
    whole = bytes(raw[: draw(st.integers(300, len(raw)))] if draw(st.booleans()) else raw)
    return ("a.nii.gz", gzip.compress(whole, 1)) if draw(st.booleans()) else ("a.nii", whole)


@settings(max_examples=int(os.environ.get("FUZZ_CASES", "300")))
@given(mutated=mutations())
def test_a_mutated_header_is_refused_in_one_sentence_or_read_whole(
    tmp_path_factory: pytest.TempPathFactory, mutated: tuple[str, bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / mutated[0]
    path.write_bytes(mutated[1])
    with small_and_fast():
        try:
            channel = 0 if read_facts(path).volumes > 1 else None
            volume = read_volume(path, channel)
        except VolumeError as refused:
            assert str(refused).startswith(f"{path}: ") and "\n" not in str(refused)
            return
    assert np.isfinite(volume.slices).all()
    assert volume.slices.shape == read_facts(path).shape
    copy = write_volume(folder / "copy.nii", volume.slices, volume, np.float32)
    again = read_volume(copy)
    assert np.array_equal(again.affine, volume.affine)
    assert np.array_equal(again.slices, volume.slices)
    assert again.spacing == volume.spacing
