"""DICOM series from folders and zips: voxels where the scanner put them, or one sentence."""

from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore.scans.bids import output_stems
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.reading import read_scan, read_scan_facts
from modeling_rasalore.scans.series_files import is_dicom
from modeling_rasalore.scans.volume_writing import write_nifti, write_volume
from modeling_rasalore.scans.volumes import VolumeError, read_volume

pydicom = pytest.importorskip("pydicom")
from dicom_files import AXIAL, edit, rotation, voxels, write_series, zip_files  # noqa: E402
from odd_formats import change_series, copy_slices, invert, write_enhanced  # noqa: E402

OBLIQUE = np.array(
    [[-1.8, 0.2, 0.31, 90.1], [0.3, -1.4, 0.2, 80.7], [0.11, 0.3, 2.9, -70.3], [0, 0, 0, 1]]
)


SMALL = (
    "the scan covers 15 x 7.7 x 7.2 mm (slices, rows, columns), a head 20 to 600 mm along each "
    "axis: it is a part of one, or the voxel sizes in its header are wrong, and volumes in mL with "
    "them."
)


AFFINES = {
    "axial, turned": AXIAL,
    "sagittal": np.array([[0, 0, 2.0, -9], [-1.0, 0, 0, 8], [0, -1.5, 0, 7], [0, 0, 0, 1]]),
    "coronal": np.array([[-1.0, 0, 0, 9], [0, 0, 2.0, 8], [0, -1.5, 0, 7], [0, 0, 0, 1]]),
    "tilted gantry": AXIAL + np.outer([0, 0.4, 0, 0], [0, 0, 1, 0]),
}


@pytest.mark.parametrize("name", AFFINES)
def test_a_series_reads_as_the_same_volume_as_its_nifti_file(tmp_path: Path, name: str) -> None:
    affine = AFFINES[name]
    nifti = read_volume(write_nifti(tmp_path / "a.nii", voxels(), affine))
    series = read_scan(write_series(tmp_path / "series", voxels(), affine))
    assert np.array_equal(series.slices, nifti.slices)
    assert np.allclose(series.geometry.slice_affine, nifti.geometry.slice_affine, atol=1e-4)
    assert series.spacing == pytest.approx(nifti.spacing, abs=1e-5)
    assert any("tilted gantry" in warning for warning in series.warnings) == ("gantry" in name)
    geometry = read_scan_facts(tmp_path / "series").geometry
    assert (geometry.shape, geometry.spacing) == (series.slices.shape, series.spacing)


def test_a_zip_reads_as_its_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", voxels(), AXIAL)
    path = zip_files(
        tmp_path / "a.zip", {f"deep/er/{p.name}": p.read_bytes() for p in folder.iterdir()}
    )
    assert np.array_equal(read_scan(path).slices, read_scan(folder).slices)


def test_stored_scaling_is_applied(tmp_path: Path) -> None:
    scaling = {"RescaleSlope": "0.5", "RescaleIntercept": "-3"}
    scan = read_scan(write_series(tmp_path / "s", voxels(), AXIAL, **scaling))
    plain = read_scan(write_series(tmp_path / "p", voxels(), AXIAL))
    assert np.array_equal(scan.slices, plain.slices * 0.5 - 3)


def test_one_slice_takes_its_thickness_as_distance(tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path / "s", voxels()[:, :, :1], AXIAL))
    assert scan.spacing == pytest.approx((3.0, 1.1, 0.9))


def test_no_text_of_the_series_reaches_an_output(tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path / "s", voxels(), AXIAL))
    written = write_volume(tmp_path / "mask.nii", scan.slices, scan, np.float32).read_bytes()
    assert b"DOE" in next((tmp_path / "s").iterdir()).read_bytes()
    assert b"DOE" not in written and b"4711" not in written


