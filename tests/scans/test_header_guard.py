"""Crafted and mutated headers: each is refused or repaired, in milliseconds, in one sentence.

It runs 300 cases; `FUZZ_CASES=10000 pytest tests/scans/test_header_guard.py` runs more.
"""

import gzip
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from crafted_headers import REFUSED, REPAIRED, scan_bytes, with_field, zeros
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_rasalore.scans.header_guard import (
    FIELDS_1,
    FIELDS_2,
    CheckedHeader,
    VolumeError,
    open_checked,
)
from modeling_rasalore.scans.volume_writing import write_volume
from modeling_rasalore.scans.volumes import read_facts, read_volume

SECONDS, MEBIBYTES = 1.0, 200


def check_header(path: Path) -> CheckedHeader:
    with open_checked(path) as (_, header):
        return header


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
    assert volume.spacing == (5.0, 3.0, 4.0)
    assert [bool(re.search(sentence or "", warning)) for warning in volume.warnings] == [True] * (
        sentence is not None
    )


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
    (tmp_path / "a.nii").write_bytes(scan_bytes(np.zeros((7, 8, 6, 2), np.uint8)))
    facts = read_facts(tmp_path / "a.nii")
    geometry = facts.geometry
    assert (geometry.shape, geometry.spacing) == ((6, 8, 7), (5.0, 3.0, 4.0))
    assert geometry.axis_codes == "LPS"
    assert (facts.channels, facts.dtype, facts.warnings) == (2, "uint8", ())


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
            channel = 0 if read_facts(path).channels > 1 else None
            volume = read_volume(path, channel)
        except VolumeError as refused:
            assert str(refused).startswith(f"{path}: ") and "\n" not in str(refused)
            return
    assert np.isfinite(volume.slices).all()
    assert volume.slices.shape == read_facts(path).geometry.shape
    copy = write_volume(folder / "copy.nii", volume.slices, volume, np.float32)
    again = read_volume(copy)
    assert np.array_equal(again.affine, volume.affine)
    assert np.array_equal(again.slices, volume.slices)
    assert again.spacing == volume.spacing
