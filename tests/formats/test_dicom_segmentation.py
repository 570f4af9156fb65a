"""Masks as DICOM segmentations: read back, they are the mask, at its place, of its series."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.cli import main
from modeling_rasalore.formats import dicom_segmentation
from modeling_rasalore.formats.dicom_segmentation import Algorithm
from modeling_rasalore.formats.stored_voxels import FormatError
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.reading import hash_scan, read_scan
from modeling_rasalore.scans.volume_writing import write_nifti, write_segmentation
from modeling_rasalore.scans.volumes import Volume, VolumeError, read_volume

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
from dicom_files import write_series, zip_series  # noqa: E402
from odd_formats import drop_preamble, write_enhanced  # noqa: E402

TURNED = np.array([[-0.8, 0.6, 0, 20], [-0.48, -0.64, 1.5, 30], [0.36, 0.48, 2, -9], [0, 0, 0, 1]])
ALGORITHM = Algorithm("0.1.0", "some/model", "ab" * 32, 0.5)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, (12, 10, 6)).astype(np.int16)


def some_mask(scan: Volume) -> np.ndarray:
    mask = np.zeros(scan.slices.shape, np.uint8)
    mask[1:4, 2:5, 3:9] = 1
    mask[4, 6, 1] = 1
    return mask


def read_back(path: Path, scan: Volume) -> np.ndarray:
    """Return a segmentation in the slice frame of its scan, by the places that it tells."""
    volume = highdicom.seg.segread(path).get_volume(
        combine_segments=True, allow_missing_positions=True
    )
    lps = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ scan.geometry.slice_affine)
    mask = np.zeros(scan.slices.shape, np.uint8)
    marked = np.argwhere(volume.array)
    places = lps @ volume.affine @ np.column_stack([marked, np.ones(len(marked))]).T
    indices = places[:3].T
    assert np.abs(indices - indices.round()).max() < 0.01
    mask[tuple(indices.round().astype(int).T)] = 1
    return mask


SOURCES = {
    "series": lambda path: write_series(path, voxels(), TURNED, SeriesNumber=7),
    "zip": lambda path: zip_series(path.with_suffix(".zip"), write_series(path, voxels(), TURNED)),
    "enhanced": lambda path: write_enhanced(path, voxels(), TURNED),
    "one slice": lambda path: write_series(path, voxels()[:, :, :1], TURNED),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_segmentation_is_the_mask_at_its_place(tmp_path: Path, kind: str) -> None:
    scan = read_scan(SOURCES[kind](tmp_path / "s"))
    mask = some_mask(scan) if kind != "one slice" else np.ones(scan.slices.shape, np.uint8)
    path = write_segmentation(tmp_path / "mask.dcm", mask, scan, ALGORITHM)
    assert np.array_equal(read_back(path, scan), mask)
    raw = pydicom.dcmread(path)
    assert int(raw.pixel_array.sum()) == int(mask.sum())
    assert sorted(p.name for p in tmp_path.glob("*.dcm")) == ["mask.dcm"]


def test_a_segmentation_says_what_it_is_and_of_which_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", voxels(), TURNED, SeriesNumber=7, StudyID="4")
    scan, source = read_scan(folder), pydicom.dcmread(next(folder.iterdir()))
    path = write_segmentation(tmp_path / "mask.dcm", some_mask(scan), scan, ALGORITHM)
    dataset = highdicom.seg.segread(path)
    (reference,) = dataset.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == source.SeriesInstanceUID != dataset.SeriesInstanceUID
    assert (dataset.PatientID, dataset.StudyID, dataset.SeriesNumber) == ("4711", "4", 9007)
    segment = dataset.get_segment_description(1)
    codes = segment.segmented_property_category, segment.segmented_property_type
    assert [(c.value, c.scheme_designator) for c in codes] == [
        ("49755003", "SCT"),
        ("52988006", "SCT"),
    ]
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert (dataset.ManufacturerModelName, dataset.SoftwareVersions) == (
        *("some/model", "rasalore 0.1.0"),
    )
    assert "threshold 0.5" in dataset.ContentDescription


def test_an_empty_mask_is_written_too(tmp_path: Path) -> None:
    scan = read_scan(write_series(tmp_path / "s", voxels(), TURNED))
    path = write_segmentation(
        tmp_path / "mask.dcm", np.zeros(scan.slices.shape, np.uint8), scan, ALGORITHM
    )
    assert pydicom.dcmread(path).pixel_array.sum() == 0


def test_sources_that_are_gone_or_nameless_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_series(tmp_path / "s", voxels(), TURNED, SOPInstanceUID="")
    scan, path = read_scan(folder), tmp_path / "mask.dcm"
    with pytest.raises(FormatError, match="SOPInstanceUID"):
        write_segmentation(path, some_mask(scan), scan, ALGORITHM)
    monkeypatch.setattr(dicom_segmentation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FormatError, match=r"pip install 'rasalore\[dicom-seg\]'"):
        write_segmentation(path, some_mask(scan), scan, ALGORITHM)
    next(folder.iterdir()).unlink()
    with pytest.raises(VolumeError, match="cannot be read as DICOM"):
        write_segmentation(path, some_mask(scan), scan, ALGORITHM)
    assert not path.exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that marks something, if nothing sensible."""
    torch.manual_seed(0)
    config = RasaloreConfig.preset("tiny", initializer_range=0.2)
    folder = tmp_path_factory.mktemp("model")
    for part in (RasaloreModel(config), RasaloreImageProcessor(size=config.image_size)):
        part.save_pretrained(folder)
    return folder