def test_the_description_chooses_among_several_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "t2", voxels(1), AXIAL, SeriesDescription="AX T2 TSE")
    other = write_series(tmp_path / "flair", voxels(2), AXIAL, SeriesDescription="t2_flair_3d")
    for path in other.iterdir():
        (folder / f"other-{path.name}").write_bytes(path.read_bytes())
    with pytest.raises(VolumeError, match="2 series whose descriptions name flair, t2"):
        read_scan(folder)
    flair = read_scan(folder, modality="flair")
    assert np.array_equal(flair.slices, read_scan(other).slices)
    assert np.array_equal(
        read_scan(folder, modality="t2").slices,
        read_scan(write_series(tmp_path / "again", voxels(1), AXIAL)).slices,
    )


def test_number_or_text_choose_among_series_of_one_description(tmp_path: Path) -> None:
    words = {"SeriesDescription": "t2_tse_tra"}
    folder = write_series(tmp_path / "both", voxels(1), AXIAL, SeriesNumber=4, **words)
    words = {"SeriesDescription": "t2_tse_tra repeat"}
    other = write_series(tmp_path / "again", voxels(2), AXIAL, SeriesNumber=5, **words)
    first, second = read_scan(folder).slices, read_scan(other).slices
    for path in other.iterdir():
        path.rename(folder / f"other-{path.name}")
    with pytest.raises(
        VolumeError, match=r"--series or --modality .*: number 4 \(t2, 5 files\), number 5 \(t2, 5"
    ):
        read_scan(folder, modality="t2")
    assert np.array_equal(read_scan(folder, series="4").slices, first)
    scan = read_scan(folder, series="REPEAT")
    assert np.array_equal(scan.slices, second)
    assert scan.warnings == (
        "5 files were left out (IM0_0, IM1_3, IM4_2 and 2 more): part of another series, number 4 "
        "(t2, 5 files).",
        SMALL,
    )
    with pytest.raises(VolumeError, match=r"no series '45'; got number 4 .*, number 5"):
        read_scan(folder, series="45")


def test_copies_of_slices_are_read_once_and_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", voxels(), AXIAL)
    plain = read_scan(folder)
    scan = read_scan(copy_slices(folder))
    assert np.array_equal(scan.slices, plain.slices)
    assert scan.warnings == (
        "5 files were left out (IM0_0(1), IM1_3(1), IM4_2(1) and 2 more): a copy of slices that "
        "were read.",
        SMALL,
    )


