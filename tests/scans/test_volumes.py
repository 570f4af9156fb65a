"""NIfTI in and out: every voxel order, the scan's own geometry back, one sentence per bad file."""

import gzip
import os
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from modeling_rasalore.scans.volume_writing import write_nifti, write_volume
from modeling_rasalore.scans.volumes import Volume, VolumeError, read_facts, read_mask, read_volume

LPS = np.array([[-2.0, 0, 0, 90], [0, -1.5, 0, 80], [0, 0, 3, -70], [0, 0, 0, 1]])  # mm
OBLIQUE = np.array(
    [[-1.8, 0.2, 0.31, 90.1], [0.3, -1.4, 0.2, 80.7], [0.11, 0.3, 2.9, -70.3], [0, 0, 0, 1]]
)
TRUTH = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)  # slices, rows, columns
VOXEL_ORDERS = list(product(permutations(range(3)), product((False, True), repeat=3)))


def reordered(order: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return TRUTH, as a file with another voxel order would store it, and that file's affine."""
    data = np.transpose(TRUTH[:, :, :].transpose(2, 1, 0), order)
    affine = LPS[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        data = np.flip(data, axis)
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return data, affine


def save(path: Path, data: np.ndarray, affine: np.ndarray = LPS) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def scan(tmp_path: Path, data: np.ndarray | None = None, affine: np.ndarray = LPS) -> Volume:
    data = TRUTH.transpose(2, 1, 0) if data is None else data
    return read_volume(save(tmp_path / "scan.nii.gz", data, affine))


def test_a_slice_of_an_lps_file_is_the_transposed_voxel_plane(tmp_path):
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    volume = scan(tmp_path, data)
    assert np.array_equal(volume.slices[1], data[:, :, 1].T)
    assert volume.geometry.axis_codes == "LPS"


@pytest.mark.parametrize(("order", "flips"), VOXEL_ORDERS)
def test_every_voxel_order_reads_as_the_same_slices(tmp_path, order, flips):
    data, affine = reordered(order, flips)
    volume = scan(tmp_path, data, affine)
    assert np.array_equal(volume.slices, TRUTH)
    assert volume.spacing == (3.0, 1.5, 2.0)
    assert read_facts(volume.path).geometry.shape[0] == 5


@pytest.mark.parametrize(("order", "flips"), VOXEL_ORDERS)
def test_a_mask_goes_back_to_the_same_place_in_space(tmp_path, order, flips):
    volume = scan(tmp_path, *reordered(order, flips))
    mask = (TRUTH[4, 1, 2] == TRUTH).astype(np.uint8)
    written = nib.load(write_volume(tmp_path / "mask.nii.gz", mask, volume, np.uint8))
    (voxel,) = np.argwhere(np.asarray(written.dataobj))
    place = written.affine @ [*voxel, 1]
    assert np.allclose(place, LPS @ [2, 1, 4, 1])  # column 2, row 1, slice 4
    assert written.shape == nib.load(volume.path).shape


@pytest.mark.parametrize(("order", "flips"), VOXEL_ORDERS[::5])
def test_writing_then_reading_gives_the_slices_back(tmp_path, order, flips):
    volume = scan(tmp_path, *reordered(order, flips))
    again = read_volume(write_volume(tmp_path / "copy.nii", volume.slices, volume, np.float32))
    assert np.array_equal(again.slices, volume.slices)
    assert np.array_equal(again.affine, volume.affine)


def oblique_scan(tmp_path: Path, kind: type[nib.Nifti1Image] = nib.Nifti1Image) -> Volume:
    """A scan whose sform is sheared and differs from its qform, with private words in it."""
    image = kind(np.ones((6, 5, 4), np.int16), None)
    image.set_sform(OBLIQUE, code=3)
    image.set_qform(LPS, code=1)
    image.header.set_xyzt_units("mm", "sec")
    for field in ("descrip", "aux_file", "intent_name"):
        image.header[field] = b"DOE JANE"
    image.header["cal_max"] = 900
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE JANE"))
    nib.save(image, tmp_path / "oblique.nii.gz")
    return read_volume(tmp_path / "oblique.nii.gz")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_an_oblique_scan_keeps_both_forms_their_codes_and_units_exactly(tmp_path, kind):
    volume = oblique_scan(tmp_path, kind)
    path = write_volume(tmp_path / "map.nii.gz", volume.slices, volume, np.float32)
    before, after = nib.load(volume.path), nib.load(path)
    assert type(after) is kind
    for form in ("sform", "qform"):
        kept, code = getattr(after.header, f"get_{form}")(coded=True)
        own, own_code = getattr(before.header, f"get_{form}")(coded=True)
        assert np.array_equal(kept, own)
        assert code == own_code
    assert after.header.get_xyzt_units() == ("mm", "sec")
    assert np.array_equal(after.header["pixdim"], before.header["pixdim"])


def test_no_text_of_the_scan_reaches_an_output(tmp_path):
    volume = oblique_scan(tmp_path)
    path = write_volume(tmp_path / "map.nii", volume.slices, volume, np.float32)
    assert b"DOE" in gzip.decompress(volume.path.read_bytes())
    assert b"DOE" not in path.read_bytes()
    assert nib.load(path).header["cal_max"] == 0  # else viewers would show a mask as black


def test_a_qform_alone_is_enough(tmp_path):
    image = nib.Nifti1Image(TRUTH.transpose(2, 1, 0), None)
    image.set_qform(LPS, code=1)
    nib.save(image, tmp_path / "qform.nii")
    assert np.array_equal(read_volume(tmp_path / "qform.nii").slices, TRUTH)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
def test_spacing_is_in_mm_whatever_the_file_counts_in(tmp_path, unit, factor):
    affine = np.diag([-20 / factor, -15 / factor, 30 / factor, 1])
    image = nib.Nifti1Image(TRUTH.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "unit.nii")
    volume = read_volume(tmp_path / "unit.nii")
    assert volume.spacing == pytest.approx((30, 15, 20))
    assert volume.geometry.voxel_mm3 == pytest.approx(9000)
    assert len(volume.warnings) == 1 and "within an axial slice" in volume.warnings[0]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nan_and_infinite_voxels_become_0_and_are_counted(tmp_path, ending):
    data = np.ones((2, 3, 4), np.float32)
    data[0, 0, 0], data[1, 0, 0], data[1, 2, 3] = np.nan, np.inf, -np.inf
    volume = read_volume(save(tmp_path / f"bad{ending}", data))
    assert volume.replaced_voxels == 3
    assert volume.slices.sum() == 24 - 3


def test_stored_scaling_is_applied(tmp_path):
    raw = bytearray(save(tmp_path / "raw.nii", np.full((2, 2, 2), 7, np.int16)).read_bytes())
    raw[112:120] = np.array([0.5, 10], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "scaled.nii").write_bytes(raw)
    assert np.unique(read_volume(tmp_path / "scaled.nii").slices) == [13.5]


def test_a_channel_of_a_4d_file_is_read_alone(tmp_path):
    data = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    path = save(tmp_path / "four.nii.gz", data)
    assert np.array_equal(read_volume(path, channel=1).slices[2], data[:, :, 2, 1].T)
    assert read_facts(path).geometry.shape[0] == 4


def test_a_4d_file_with_one_volume_needs_no_channel(tmp_path):
    path = save(tmp_path / "one.nii.gz", TRUTH.transpose(2, 1, 0)[..., None])
    assert np.array_equal(read_volume(path).slices, TRUTH)


@pytest.mark.parametrize("channel", [None, 2, -1])
def test_a_4d_file_asks_for_its_channel(tmp_path, channel):
    path = save(tmp_path / "four.nii.gz", np.ones((2, 3, 4, 2), np.float32))
    with pytest.raises(VolumeError, match="with 2 volumes one must be chosen, --volume 0 to 1"):
        read_volume(path, channel=channel)


def test_a_3d_file_has_no_channel_to_choose(tmp_path):
    with pytest.raises(VolumeError, match="scan is 3-D"):
        read_volume(save(tmp_path / "scan.nii", TRUTH), channel=0)


def whole(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    return save(tmp_path / "whole.nii", noise).read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("a.nii.gz", lambda b: gzip.compress(b)[:1500], "cannot be read as NIfTI"),
        ("a.nii.gz", lambda b: gzip.compress(b)[:9], "cannot be read as NIfTI"),
        ("a.nii.gz", lambda b: gzip.compress(b[:900]), "cannot be read as NIfTI"),
        ("a.nii", lambda b: b[:900], "cannot be read as NIfTI"),
        ("a.nii", lambda b: b[:100], "cannot be read as NIfTI"),
        ("a.nii", lambda b: b"not a scan" * 99, "cannot be read as NIfTI"),
        ("a.nii.gz", lambda b: b, r"rename the file to end in \.nii\."),
        ("a.nii", gzip.compress, r"rename the file to end in \.nii\.gz"),
        ("a.nii", lambda b: b"", "the file is empty"),
        ("a.nii.gz", lambda b: b"", "the file is empty"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name(tmp_path, name, change, sentence):
    path = tmp_path / name
    path.write_bytes(change(whole(tmp_path)))
    with pytest.raises(VolumeError, match=sentence) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (np.ones((4, 4), np.float32), "3-D"),
        (np.ones((2, 2, 2, 2, 2), np.float32), "3-D"),
        (np.ones((0, 4, 4), np.float32), "no empty axis"),
        (np.ones((3, 3, 3), np.complex64), "complex"),
        (np.ones((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
    ],
)
def test_data_that_is_no_scan_is_refused(tmp_path, data, sentence):
    with pytest.raises(VolumeError, match=sentence):
        read_volume(save(tmp_path / "odd.nii", data))


@pytest.mark.parametrize("column", [np.zeros(3), np.full(3, np.nan)])
def test_an_affine_that_loses_an_axis_is_refused(tmp_path, column):
    image = nib.Nifti1Image(TRUTH, LPS)
    for row, value in zip(("srow_x", "srow_y", "srow_z"), column, strict=True):
        image.header[row][1] = value
    raw = image.header.binaryblock + b"\0" * 4 + TRUTH.tobytes()
    (tmp_path / "flat.nii").write_bytes(raw)
    with pytest.raises(VolumeError, match="affine"):
        read_volume(tmp_path / "flat.nii")


def test_a_missing_file_and_another_format_are_named(tmp_path):
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "absent.nii.gz")
    (tmp_path / "scan.mnc").write_bytes(b"voxels")
    with pytest.raises(VolumeError, match="convert it to NIfTI"):
        read_volume(tmp_path / "scan.mnc")


def test_a_mask_in_another_voxel_order_lands_on_its_scan(tmp_path):
    data, affine = reordered((2, 0, 1), (True, False, True))
    mask = read_mask(save(tmp_path / "m.nii.gz", data.astype(np.uint8), affine), scan(tmp_path))
    assert np.array_equal(mask, TRUTH)
    assert mask.dtype == np.uint8


@pytest.mark.parametrize(
    ("mask", "affine", "sentence"),
    [
        (np.ones((3, 4, 6)), LPS, "shape of its scan"),
        (np.ones((3, 4, 5)), np.eye(4), "place in space"),
        (np.full((3, 4, 5), 0.5), LPS, "whole numbers"),
        (np.full((3, 4, 5), -1), LPS, "whole numbers"),
        (np.full((3, 4, 5), 256), LPS, "whole numbers"),
    ],
)
def test_a_mask_that_does_not_fit_its_scan_is_refused(tmp_path, mask, affine, sentence):
    path = save(tmp_path / "mask.nii.gz", mask.astype(np.float32), affine)
    with pytest.raises(VolumeError, match=sentence):
        read_mask(path, scan(tmp_path))


def test_values_that_the_file_type_cannot_hold_are_refused(tmp_path):
    volume = scan(tmp_path)
    for bad in (volume.slices + 0.5, volume.slices + 250, volume.slices * np.nan):
        with pytest.raises(ValueError, match="uint8 exactly"):
            write_volume(tmp_path / "out.nii.gz", bad, volume, np.uint8)


def test_slices_of_another_shape_and_other_file_names_are_refused(tmp_path):
    volume = scan(tmp_path)
    with pytest.raises(ValueError, match="shape of the scan"):
        write_volume(tmp_path / "out.nii.gz", volume.slices[1:], volume, np.float32)
    with pytest.raises(ValueError, match=r"\.nii or \.nii\.gz"):
        write_volume(tmp_path / "out.img", volume.slices, volume, np.float32)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    volume = scan(tmp_path)
    old = volume.path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_volume(volume.path, volume.slices + 1, volume, np.float32)
    assert volume.path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [volume.path]


def test_the_same_slices_make_the_same_bytes(tmp_path):
    volume = scan(tmp_path)
    paths = [
        write_volume(tmp_path / n, volume.slices, volume, "f4") for n in ("a.nii.gz", "b.nii.gz")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_write_nifti_keeps_array_affine_and_unit(tmp_path):
    path = write_nifti(tmp_path / "p.nii.gz", TRUTH.astype(np.int16), OBLIQUE)
    image = nib.load(path)
    assert np.array_equal(np.asarray(image.dataobj), TRUTH)
    assert np.allclose(image.affine, OBLIQUE)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.get_data_dtype() == np.int16


def test_real_scans_come_back_bit_for_bit(tmp_path):
    folder = Path(__file__).parents[3] / "shared" / "data"
    paths = [*folder.glob("brats2021/*1476/*_t2.nii.gz"), *folder.glob("mslub/*07/T2*.nii.gz")]
    if not paths:
        pytest.skip("real scans are not beside the checkout")
    for path in paths:
        volume = read_volume(path)
        again = read_volume(write_volume(tmp_path / "x.nii", volume.slices, volume, np.float32))
        assert np.array_equal(again.slices, volume.slices)
        assert np.array_equal(again.header["quatern_b"], volume.header["quatern_b"])
