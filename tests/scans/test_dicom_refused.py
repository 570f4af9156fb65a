"""DICOM series and zips that cannot be right: one sentence each, whatever is wrong with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_rasalore.scans.reading import read_scan
from modeling_rasalore.scans.volumes import VolumeError

pydicom = pytest.importorskip("pydicom")
from dicom_files import AXIAL, Change, edit, voxels, write_series, zip_bomb, zip_files  # noqa: E402


def rewrite(content: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        path = sorted(folder.iterdir())[2]
        path.write_bytes(content(path.read_bytes()))

    return change


def claim_syntax(uid: bytes) -> Change:
    plain = b"1.2.840.10008.1.2.1\0"
    return rewrite(lambda raw: raw.replace(plain, uid.ljust(len(plain), b"\0")))


def deflate(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "IM0_0")
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / "IM0_0")


def keep(*indices: int) -> Change:
    def change(folder: Path) -> None:
        for index, path in enumerate(sorted(folder.iterdir())):
            if index not in indices:
                path.unlink()

    return change


# What is done to a good series, what the refusal says. Files sort as slices 0, 3, 1, 4, 2.
REFUSED: dict[str, tuple[Change, str]] = {
    "a slice is missing": (keep(0, 1, 3, 4), "missing or unevenly spaced"),
    "two slices at one place": (edit(0, ImagePositionPatient=[1, 2, -61]), "unevenly|one place"),
    "no position": (edit(1, ImagePositionPatient=None), "lacks ImagePositionPatient"),
    "no spacing": (edit(1, PixelSpacing=None), "lacks PixelSpacing"),
    "no number in a position": (edit(1, ImagePositionPatient=[None, 2, 3]), "usable number|read"),
    "spacing 1 % off": (edit(1, PixelSpacing=[1.111, 0.909]), "differ in size, spacing"),
    "spacing 0": (edit(1, PixelSpacing=[0, 1]), "not a usable number"),
    "another size": (edit(1, Rows=3), "differ in size"),
    "another direction": (edit(1, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "differ in"),
    "several frames": (edit(0, NumberOfFrames=40), "40 slices in one file .* convert it with dcm2"),
    "a mosaic": (edit(0, ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "is a mosaic, many slices"),
    "a mosaic of Siemens": (
        edit(0, Manufacturer="SIEMENS", private=(0x19, "SIEMENS MR HEADER", 0xA, "US", 24)),
        "IM0_0 is a mosaic",
    ),
    "colours": (edit(0, SamplesPerPixel=3, PhotometricInterpretation="RGB"), "grey value"),
    "dark for high, some": (edit(0, PhotometricInterpretation="MONOCHROME1"), "some slices store"),
    "JPEG": (claim_syntax(b"1.2.840.10008.1.2.4"), "compressed; decompress them"),
    "deflated": (deflate, "compressed; decompress them"),
    "RLE that is none": (claim_syntax(b"1.2.840.10008.1.2.5"), "cannot be read as DICOM"),
    "cut pixels": (rewrite(lambda raw: raw[:-9]), "cannot be read as DICOM"),
    "claims a huge slice": (edit(0, Rows=65535, Columns=65535), "differ in size"),
    "noise after the preamble": (
        rewrite(lambda raw: raw[:132] + bytes(range(256)) * 9),
        "compressed|cannot be read",
    ),
    "no image": (
        lambda folder: [p.write_bytes(b"none" * 99) for p in folder.iterdir()],
        "DICOM files right in it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_series_that_cannot_be_right_is_refused_in_one_sentence(
    tmp_path: Path, case: str
) -> None:
    change, sentence = REFUSED[case]
    folder = write_series(tmp_path / "series", voxels(), AXIAL)
    change(folder)
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_scan(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"../outside": b"x"}, "stay inside it"),
        ({"a/../../outside": b"x"}, "stay inside it"),
        ({"/etc/outside": b"x"}, "stay inside it"),
        ({"C:\\outside": b"x"}, "stay inside it"),
        ({"readme.txt": b"x"}, "no DICOM file"),
        ({}, "no DICOM file"),
    ],
)
def test_an_archive_that_reaches_outside_or_holds_no_series_is_refused(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    path = zip_files(tmp_path / "a.zip", members)
    with pytest.raises(VolumeError, match=sentence):
        read_scan(path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (70, r"got 70 files and 2[.]19 GiB; pack one"),
        (5, r"unpack to 300 times its size, got \d{4}; pack"),
    ],
)
def test_an_archive_over_a_budget_is_refused_unread(
    tmp_path: Path, files: int, sentence: str
) -> None:
    with pytest.raises(VolumeError, match=sentence):
        read_scan(zip_bomb(tmp_path / "bomb.zip", files))


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK nonsense")
    with pytest.raises(VolumeError, match="it is no zip archive"):
        read_scan(tmp_path / "a.zip")


@settings(max_examples=60)
@given(data=st.data())
def test_a_mutated_file_is_refused_in_one_sentence_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.is_dir():
        write_series(folder, voxels()[:, :, :3], AXIAL)
        (folder / "original").write_bytes((folder / "IM0_0").read_bytes())
        (folder / "original").rename(folder.with_suffix(".original"))
    raw = bytearray(folder.with_suffix(".original").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(132, len(raw) - 1))
        raw[place : place + 4] = data.draw(st.binary(min_size=1, max_size=4))
    (folder / "IM0_0").write_bytes(raw[: data.draw(st.integers(400, len(raw)))])
    try:
        volume = read_scan(folder)
    except VolumeError as refused:
        assert str(refused).startswith(f"{folder}: ") and "\n" not in str(refused)
        return
    assert np.isfinite(volume.slices).all()