def test_two_volumes_at_one_place_are_no_copies(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", voxels(1), AXIAL, SeriesInstanceUID="1.2.3")
    for path in write_series(tmp_path / "t", voxels(2), AXIAL, SeriesInstanceUID="1.2.3").iterdir():
        path.rename(folder / f"{path.name}(1)")
    change_series(folder, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"))
    with pytest.raises(VolumeError, match="several slices lie at one place"):
        read_scan(folder)


def reasons_of(folder: Path) -> dict[str, str]:
    return {entry.path.name: entry.reason for entry in find_scans([folder]).left_out}


def test_what_is_no_part_of_the_series_is_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", voxels(), AXIAL)
    plain = read_scan(folder)
    (folder / "readme.txt").write_text("viewer on this disc")
    report = pydicom.dcmread(folder / "IM0_0")
    del report.Rows, report.PixelData
    report.save_as(folder / "report")
    segmentation = pydicom.dcmread(folder / "IM0_0")
    segmentation.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    segmentation.save_as(folder / "mask.dcm")
    scan = read_scan(folder)
    assert np.array_equal(scan.slices, plain.slices)
    assert scan.warnings == (
        "1 file was left out (mask.dcm): a segmentation or registration, no scan.",
        "1 file was left out (report): a DICOM file without an image.",
        SMALL,
    )
    found = find_scans([tmp_path])
    assert {(entry.path.name, entry.reason) for entry in found.left_out} == {
        ("readme.txt", "no scan by its ending and its first bytes"),
        ("s", "mask.dcm in it: a segmentation or registration, no scan"),
        ("s", "report in it: a DICOM file without an image"),
    }
    assert (found.used, found.counts["left_out"]) == (5, 3)


@pytest.mark.parametrize("name", ["axial, turned", "sagittal"])
def test_an_enhanced_file_reads_as_its_slices(tmp_path: Path, name: str) -> None:
    data = voxels() // 2 * 2  # each second frame is stored halved
    plain = read_scan(write_series(tmp_path / "plain", data, AFFINES[name]))
    scan = read_scan(write_enhanced(tmp_path / "enhanced", data, AFFINES[name]))
    assert np.array_equal(scan.slices, plain.slices)
    assert scan.geometry.corners == pytest.approx(plain.geometry.corners)


def test_a_file_with_all_slices_is_a_scan_and_one_with_one_is_not(tmp_path: Path) -> None:
    folder = write_enhanced(tmp_path / "enhanced", voxels(), AXIAL)
    whole = read_scan(folder / "enhanced.dcm")
    assert np.array_equal(whole.slices, read_scan(folder).slices)
    assert output_stems([whole.path], tmp_path) == [tmp_path / "enhanced"]
    slices = write_series(tmp_path / "s", voxels(), AXIAL)
    with pytest.raises(VolumeError, match="one slice of a series; give the folder"):
        read_scan(slices / "IM0_0")


@pytest.mark.parametrize("lack", ["PlanePositionSequence", "a group"])
def test_an_enhanced_file_whose_slices_lack_their_places_is_refused(
    tmp_path: Path, lack: str
) -> None:
    def forget(dataset: pydicom.Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        if lack == "a group":
            del groups[3]
        else:
            delattr(groups[3], lack)

    folder = change_series(write_enhanced(tmp_path / "s", voxels(), AXIAL), forget)
    with pytest.raises(VolumeError, match=r"lacks ImagePositionPatient|each tell its place, got 4"):
        read_scan(folder)


def test_low_values_for_bright_are_inverted_and_said(tmp_path: Path) -> None:
    data = np.maximum(voxels(), 0)
    data[0] = 0
    plain = read_scan(write_series(tmp_path / "plain", data, AXIAL))
    scan = read_scan(change_series(write_series(tmp_path / "s", data, AXIAL), invert))
    assert np.array_equal(scan.slices, plain.slices)
    assert "inverted" in scan.warnings[0]


def test_series_and_zips_are_found_between_nifti_files(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", voxels(), AXIAL)
    folder = write_series(tmp_path / "p1" / "t1", voxels(), AXIAL)
    archive = zip_files(tmp_path / "p2.zip", {p.name: p.read_bytes() for p in folder.iterdir()})
    (tmp_path / "notes.txt").write_text("no scan")
    found = find_scans([tmp_path], "t1")  # two of the three say nothing of themselves
    assert found.scans == find_scans([tmp_path]).scans == [tmp_path / "a.nii.gz", folder, archive]
    assert found.counts == {"files": 8, "used": 7, "left_out": 1, "hidden": 0, "own_results": 0}
    assert not is_dicom(tmp_path)


@pytest.mark.parametrize("count", range(4, 10))
def test_a_missing_slice_is_noticed_where_positions_are_whole_numbers(
    tmp_path: Path, count: int
) -> None:
    data = np.zeros((4, 4, count), np.int16)
    for gap in range(1, count - 1):
        folder = write_series(tmp_path / str(gap), data, np.diag([-9.0, -9.0, 3.0, 1.0]))
        next(folder.glob(f"*_{gap}")).unlink()
        with pytest.raises(VolumeError, match="missing or unevenly spaced: 3 to 6 mm"):
            read_scan(folder)


def test_directions_with_two_decimals_keep_the_volume_of_a_voxel(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", voxels(), rotation(45) @ AXIAL)
    for index in range(5):
        edit(index, ImageOrientationPatient=["-0.62", "-0.79", "0", "0.79", "-0.62", "0"])(folder)
    assert read_scan(folder).geometry.voxel_mm3 == pytest.approx(0.9 * 1.1 * 3)
    for index in range(5):
        edit(index, ImageOrientationPatient=["-0.6", "-0.6", "0", "0.79", "-0.62", "0"])(folder)
    with pytest.raises(VolumeError, match=r"must have length 1, got 0[.]849 and 1"):
        read_scan(folder)
