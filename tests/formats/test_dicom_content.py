"""DICOM files without their start, compressed, damaged or made to fill the memory."""

import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore.formats import dicom_content
from modeling_rasalore.formats.stored_voxels import VOXEL_BUDGET, FormatError
from modeling_rasalore.scans.reading import read_scan
from modeling_rasalore.scans.volumes import VolumeError

pydicom = pytest.importorskip("pydicom")
from dicom_files import write_series  # noqa: E402
from odd_formats import JPEG_LOSSLESS, drop_preamble, mutations, write_enhanced  # noqa: E402
from pydicom import uid  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

AXIAL = np.diag([-0.9, -1.1, 3.0, 1.0])
MUTATIONS = int(os.environ.get("RASALORE_DICOM_MUTATIONS", "100"))


def voxels(kind: type = np.int16, low: int = -50) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 1000, (8, 7, 5)).astype(kind)


def compress(path: Path, syntax: str, frame: bytes | None = None) -> None:
    """Write a file anew in another syntax, with a frame of one's own or by pydicom."""
    dataset = pydicom.dcmread(path)
    if frame is None:
        dataset.compress(syntax)
    else:
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)


@pytest.mark.parametrize(
    ("syntax", "kind", "low"),
    [
        *((syntax, np.uint16, 0) for syntax in (uid.RLELossless, uid.JPEGLSLossless)),
        *((syntax, np.int16, -50) for syntax in (uid.RLELossless, uid.JPEG2000Lossless)),
        (uid.JPEG2000Lossless, np.uint16, 0),  # JPEG-LS knows no negative values
    ],
)
def test_a_compressed_series_reads_as_the_plain_one(
    tmp_path: Path, syntax: str, kind: type, low: int
) -> None:
    data = np.random.default_rng(0).integers(low, 1000, (40, 36, 3)).astype(kind)
    plain = read_scan(write_series(tmp_path / "plain", data, AXIAL))
    folder = write_series(tmp_path / "packed", data, AXIAL)
    for path in folder.iterdir():
        compress(path, syntax)
    packed = read_scan(folder)
    assert np.array_equal(packed.slices, plain.slices)
    assert packed.geometry.corners == pytest.approx(plain.geometry.corners)


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEGLossless])
def test_lossless_jpeg_reads_exactly(tmp_path: Path, syntax: str) -> None:
    plane = np.add.outer(np.arange(8) * 50, np.arange(7) * 7).astype(np.uint16)
    folder = write_series(tmp_path / "s", np.stack([plane] * 3, -1), AXIAL)
    plain = read_scan(folder)
    for path in folder.iterdir():
        compress(path, syntax, JPEG_LOSSLESS)
    assert np.array_equal(read_scan(folder).slices, plain.slices)


