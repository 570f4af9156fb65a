"""Scans as the Space reads them: formats, series, and what it refuses or warns about."""

import base64
import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series, zip_series
from odd_formats import compress_series, copy_slices, drop_preambles
from odd_intensities import (
    scans_with_the_same_mask,
    scans_without_a_brain,
    smooth_brain,
    with_spikes,
    write_slices,
)
from odd_sizes import (
    scan_of_two_volumes,
)
from space import read_numbers, unpack, write_scan

from modeling_rasalore.formats.endings import ALONE, WRITERS
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import Analysis, say_nothing
from example_cases import EXAMPLES
from gradio.exceptions import Error
from handlers import Handlers
from scan_reading import read_scan

MASK, MAP, NUMBERS, PAGE = "Mask (NIfTI)", "Scores (NIfTI)", "Numbers (JSON)", "Report (HTML)"
EXAMPLE = next(iter(sorted(EXAMPLES.glob("1_*/phantom*.nii.gz"))))


def test_a_zipped_series_gives_the_mask_and_report_of_its_nifti_file(
    handlers: Handlers, tmp_path: Path
) -> None:
    nifti = read_scan(EXAMPLE)
    voxels = nifti.volume.slices.transpose(2, 1, 0).astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    zipped = read_scan(zip_series(tmp_path / "phantom.zip", series))
    expected, found = (handlers.usual.analyse(scan, 0.5, say_nothing) for scan in (nifti, zipped))
    path = unpack(handlers.pack(found, 0.5, MASK), tmp_path)
    assert path.name == "phantom_mask.nii.gz"
    assert 0 < expected.prediction.mask.sum() < expected.prediction.mask.size
    assert np.array_equal(read_mask(path, nifti.volume), expected.prediction.mask)
    report = handlers.pack(found, 0.5, NUMBERS)
    assert report and b"DOE" not in base64.b64decode(report["content"])
    assert read_numbers(handlers, found, 0.5)["input"] == "phantom.zip"
    assert read_numbers(handlers, found, 0.5)["findings"] == expected.report(0.5, "")["findings"]
    assert b"DOE" in next(series.iterdir()).read_bytes()


