"""One scan as NIfTI, as a DICOM folder and zip, and in a BIDS data set: the same mask each time."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.cli import main
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.run import predict_scans
from modeling_rasalore.scans.bids import bids_stem
from modeling_rasalore.scans.finding import find_scans
from modeling_rasalore.scans.reading import read_scan
from modeling_rasalore.scans.volume_writing import find_own_results, write_nifti
from modeling_rasalore.scans.volumes import read_volume

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("nrrd")
import nibabel as nib  # noqa: E402
from dicom_files import write_series, zip_series  # noqa: E402
from odd_formats import (  # noqa: E402
    WRITERS,
    change_series,
    compress_series,
    copy_slices,
    drop_preambles,
    invert,
    write_enhanced,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = {
    "brats2021": "brats2021/*1476/*_t2.nii.gz",
    "brats2013": "brats2013/*0001_1/Flair*.nii.gz",
    "mslub": "mslub/*/T2*.nii.gz",
}


@pytest.fixture(scope="module")
def model() -> tuple[RasaloreModel, RasaloreImageProcessor]:
    """A tiny model that answers something, if nothing sensible."""
    torch.manual_seed(0)
    config = RasaloreConfig.preset("tiny", initializer_range=0.2)
    return RasaloreModel(config).eval(), RasaloreImageProcessor(size=config.image_size)


def segment(
    model: tuple[Any, Any], given: Path, out: Path, threshold: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the one mask that a run on `given` writes, in the slice frame, and its entry."""
    options = PredictionOptions(threshold=threshold, batch_size=16)
    manifest = predict_scans(*model, find_scans([given]), out, options, say=lambda line: None)
    (entry,) = manifest["scans"].values()
    assert entry["status"] == "done", entry
    return read_volume(out / entry["outputs"]["mask"]).slices, entry


def make_doors(scan: Path, folder: Path) -> dict[str, Path]:
    """The same scan through every other door; what is no whole number stays out of DICOM."""
    bids = folder / "bids" / "sub-01" / "anat"
    bids.mkdir(parents=True)
    shutil.copy(scan, bids / f"sub-01_T2w{''.join(scan.suffixes[-2:])}")
    (folder / "bids" / "dataset_description.json").write_text('{"Name": "a"}')
    doors = {"bids": folder / "bids"}
    image = nib.load(scan)
    data = np.asarray(image.dataobj)
    if np.array_equal(data, np.rint(data)):
        doors["dicom"] = write_series(folder / "dicom", data.astype(np.int16), image.affine)
        doors["zip"] = folder / "scan.zip"
        with zipfile.ZipFile(doors["zip"], "w") as archive:
            for path in doors["dicom"].iterdir():
                archive.write(path, f"series/{path.name}")
    return doors


def check_doors(model: tuple[Any, Any], scan: Path, folder: Path, threshold: float) -> set[str]:
    doors = make_doors(scan, folder)
    expected, first = segment(model, scan, folder / "out-nifti", threshold)
    assert 0 < expected.mean() < 0.9
    for name, given in doors.items():
        mask, entry = segment(model, given, folder / f"out-{name}", threshold)
        assert np.array_equal(mask, expected), name
        assert entry["millilitres"] == pytest.approx(first["millilitres"], rel=1e-5)
        box = np.array(entry["bounding_box_mm"]) - first["bounding_box_mm"]
        assert np.abs(box).max() < 0.01, name
    return set(doors)


def middle_score(model: tuple[Any, Any], scan: Path, folder: Path) -> float:
    """A threshold that about half of the brain is above."""
    _, entry = segment(model, scan, folder / "out-first", 0.5)
    scores = read_volume(folder / "out-first" / entry["outputs"]["scores"]).slices
    return float(np.median(scores[scores > 0]))


def test_a_synthetic_scan_has_one_mask_through_every_door(
    tmp_path: Path, model: tuple[Any, Any]
) -> None:
    data = np.zeros((40, 36, 12), np.int16)
    data[6:33, 5:30, 1:11] = np.random.default_rng(0).integers(50, 400, (27, 25, 10))
    affine = np.array([[-0.9, 0.1, 0, 20], [0.1, -0.9, 0.2, 30], [0, 0.2, 2.5, -9], [0, 0, 0, 1.0]])
    scan = write_nifti(tmp_path / "case.nii.gz", data, affine)
    threshold = middle_score(model, scan, tmp_path)
    assert check_doors(model, scan, tmp_path, threshold) == {"bids", "dicom", "zip"}