def predict(model: Path, scan: Path, out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the entry of the one scan."""
    given = ["predict", str(scan), "--model", str(model), "--out", str(out), "--quiet", *words]
    code = main(given)
    (entry,) = json.loads((out / "manifest.json").read_text())["scans"].values()
    return code, entry


def phantom() -> np.ndarray:
    data = np.zeros((40, 36, 12), np.int16)
    data[6:33, 5:30, 1:11] = np.random.default_rng(0).integers(50, 400, (27, 25, 10))
    return data


def test_results_and_notes_beside_the_slices_are_no_part_of_their_series(
    tmp_path: Path, model: Path
) -> None:
    folder = write_series(tmp_path / "s", phantom(), TURNED)
    slices, before = len(list(folder.iterdir())), hash_scan(folder)
    (folder / "notes.txt").write_text("of somebody")
    words = ("--format", "dicom-seg", "--threshold", "0.45")
    code, entry = predict(model, folder, folder, *words)
    assert (code, entry["input_sha256"], hash_scan(folder)) == (0, before, before)
    found = find_scans([folder])
    assert (folder / "s_mask.dcm").is_file() and found.used == slices
    assert [each.path.name for each in found.left_out] == ["notes.txt"]


@pytest.mark.parametrize("preamble", [True, False])
def test_predict_writes_a_segmentation_of_what_it_found(
    tmp_path: Path, model: Path, preamble: bool
) -> None:
    folder = write_series(tmp_path / "s", phantom(), TURNED)
    for path in [] if preamble else folder.iterdir():
        drop_preamble(path)
    words = ("--threshold", "0.45")
    code, nifti = predict(model, folder, tmp_path / "nifti", *words)
    assert (code, nifti["status"]) == (0, "done") and nifti["millilitres"] > 0.1
    code, entry = predict(model, folder, tmp_path / "seg", *words, "--format", "dicom-seg")
    assert (code, entry["millilitres"]) == (0, nifti["millilitres"])
    assert entry["outputs"]["mask"] == "s_mask.dcm"
    assert entry["outputs"]["scores"] == "s_scores.nii.gz"
    expected = read_volume(tmp_path / "nifti" / nifti["outputs"]["mask"]).slices
    assert np.array_equal(read_back(tmp_path / "seg" / "s_mask.dcm", read_scan(folder)), expected)


def test_a_scan_that_did_not_come_as_dicom_has_no_segmentation(tmp_path: Path, model: Path) -> None:
    scan = write_nifti(tmp_path / "a.nii", phantom(), TURNED)
    code, entry = predict(model, scan, tmp_path / "out", "--format", "dicom-seg")
    assert (code, entry["status"]) == (1, "failed")
    assert entry["reason"] == (
        "a.nii: --format dicom-seg needs a scan that came as DICOM, which its mask refers to; give "
        "the series, or choose nifti, nrrd or mha."
    )


def test_an_unknown_format_is_a_mistake_in_the_command(tmp_path: Path, model: Path) -> None:
    scan = write_nifti(tmp_path / "a.nii", phantom(), TURNED)
    words = ["--model", str(model), "--out", str(tmp_path / "out"), "--format", "dcm"]
    assert main(["predict", str(scan), *words]) == 2
