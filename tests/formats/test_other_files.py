"""Scans of other programs: the voxels of the NIfTI file at its place, or one sentence."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from modeling_rasalore.formats import nrrd_files
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.reading import read_scan, read_scan_facts
from modeling_rasalore.scans.volume_writing import write_nifti, write_volume
from modeling_rasalore.scans.volumes import VolumeError, read_volume

pytest.importorskip("nrrd")
pytest.importorskip("pydicom")
from odd_formats import WRITERS, write_mgz, write_mhd, write_nhdr, write_nrrd

OBLIQUE = np.array(
    [[-1.8, 0.2, 0.31, 90.1], [0.3, -1.4, 0.2, 80.7], [0.11, 0.3, 2.9, -70.3], [0, 0, 0, 1]]
)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-50, 1000, (8, 7, 5)).astype(np.int16)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_reads_as_the_same_volume_as_its_nifti_file(tmp_path: Path, name: str) -> None:
    turned = np.array([[-1.6, 1.2, 0, 9], [-1.2, -1.6, 0, 8], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    affine = turned if name.endswith("mgz") else OBLIQUE  # MGH holds rotations only
    nifti = read_volume(write_nifti(tmp_path / "a.nii", voxels(), affine))
    path = WRITERS[name](tmp_path / name, voxels(), affine)
    scan = read_scan(path)
    assert np.array_equal(scan.slices, nifti.slices)
    assert np.allclose(scan.geometry.slice_affine, nifti.geometry.slice_affine, atol=1e-4)
    assert read_scan_facts(path).geometry.shape == scan.slices.shape
    found = find_scans([tmp_path])
    assert found.scans == sorted([tmp_path / "a.nii", path])  # once, as a pair too
    assert not found.left_out and found.used == sum(1 for _ in tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_results_are_written_on_the_grid_of_the_scan(
    tmp_path: Path, ending: str, dtype: type
) -> None:
    scan = read_scan(write_nifti(tmp_path / "a.nii.gz", voxels(), OBLIQUE))
    values = np.random.default_rng(1).integers(0, 2, scan.slices.shape).astype(dtype)
    back = read_volume(write_volume(tmp_path / f"mask{ending}", values, scan, dtype))
    assert np.array_equal(back.slices, values)
    assert np.allclose(back.affine, OBLIQUE, atol=1e-4)


def test_a_scan_in_metres_is_written_in_mm(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    scan = read_volume(tmp_path / "a.nii")
    back = read_volume(write_volume(tmp_path / "mask.nrrd", scan.slices, scan, np.float32))
    assert back.spacing == pytest.approx((2, 1, 1))


def test_a_pair_without_a_place_in_space_is_said_to_be_guessed(tmp_path: Path) -> None:
    nib.AnalyzeImage(voxels(), np.diag([-2.0, 2, 3, 1])).to_filename(tmp_path / "a.img")
    scan = read_scan(tmp_path / "a.img")
    assert (scan.spacing, scan.geometry.axis_codes) == ((3, 2, 2), "LAS")
    assert "do not say how a scan lies" in scan.warnings[0]


def test_several_volumes_are_chosen_from(tmp_path: Path) -> None:
    data = np.stack([voxels(), voxels() + 1], -1).astype(np.float32)
    path = write_mgz(tmp_path / "a.mgz", data, np.diag([-2.0, -2, 3, 1]))
    with pytest.raises(VolumeError, match="one must be chosen, --volume 0 to 1"):
        read_scan(path)
    assert np.array_equal(read_scan(path, 1).slices, read_scan(path, 0).slices + 1)


def edit(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))

    return change


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


# A file, what is done to it, what the refusal says.
REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "huge NRRD": ("b.nhdr", edit(b"sizes: 8 7 5", b"sizes: 9999 9999 9999"), "may take 1 GiB"),
    "NRRD in blocks": ("b.nhdr", edit(b"type: short", b"type: block"), "one number per voxel"),
    "NRRD as text": ("b.nhdr", edit(b"raw\n", b"ascii\n"), "raw or gzip, got 'ascii'"),
    "NRRD nowhere": ("b.nhdr", edit(b"space: RAS\n", b""), "place in space"),
    "NRRD in metres": ("b.nhdr", edit(b"RAS", b'RAS\nspace units: "m" "m" "m"'), "must be mm"),
    "NRRD leading out": ("b.nhdr", edit(b"b.raw", b"../b.raw"), "in one file beside it"),
    "NRRD of many files": ("b.nhdr", edit(b"b.raw", b"LIST"), "in one file beside it"),
    "no NRRD": ("a.nrrd", edit(b"NRRD", b"DRRN"), "cannot be read as .nrrd: its header is damaged"),
    "cut NRRD": ("a.nrrd", cut, "voxels end after"),
    "huge MetaImage": ("c.mha", edit(b"8 7 5", b"8000 7000 5000"), "may take 1 GiB"),
    "empty axis": ("c.mha", edit(b"8 7 5", b"8 0 5"), "no empty axis"),
    "colours": ("d.mhd", edit(b"ElementT", b"ElementNumberOfChannels = 3\nElementT"), "several"),
    "MetaImage elsewhere": ("d.mhd", edit(b"d.raw", b"/etc/passwd"), "in one file beside it"),
    "MetaImage of text": ("d.mhd", edit(b"MET_SHORT", b"MET_STRING"), "must be one of MET_CHAR"),
    "no numbers": ("d.mhd", edit(b"DimSize = 8", b"DimSize = x"), "3 numbers, got 'x 7 5'"),
    "MetaImage lying flat": ("d.mhd", edit(b"Spacing =", b"Spacing = nan #"), "expected 3 numbers"),
    "cut MetaImage": ("c.mha", cut, "voxels end after"),
    "no MetaImage": ("c.mha", edit(b"ElementDataFile", b"ElementDataPile"), "ElementDataFile"),
    "cut MGH": ("e.mgz", cut, "voxels end after|header is damaged"),
    "lonely header": ("f.hdr", lambda path: path.with_suffix(".img").unlink(), "is not beside it"),
    "no header": ("f.img", lambda path: path.with_suffix(".hdr").unlink(), "is not beside it"),
    "cut pair": ("f.img", cut, "ends before; copy it again"),
    "another .img": ("f.img", lambda path: edit(b"\x5c\x01", b"\x5d\x01")(path.with_suffix(".hdr")),
                     "does not start with 348"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_right_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    name, change, sentence = REFUSED[case]
    written = name.replace(".hdr", ".img")
    WRITERS[written](tmp_path / written, voxels(), np.diag([-2.0, -2, 3, 1]))
    change(tmp_path / name)
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_scan(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert str(caught.value).count("\n") == 0


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", voxels(), OBLIQUE)
    monkeypatch.setattr(nrrd_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VolumeError, match=r"pip install 'rasalore\[formats\]'"):
        read_scan(path)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", voxels(), OBLIQUE)
    edit(b"sizes: 8 7 5", b"sizes: 640 640 330")(path)
    path.write_bytes(path.read_bytes() + bytes(2**18))
    with pytest.raises(VolumeError, match="no scan but a bomb"):
        read_scan(path)


def test_headers_in_other_words_are_read(tmp_path: Path) -> None:
    path = write_mhd(tmp_path / "d.mhd", voxels(), np.diag([-2.0, -2, 3, 1]))
    edit(b"DimSize", b"HeaderSize = -1\nDimSize")(path)  # the voxels are the end of the file
    raw = path.with_suffix(".raw")
    raw.write_bytes(b"header" + raw.read_bytes())
    expected = write_nhdr(tmp_path / "e.nhdr", voxels(), np.diag([-2.0, -2, 3, 1]))
    edit(b"\n", b"\r\n")(expected)
    assert np.array_equal(read_scan(path).slices, read_scan(expected).slices)