def test_a_series_whose_file_is_gone_still_gives_its_mask_as_dicom(
    handlers: Handlers, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    source = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    voxels = source.slices.transpose(2, 1, 0).astype(np.int16)
    path = zip_series(tmp_path / "s.zip", write_series(tmp_path / "s", voxels, source.affine))
    scan = read_scan(path)
    path.unlink()
    analysis = handlers.usual.analyse(scan, 0.5, say_nothing)
    segmentation = pydicom.dcmread(unpack(handlers.pack(analysis, 0.5, "Mask (DICOM)"), tmp_path))
    assert segmentation.Modality == "SEG"
    assert segmentation.pixel_array.sum() == analysis.prediction.mask.sum() > 0


def test_a_nifti_scan_has_no_mask_as_dicom(handlers: Handlers, analysis: Analysis) -> None:
    with pytest.raises(Error, match="a DICOM mask needs a scan that came as DICOM"):
        handlers.pack(analysis, 0.5, "Mask (DICOM)")


@pytest.mark.parametrize("change", [compress_series, copy_slices, drop_preambles])
def test_an_odd_zipped_series_gives_the_scores_of_the_plain_one(
    handlers: Handlers, tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    nifti = read_scan(EXAMPLE)
    voxels = nifti.volume.slices.transpose(2, 1, 0)[:, :, 40:44].astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    plain = read_scan(zip_series(tmp_path / "plain.zip", series))
    odd = read_scan(zip_series(tmp_path / "odd.zip", change(series)))
    expected, given = (handlers.usual.analyse(scan, 0.5, say_nothing) for scan in (plain, odd))
    assert np.array_equal(given.prediction.scores, expected.prediction.scores)
    told = " ".join(given.report(0.5, "")["warnings"])
    assert ("4 files were left out" in told) == (change is copy_slices)


def test_a_scan_of_another_sequence_a_skull_and_thick_slices_are_told_as_unfit(
    tmp_path: Path,
) -> None:
    scan = write_scan(tmp_path / "patient_t2.nii.gz")
    (reason,) = read_scan(scan, "flair").source["unfit_because"]
    assert "trained on flair, but the scan is t2" in reason
    assert read_scan(scan, "t2").source["unfit_because"] == []
    voxels = read_volume(scan).slices.transpose(2, 1, 0)
    thick = write_nifti(tmp_path / "thick.nii.gz", voxels, np.diag([-2.0, -2.0, 9.0, 1.0]))
    (reason,) = read_scan(thick).source["unfit_because"]
    assert reason.startswith("slices are 9 mm apart")
    noise = np.random.default_rng(0).integers(1, 200, (40, 40, 8)).astype(np.int16)
    noisy = write_nifti(tmp_path / "noise.nii.gz", noise, np.diag([-2.0, -2.0, 2.0, 1.0]))
    assert "everything but the brain removed" in read_scan(noisy).source["unfit_because"][0]


@pytest.mark.parametrize("ending", ALONE)
def test_a_scan_of_another_format_is_taken_like_nifti(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("nrrd")
    voxels = np.zeros((20, 24, 8), np.int16)
    voxels[4:16, 4:20, 1:7] = np.random.default_rng(0).integers(90, 900, (12, 16, 6))
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    plain = read_scan(write_nifti(tmp_path / "a.nii.gz", voxels, affine))
    path = tmp_path / f"a{ending}"
    if ending in WRITERS:
        WRITERS[ending](path, voxels, affine, "")
    else:
        image = nib.MGHImage(voxels.astype(np.float32), affine)
        content = image.to_bytes()
        path.write_bytes(content if ending == ".mgh" else gzip.compress(content))
    scan = read_scan(path)
    assert np.array_equal(scan.volume.slices, plain.volume.slices)
    assert scan.volume.spacing == pytest.approx(plain.volume.spacing)


def test_a_4_d_scan_is_told_what_to_do_on_the_page(tmp_path: Path) -> None:
    path = scan_of_two_volumes(tmp_path / "four.nii.gz")
    with pytest.raises(ValueError, match="with 2 volumes; save the volume") as error:
        read_scan(path)
    assert "--" not in str(error.value)


def test_an_error_names_the_file_but_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.nii").write_text("no scan")
    with pytest.raises(ValueError, match=r"^notes\.nii: ") as error:
        read_scan(tmp_path / "notes.nii")
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_backgrounds_and_scales_leave_the_mask_as_it_is(
    handlers: Handlers, tmp_path: Path
) -> None:
    masks = [
        handlers.usual.analyse(
            read_scan(write_slices(tmp_path / "scan.nii.gz", slices)), 0.5, say_nothing
        ).prediction.mask
        for slices in (smooth_brain(), *scans_with_the_same_mask().values())
    ]
    assert masks[0].any()
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_single_voxels_move_no_more_than_a_hundredth_and_are_told(
    handlers: Handlers, tmp_path: Path
) -> None:
    clean = read_scan(write_slices(tmp_path / "clean.nii.gz", smooth_brain()))
    spikes = read_scan(write_slices(tmp_path / "spikes.nii.gz", with_spikes(smooth_brain(), 4)))
    expected, moved = (handlers.usual.analyse(scan, 0.5, say_nothing) for scan in (clean, spikes))
    mask, other = expected.prediction.mask, moved.prediction.mask
    assert 2 * np.count_nonzero(mask & other) > 0.99 * (mask.sum() + other.sum())
    assert "4 voxels far brighter" in handlers.describe(moved, 0.5)[0]


@pytest.mark.parametrize("name", scans_without_a_brain())
def test_a_scan_without_a_brain_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    slices, sentence = scans_without_a_brain()[name]
    with pytest.raises(ValueError, match=r"^scan\.nii\.gz: a scan must show one brain") as error:
        read_scan(write_slices(tmp_path / "scan.nii.gz", slices))
    assert sentence in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_scan_with_too_many_voxels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scan_reading.MAX_VOXELS", 1000)
    with pytest.raises(ValueError, match="million voxels here"):
        read_scan(write_scan(tmp_path / "scan.nii.gz"))