# The voxels of a phantom and where they lie -> one path for `predict`.
DOORS_IN: dict[str, Callable[[Path, np.ndarray, np.ndarray], Path]] = {
    **{name: WRITERS[name] for name in WRITERS},
    "plain.nii": write_nifti,
    "series": write_series,
    "compressed": lambda path, *scan: compress_series(write_series(path, *scan)),
    "inverted": lambda path, *scan: change_series(write_series(path, *scan), invert),
    "bare": lambda path, *scan: drop_preambles(write_series(path, *scan)),
    "copies": lambda path, *scan: copy_slices(write_series(path, *scan)),
    "enhanced": write_enhanced,
    "series.zip": lambda path, *scan: zip_series(path, write_series(path.with_suffix(""), *scan)),
}
TURNED = np.array([[-0.8, 0.6, 0, 20], [-0.48, -0.64, 1.5, 30], [0.36, 0.48, 2, -9], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    data = np.zeros((40, 36, 12), np.int16)
    data[6:33, 5:30, 1:11] = np.random.default_rng(0).integers(50, 400, (27, 25, 10)) * 2
    return data


@pytest.fixture(scope="module")
def predicted(
    phantom: np.ndarray, model: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray, float]:
    """A model's folder, and mask and mL of the phantom as NIfTI."""
    folder = tmp_path_factory.mktemp("nifti")
    for part in model:
        part.save_pretrained(folder / "model")
    scan = write_nifti(folder / "scan.nii.gz", phantom, TURNED)
    mask, entry = predict(folder / "model", scan, folder / "out")
    assert 0 < mask.mean() < 0.9
    return folder / "model", mask, entry["millilitres"]


def predict(model: Path, scan: Path, out: Path, *words: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the mask that the command writes of the one scan, and the entry of the manifest."""
    given = [str(scan), "--model", str(model), "--out", str(out), "--quiet", "--threshold", "0.45"]
    assert main(["predict", *given, *words]) == 0
    (entry,) = json.loads((out / "manifest.json").read_text())["scans"].values()
    path = out / entry["outputs"]["mask"]
    return read_volume(path).slices if path.suffix != ".dcm" else np.empty(0), entry


@pytest.mark.parametrize("door", DOORS_IN)
def test_a_phantom_has_one_mask_and_one_volume_through_every_format(
    tmp_path: Path, phantom: np.ndarray, predicted: tuple[Path, np.ndarray, float], door: str
) -> None:
    model, expected, millilitres = predicted
    scan = DOORS_IN[door](tmp_path / door, phantom, TURNED)
    mask, entry = predict(model, scan, tmp_path / "out")
    assert np.array_equal(mask, expected)
    assert entry["millilitres"] == pytest.approx(millilitres, rel=1e-6)
    if door == "copies":
        assert "12 files were left out" in entry["warnings"][0]
        summary = json.loads((tmp_path / "out" / entry["outputs"]["summary"]).read_text())
        assert len(summary["left_out"]) == 12
        assert summary["left_out"][0] == {
            "input": "IM0_0(1)",
            "left_out": "a copy of slices that were read",
        }


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "mha", "dicom-seg"])
def test_a_phantoms_mask_is_the_same_in_every_format(
    tmp_path: Path, phantom: np.ndarray, predicted: tuple[Path, np.ndarray, float], kind: str
) -> None:
    model, expected, millilitres = predicted
    scan = write_series(tmp_path / "scan", phantom, TURNED)
    mask, entry = predict(model, scan, tmp_path / "out", "--format", kind)
    assert entry["millilitres"] == pytest.approx(millilitres, rel=1e-6)
    path = tmp_path / "out" / entry["outputs"]["mask"]
    if kind == "dicom-seg":
        assert int(pydicom.dcmread(path).pixel_array.sum()) == int(expected.sum())
    else:
        assert np.array_equal(mask, expected)
        written = read_volume(path).geometry
        assert written.offset_from(read_scan(scan).geometry) < 1e-3
        assert written.voxel_mm3 * expected.sum() / 1000 == pytest.approx(millilitres, rel=1e-6)


def test_the_command_line_chooses_a_series(
    tmp_path: Path,
    phantom: np.ndarray,
    predicted: tuple[Path, np.ndarray, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, expected, _ = predicted
    folder = write_series(tmp_path / "both", phantom, TURNED, SeriesNumber=4)
    for path in write_series(tmp_path / "t", phantom // 2, TURNED, SeriesNumber=5).iterdir():
        path.rename(folder / f"B{path.name}")
    words = [str(folder), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(["predict", *words]) == 1
    assert "there must be one series (or one that --series" in capsys.readouterr().err
    mask, entry = predict(model, folder, tmp_path / "out", "--series", "4")
    assert np.array_equal(mask, expected)
    assert "12 files were left out (BIM" in entry["warnings"][0]
    assert main(["inspect", str(folder), "--series", "6"]) == 1
    assert "there is no series '6'; got number 4" in capsys.readouterr().err


def test_inspect_and_predict_take_a_folder_of_series(
    tmp_path: Path, model: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for part in model:
        part.save_pretrained(tmp_path / "model")
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = np.arange(100, 116)[:, None]
    for name in ("one", "two"):
        write_series(tmp_path / "scans" / name, data, np.diag([-1.0, -1.0, 3.0, 1.0]))
    (next((tmp_path / "scans" / "two").iterdir())).unlink()  # a slice is missing now
    assert main(["inspect", str(tmp_path / "scans"), "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["slices"], good["rows"], good["columns"], good["reason"]) == (6, 24, 20, None)
    assert "missing or unevenly spaced" in bad["reason"]
    words = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["predict", str(tmp_path / "scans"), *words]) == 1
    assert (tmp_path / "out" / "one_mask.nii.gz").exists()
    assert not list((tmp_path / "out").glob("two*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_scan_has_one_mask_through_every_door(
    tmp_path: Path, model: tuple[Any, Any], name: str
) -> None:
    found = sorted(SHARED.glob(REAL[name]))
    if not found:
        pytest.skip("needs the real scans of ../shared/data")
    threshold = middle_score(model, found[0], tmp_path)
    doors = check_doors(model, found[0], tmp_path, threshold)
    assert ("dicom" in doors) == (name == "brats2021")  # the others are no whole numbers


def bids_dataset(folder: Path) -> Path:
    """Two people, one with two sessions, and files that are no raw anatomical scans."""
    data = np.zeros((12, 12, 6), np.int16)
    data[2:10, 2:10, 1:5] = np.arange(100, 164).reshape(8, 8, 1)
    for place in (
        *("sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz"),
        *("sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz", "sub-02/ses-2/anat/sub-02_ses-2_T2w.nii.gz"),
        *("sub-01/dwi/sub-01_T2w.nii.gz", "derivatives/old/sub-01/anat/sub-01_T2w.nii.gz"),
        "sub-01/anat/sub-01_label-lesion_mask.nii.gz",
    ):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, data, np.diag([-1.0, -1.0, 2.0, 1.0]))
    (folder / "dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.10.0"}')
    return folder


def test_results_of_a_bids_data_set_are_a_bids_derivative(
    tmp_path: Path, model: tuple[Any, Any]
) -> None:
    scans = find_scans([bids_dataset(tmp_path / "data")], "t2")
    out = tmp_path / "out"
    manifest = predict_scans(*model, scans, out, say=lambda line: None)
    assert len(manifest["scans"]) == 3
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    endings = ("mask.nii.gz", "probseg.nii.gz", "mask.json", "overlay.png")
    starts = ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1")
    starts += ("sub-02/ses-2/anat/sub-02_ses-2",)
    expected = {f"{start}_desc-anomaly_{ending}" for start in starts for ending in endings}
    run = {"manifest.json", "results.csv", "report.html", "dataset_description.json"}
    run.add("journals/00000-of-00001.jsonl")
    assert found == expected | run
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "rasalore"


def test_what_one_run_wrote_says_nothing_of_files_beside_another(tmp_path: Path) -> None:
    def write_run(name: str, output: str) -> list[Path]:
        """A run with one result, which its manifest and its journal list."""
        run, entry = tmp_path / name, {"outputs": {"mask": output}}
        (run / "journals").mkdir(parents=True)
        files = [run / "manifest.json", run / "journals" / "00000-of-00001.jsonl"]
        for file, content in zip(files, ({"scans": {"p": entry}}, {"entry": entry}), strict=True):
            file.write_text(json.dumps(content) + "\n")
        return files

    files = [*write_run("a", "p_t2.nii.gz"), *write_run("b", "q.nii.gz")]
    result, scan = tmp_path / "a" / "p_t2.nii.gz", tmp_path / "b" / "p_t2.nii.gz"
    assert find_own_results([*files, result, scan]) == {*files, result}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("d/sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_desc-anomaly"),
        (
            "sub-1/ses-2/anat/sub-1_ses-2_acq-3d_FLAIR.nii",
            "sub-1/ses-2/anat/sub-1_ses-2_acq-3d_desc-anomaly",
        ),
        ("sub-1/anat/sub-1_desc-preproc_T2w.nii.gz", "sub-1/anat/sub-1_desc-anomaly"),
        ("sub-1/anat/t2.nii.gz", ""),
        ("sub-1/dwi/sub-1_dwi.nii.gz", ""),
        ("patient/anat/sub-1_T2w.nii.gz", ""),
    ],
)
def test_places_of_results_follow_the_entities_of_a_scan(path: str, place: str) -> None:
    found = bids_stem(Path("/data") / path)
    assert (found.as_posix() if found else "") == place


@pytest.mark.parametrize(
    ("name", "header", "modality", "told"),
    [
        ("a_FLAIR.nii.gz", "", None, "flair"),
        ("a.nii.gz", "axial T2 TSE", None, "t2"),
        ("a.nii.gz", "", "t1", "t1"),
        ("a.nii.gz", "", None, None),
    ],
)
def test_a_scans_sequence_is_told_by_option_name_or_header(
    tmp_path: Path, name: str, header: str, modality: str | None, told: str | None
) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4))
    image.header["descrip"] = header
    nib.save(image, tmp_path / name)
    assert read_scan(tmp_path / name, modality=modality).sequence == told


def test_a_series_tells_its_sequence_in_its_description(tmp_path: Path) -> None:
    data, words = np.ones((4, 5, 6), np.int16), {"SeriesDescription": "tra T2 FLAIR"}
    assert read_scan(write_series(tmp_path / "1", data, np.eye(4), **words)).sequence == "flair"