def test_a_file_that_was_compressed_with_loss_is_near(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    plane = np.add.outer(np.arange(64) * 2, np.arange(48)).astype(np.uint8)
    folder = write_series(tmp_path / "s", plane[:, :, None], AXIAL)
    plain = read_scan(folder)
    jpeg = BytesIO()
    Image.fromarray(plane.T).save(jpeg, "JPEG", quality=95)
    compress(next(folder.iterdir()), uid.JPEGBaseline8Bit, jpeg.getvalue())
    assert np.abs(read_scan(folder).slices - plain.slices).max() <= 3


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("count", [5, 2])
def test_files_without_their_first_132_bytes_are_read(
    tmp_path: Path, implicit: bool, count: int
) -> None:
    folder = write_series(tmp_path / "s", voxels(), AXIAL)
    whole = read_scan(folder)
    for path in sorted(folder.iterdir())[:count]:
        drop_preamble(path, implicit)
    scan = read_scan(folder)
    assert np.array_equal(scan.slices, whole.slices) and scan.warnings == whole.warnings


@pytest.mark.parametrize("start", [128, 132, 0])
def test_other_starts_are_read(tmp_path: Path, start: int) -> None:
    folder = write_series(tmp_path / "s", voxels(), AXIAL)
    whole = read_scan(folder)
    for path in folder.iterdir():  # without zeros, without both, or without the four letters
        content = path.read_bytes()
        path.write_bytes(content[start:] if start else content.replace(b"DICM", b"\0\0\0\0", 1))
    assert read_scan(folder).slices.shape == whole.slices.shape


@pytest.mark.parametrize(
    "content",
    [b"", b"none" * 99, bytes(2000), b"\x08\0" * 500, b"\x5c\x01\0\0" + bytes(344), b"DICM"],
)
def test_other_files_are_not_taken_for_dicom(content: bytes) -> None:
    assert dicom_content.with_preamble(content) is None


def test_a_missing_decoder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "s", voxels(), AXIAL)
    for path in folder.iterdir():
        compress(path, uid.JPEGLosslessSV1, JPEG_LOSSLESS)
    decoder = pydicom.pixels.get_decoder(uid.JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(VolumeError, match=r"JPEG Lossless.* pip install 'rasalore\[dicom\]'"):
        read_scan(folder)


def test_damaged_compressed_data_is_told_in_our_words(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", voxels(np.uint16, 0), AXIAL)
    for path in folder.iterdir():
        compress(path, uid.JPEG2000Lossless, codestream(7, 8, 1) + bytes(40))
    with pytest.raises(VolumeError, match=r"cannot be decompressed \(JPEG 2000.*; export the"):
        read_scan(folder)


def codestream(rows: int, columns: int, values: int) -> bytes:
    """The start of JPEG 2000 data that announces this many voxels."""
    size = struct.pack(
        ">HH8IH", 38 + 3 * values, 0, columns, rows, 0, 0, columns, rows, 0, 0, values
    )
    return b"\xff\x4f\xff\x51" + size + b"\x0f\1\1" * values + b"\xff\xd9"


LIES = {
    "more columns": (uid.JPEG2000Lossless, codestream(7, 65000, 1)),
    "many values": (uid.JPEG2000Lossless, codestream(7, 8, 16000)),
    "another JPEG": (uid.JPEGLosslessSV1, JPEG_LOSSLESS.replace(b"\0\7\0\x08", b"\xff\7\xff\x08")),
    "no size": (uid.JPEGLSLossless, b"\xff\xd8\xff\xd9"),
    "long RLE": (uid.RLELossless, bytes(64) + b"\x81\1" * 4000),
}


@pytest.mark.parametrize("lie", LIES)
def test_compressed_data_that_announces_more_than_its_header_is_refused(
    tmp_path: Path, lie: str
) -> None:
    folder = write_series(tmp_path / "s", voxels(np.uint16, 0), AXIAL)
    for path in folder.iterdir():
        compress(path, *LIES[lie])
    tracemalloc.start()
    with pytest.raises(VolumeError, match="a compressed slice") as caught:
        read_scan(folder)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{folder}: ")


def test_a_header_of_endless_items_is_refused_unparsed(tmp_path: Path) -> None:
    path = next(write_series(tmp_path / "s", voxels(), AXIAL).iterdir())
    content = path.read_bytes() + b"\xfe\xff\0\xe0\0\0\0\0" * 300_000
    with pytest.raises(FormatError, match="200000 items of sequences, got 300000"):
        dicom_content.read_header(content, ["Rows"])


@pytest.mark.parametrize("kind", ["plain", "compressed", "enhanced", "no preamble"])
def test_damaged_files_are_refused_in_one_sentence_or_read(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "s"
    if kind == "enhanced":
        write_enhanced(folder, voxels(), AXIAL)
    else:
        write_series(folder, voxels()[:, :, :2], AXIAL)
    path = sorted(folder.iterdir())[0]
    if kind == "compressed":
        compress(path, uid.JPEGLSLossless)
    if kind == "no preamble":
        drop_preamble(path)
    tracemalloc.start()
    for damaged in mutations(path.read_bytes(), MUTATIONS // 4, seed=len(kind)):
        path.write_bytes(damaged)
        try:
            assert np.isfinite(read_scan(folder).slices).all()
        except VolumeError as refused:
            assert str(refused).startswith(f"{folder}: ") and "\n" not in str(refused)
    assert tracemalloc.get_traced_memory()[1] < VOXEL_BUDGET
    tracemalloc.stop()
