"""Kinds of odd folders and files beyond the first ones met: what is taken, left out and said."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from odd_folders import AFFINE, save, tiny_voxels

from modeling_rasalore.scans.background import BrainSlices
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.naming import kind_of_image, role_by_words, sequence_of
from modeling_rasalore.scans.reading import hash_scan, read_scan
from modeling_rasalore.scans.volume_writing import is_marked, write_volume
from modeling_rasalore.scans.volumes import VolumeError


def reasons(folder: Path, *wanted: Any, **options: Any) -> dict[str, str]:
    found = find_scans([folder], *wanted, **options)
    return {entry.path.name: entry.reason for entry in found.left_out}


@pytest.mark.parametrize(
    ("words", "sequence"),
    [
        *(("3DFLAIR", "flair"), ("p1_T2FLAIR", "flair"), ("dark-fluid", "flair")),
        *(("T1MPRAGE", "t1"), ("T1KM", "t1ce"), ("T1 +C", "t1ce"), ("p1_t1_c", "t1ce")),
        *(("axT2", "t2"), ("T2TSE", "t2"), ("t2haste", "t2"), ("T2W_SPACE", "t2")),
        *(("T2* GRE", "t2star"), ("T2 map", "t2map"), ("T1_mapping", "t1map")),
        *(("GADO", "t1ce"), ("DP", "pd"), ("HARDI", "dwi"), ("trace", "dwi")),
        *(("patient1", None), ("subject2", None), ("cat2", None), ("FA=9deg", None)),
    ],
)
def test_words_that_are_written_together_tell_the_sequence(
    words: str, sequence: str | None
) -> None:
    assert sequence_of(words) == sequence


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("ManualSegmentation_1", "mask"), ("Consensus", "mask"), ("p1_gt", "mask")),
        *(("wmh", "mask"), ("aparc+aseg", "mask"), ("T2_pve_0", "mask")),
        *(("T2_BrainExtractionMask", "brain_mask"), ("a_t2_brain", "t2")),
    ],
)
def test_words_of_masks_are_known_inside_others(name: str, role: str) -> None:
    assert role_by_words(Path(f"{name}.nii.gz")) == role


@pytest.mark.parametrize("values", [(0, 255), (0, 2), (0, 110), (0, 1, 2, 4), (0.0, 0.5)])
def test_a_mask_of_any_values_is_no_scan(tmp_path: Path, values: tuple[float, ...]) -> None:
    voxels = np.random.default_rng(0).choice(np.array(values, np.float32), (16, 18, 6))
    with pytest.raises(VolumeError, match="as in a mask; give the scan instead"):
        read_scan(save(tmp_path / "d_t2_skullstrip.nii.gz", voxels))


def test_a_brainmask_that_is_a_stripped_scan_is_taken(tmp_path: Path) -> None:
    save(tmp_path / "mri" / "brainmask.nii.gz")
    save(tmp_path / "other" / "brainmask.nii.gz", (tiny_voxels() > 0).astype(np.uint8))
    found = find_scans([tmp_path])
    assert found.scans == [tmp_path / "mri" / "brainmask.nii.gz"]
    assert [entry.reason for entry in found.left_out] == ["a brain mask by its name and its voxels"]


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "NORM"], "dwi"),
        (["ORIGINAL", "PRIMARY", "P", "ND"], "phase"),
        (["DERIVED", "SECONDARY", "MPR", "MIP"], "projection"),
        (["DERIVED", "PRIMARY", "T2 MAP"], "t2map"),
        (["DERIVED", "SECONDARY", "MPR"], None),
        (["ORIGINAL", "PRIMARY", "M", "NORM"], None),
        ([], None),
    ],
)
def test_an_image_type_tells_derived_pictures(image_type: list[str], kind: str | None) -> None:
    assert kind_of_image(image_type) == kind


def three_planes(folder: Path) -> Path:
    """A localizer: three slices that face three ways, in one series."""
    uid = {"SeriesInstanceUID": "1.2.3", "SeriesDescription": "localizer"}
    for number, axes in enumerate(([0, 1, 2], [1, 2, 0], [2, 0, 1])):
        affine = np.eye(4)
        affine[:3, :3] = AFFINE[:3, :3][:, axes]
        part = write_series(folder / "parts", tiny_voxels()[:, :, :1], affine, **uid)
        (part / "IM0_0").rename(folder / f"IM{number}")
    (folder / "parts").rmdir()
    return folder


def test_of_a_study_only_plain_pictures_of_the_sequence_are_taken(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_series(tmp_path / "T", tiny_voxels(), AFFINE, SeriesDescription="t2_tse")
    for name, fields in {
        "adc": {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]},
        "phase": {"ImageType": ["ORIGINAL", "PRIMARY", "P"], "SeriesDescription": "t2_tse"},
        "map": {"SeriesDescription": "T2 map"},
        "star": {"SeriesDescription": "T2* GRE"},
    }.items():
        write_series(tmp_path / name, tiny_voxels(), AFFINE, **fields)
    three_planes(tmp_path / "scout")
    shot = write_series(tmp_path / "shot", tiny_voxels()[:, :, :1], AFFINE) / "IM0_0"
    dataset = pydicom.dcmread(shot)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.save_as(shot)
    found = find_scans([tmp_path], "t2")
    assert found.scans == [tmp_path / "T"]
    assert {entry.path.name: entry.reason for entry in found.left_out} == {
        "adc": "its image type says dwi, not t2",
        "phase": "its image type says phase, not t2",
        "map": "its description says t2map, not t2",
        "star": "its description says t2star, not t2",
        "scout": "its description says localizer, not t2",
        "shot": "holds a screenshot, no scan",
    }
    assert found.counts["used"] + found.counts["left_out"] == found.counts["files"] == 34
    assert find_scans([tmp_path], trained_on="t2").scans == found.scans


def test_of_a_folder_with_several_series_what_is_not_used_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    for number, words in enumerate(("t1_se", "t2_tse"), 1):
        fields = {"SeriesDescription": words, "SeriesNumber": number}
        part = write_series(tmp_path / "parts", tiny_voxels(number), AFFINE, **fields)
        for path in list(part.iterdir()):
            (tmp_path / "all").mkdir(exist_ok=True)
            path.rename(tmp_path / "all" / f"{number}_{path.name}")
    for wanted, own in (("t2", None), (None, "t2")):  # chosen, and by what a model knows
        found = find_scans([tmp_path], wanted, trained_on=own)
        counts = {"files": 12, "used": 6, "left_out": 6, "hidden": 0, "own_results": 0}
        assert (found.scans, found.counts) == ([tmp_path / "all"], counts)
        assert "part of another series, number 1 (t1, 6 files)" in found.left_out[0].reason
    scan = read_scan(tmp_path / "all", trained_on="t2")
    assert scan.sequence == "t2"
    assert "the t2 series was taken: what the model was trained on." in scan.warnings
    assert np.array_equal(scan.slices, read_scan(tmp_path / "all", modality="t2").slices)


def test_parts_of_one_series_in_several_folders_are_no_scans(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    whole = write_series(tmp_path / "a", tiny_voxels(), AFFINE)
    (tmp_path / "b").mkdir()
    for path in sorted(whole.iterdir(), key=lambda path: int(path.name.split("_")[1]))[3:]:
        path.rename(tmp_path / "b" / path.name)
    write_series(tmp_path / "c", tiny_voxels(1), AFFINE)
    found = find_scans([tmp_path])
    assert found.scans == [tmp_path / "c"]
    told = {entry.path.name: entry.reason for entry in found.left_out}
    assert told.keys() == {"a", "b"}
    assert all("put its files into one folder" in reason for reason in told.values())


def nifti() -> bytes:
    return nib.Nifti1Image(tiny_voxels(), AFFINE).to_bytes()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.dcm", nifti(), "its content is NIfTI; rename the file to end in .nii"),
        ("a.mha", nifti(), "its content is NIfTI; rename the file to end in .nii"),
        ("a.mgz", gzip.compress(nifti()), "rename the file to end in .nii.gz"),
        ("a.nii.gz", b"NRRD0005\n\n", "its content is nrrd data; rename the file to end in .nrrd"),
        ("a.nii.gz", b"PK\3\4zip", "its content is zip data; rename the file to end in .zip"),
        ("a.nii.gz", b"<html>404</html>", "it is a web page in place of the file"),
        ("a.nii", b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
        ("a.zip", gzip.compress(nifti()), "it is no zip archive"),
    ],
)
def test_a_file_that_its_name_misnames_is_told_by_its_content(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError) as caught:
        read_scan(tmp_path / name)
    assert sentence in str(caught.value)


def test_a_renamed_download_is_told_and_a_zip_of_nifti_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "scan_t2.nii (1).gz").write_bytes(gzip.compress(nifti()))
    save(tmp_path / "b_t2.nii.gz")
    told = "its content is NIfTI; rename the file to end in .nii.gz"
    assert reasons(tmp_path, "t2") == {"scan_t2.nii (1).gz": told}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one_t2.nii", nifti())
    with pytest.raises(VolumeError, match=r"but one_t2\.nii; unpack that and give it alone"):
        read_scan(tmp_path / "a.zip")


def brain_slice() -> np.ndarray:
    """A slice of tissue (120, 120), background 0."""
    image = np.zeros((120, 120), np.float32)
    image[20:100, 20:100] = np.random.default_rng(0).uniform(300, 900, (80, 80))
    return image


@pytest.mark.parametrize(
    ("where", "factor"),
    [
        ((slice(30, 70, 2), slice(40, 42, 2)), 3),
        ((slice(40, 43), slice(40, 43)), 10),
        ((slice(30, 70, 8), slice(30, 70, 8)), 20),
        (([40, 41], [40, 40]), 4),
    ],
    ids=["twenty alone", "a block", "a grid", "a pair"],
)
def test_several_bright_voxels_do_not_set_the_scale_of_a_slice(where: Any, factor: float) -> None:
    image = brain_slice()
    image[where] = factor * image.max()
    images = BrainSlices(image[None])
    assert images[0].max() <= 900
    assert images.lowered_voxels == np.count_nonzero(images[0] != image)


def test_a_bright_line_through_many_slices_is_lowered_and_in_one_slice_it_stays() -> None:
    slices = np.repeat(brain_slice()[None], 20, axis=0)
    slices[3, 60, 20:100] = 5 * slices.max()
    assert BrainSlices(slices).lowered_voxels == 0
    slices[:, 60, 20:100] = slices[3, 60, 20]
    images = BrainSlices(slices)
    assert images.lowered_voxels == 20 * 80
    assert max(image.max() for image in images) <= 900


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_result_in_any_format_is_known_wherever_it_is_put(tmp_path: Path, ending: str) -> None:
    scan = read_scan(save(tmp_path / "scans" / "a_t2.nii.gz"))
    path = write_volume(
        tmp_path / "scans" / f"copy_t2{ending}", scan.slices / 400, scan, np.float32
    )
    assert is_marked(path) and not is_marked(scan.path)
    assert reasons(tmp_path / "scans", "t2") == {path.name: "a result of this software"}


@pytest.mark.parametrize("name", ["a.img", "a.hdr"])
def test_both_files_of_a_pair_decide_its_hash(tmp_path: Path, name: str) -> None:
    nib.Nifti1Pair(tiny_voxels(), AFFINE).to_filename(tmp_path / "a.img")
    before = hash_scan(tmp_path / name)
    header = (tmp_path / "a.hdr").read_bytes()
    (tmp_path / "a.hdr").write_bytes(header[:-1] + b"x")
    changed = hash_scan(tmp_path / name)
    (tmp_path / "a.hdr").write_bytes(header)
    assert hash_scan(tmp_path / name) == before != changed
    with (tmp_path / "a.img").open("r+b") as file:
        file.write(b"\7")
    assert hash_scan(tmp_path / name) != before


def test_an_axis_of_many_voxels_that_is_no_head_is_refused(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (96, 112, 8)).astype(np.int16)
    image = nib.Nifti1Image(voxels, np.diag([0.2, 0.2, 3, 1]))
    nib.save(image, tmp_path / "a_t2.nii.gz")
    with pytest.raises(VolumeError, match="a head measures 20 to 600 mm along each axis, got"):
        read_scan(tmp_path / "a_t2.nii.gz")
