"""Runs over folders that hold more than scans: manifest, report and terminal tell of the rest."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_folders import AFFINE, disc, not_fetched, odd_names, save, study, tiny_voxels
from small_rasalore import make_model, small_config

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.cli import main
from modeling_rasalore.prediction.run import predict_scans
from modeling_rasalore.scans.finding import find_scans


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small model with random weights that knows T2."""
    folder = tmp_path_factory.mktemp("model") / "small"
    make_model(modality="t2").save_pretrained(folder)
    RasaloreImageProcessor(small_config().image_size, 1).save_pretrained(folder)
    return folder


def predict(scans: Path, model: Path, out: Path, *options: str) -> int:
    return main(["predict", str(scans), "--model", str(model), "--out", str(out), *options])


def manifest_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def test_what_was_left_out_stands_in_manifest_report_and_terminal(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    out = tmp_path / "out"
    assert predict(study(tmp_path / "study"), model, out, "--modality", "t2") == 0
    printed, manifest = capsys.readouterr().out, manifest_of(out)
    assert list(manifest["scans"]) == ["SE000002"]
    assert [entry["path"] for entry in manifest["left_out"]] == ["SE000001", "SE000003"]
    assert manifest["file_counts"] == {
        **{"files": 18, "used": 6, "left_out": 12, "hidden": 0, "own_results": 0}
    }
    assert "its description says flair, not t2" in printed
    assert "1 of 1 scans segmented" in printed
    page = (out / "report.html").read_text()
    assert "6 of 18 files used, 12 left out" in page
    assert "SE000003: its description says flair, not t2" in page


def test_quiet_runs_keep_the_count(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "scans" / "a_t2.nii")
    save(tmp_path / "scans" / "a_seg.nii")
    for option in ("--quiet", "--json"):
        assert predict(tmp_path / "scans", model, tmp_path / "out", option) == 0
        captured = capsys.readouterr()
        assert captured.err.count("1 of 2 files used, 1 left out\n") == 1
        assert "a_seg" not in captured.err
        assert (captured.out == "") == (option == "--quiet")


def test_lists_of_a_disc_do_not_fail_its_run(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("pydicom")
    assert predict(disc(tmp_path / "cd"), model, tmp_path / "out", "--modality", "t2") == 0
    assert list(manifest_of(tmp_path / "out")["scans"]) == ["SE000001"]
    assert manifest_of(tmp_path / "out")["file_counts"]["left_out"] == 3


def test_a_scan_that_was_not_fetched_is_a_failed_entry(tmp_path: Path, model: Path) -> None:
    data = not_fetched(tmp_path / "data")
    assert predict(data, model, tmp_path / "out", "--modality", "t2") == 1
    entries = manifest_of(tmp_path / "out")["scans"].values()
    assert [entry["status"] for entry in entries] == ["done", "failed"]
    assert "leads to a file that is not there" in [*entries][1]["reason"]


def test_results_in_the_folder_of_the_scans_are_known_again(tmp_path: Path, model: Path) -> None:
    folder = save(tmp_path / "scans" / "scan_t2.nii.gz").parent
    for place in ("scans", "scans/results"):
        for _ in range(2):
            options = ("--modality", "t2", "--noise-samples", "2")
            assert predict(folder, model, tmp_path / place, *options) == 0
            manifest = manifest_of(tmp_path / place)
            assert list(manifest["scans"]) == ["scan_t2"]
            assert manifest["left_out"] == []
        found = find_scans([folder], "t2").counts
        assert found["files"] == sum(path.is_file() for path in folder.rglob("*"))
        assert (found["used"], found["own_results"]) == (1, found["files"] - 1)


def test_a_result_that_was_moved_says_whose_it_is(tmp_path: Path, model: Path) -> None:
    scan = save(tmp_path / "scans" / "scan_t2.nii.gz")
    assert predict(scan, model, tmp_path / "out") == 0
    (tmp_path / "out" / "scan_t2_scores.nii.gz").rename(scan.parent / "other_t2.nii.gz")
    (left,) = find_scans([scan.parent], "t2").left_out
    assert (left.path.name, left.reason) == ("other_t2.nii.gz", "a result of this software")


def test_a_scan_that_contradicts_fails_unless_it_is_assumed(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = save(tmp_path / "a_flair.nii.gz"), tmp_path / "out"
    assert predict(scan, model, out, "--modality", "t2") == 1
    assert "its name says flair, not t2; give a t2 scan, or --assume" in capsys.readouterr().err
    assert predict(scan, model, out, "--assume-modality", "t2") == 0
    manifest, sentence = manifest_of(out), "taken as t2 because of --assume-modality, although"
    assert manifest["settings"]["assume_modality"] == "t2"
    assert manifest["scans"]["a_flair"]["modality"] == "t2"
    for name in ("a_flair.json", "manifest.json", "results.csv", "report.html"):
        assert sentence in (out / name).read_text(), name
    assert sentence in capsys.readouterr().err


def test_one_name_of_any_bytes_does_not_stop_the_others(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = odd_names(tmp_path / "scans"), tmp_path / "out"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict"))
    assert predict(scans, model, out, "--parquet") == 0
    sys.stdout.flush()
    assert b"5 of 5 scans segmented" in sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["scan"] for row in csv.DictReader(file)]
    assert rows == sorted(rows)
    assert "Andr\\udce9_t2" in rows
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'alt="Slices that say most of Andr\\udce9_t2"' in page
    assert len(list(out.glob("*_mask.nii.gz"))) == 5


@settings(max_examples=10, deadline=None)
@given(broken=st.sets(st.integers(0, 4)), fetched=st.sets(st.integers(0, 4)))
def test_all_but_the_unreadable_finish(
    broken: set[int], fetched: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for number in range(5):
        path = save(folder / "scans" / f"{number}_t2.nii")
        if number in broken:
            path.write_bytes(path.read_bytes()[: 400 * number])
        elif number not in fetched:
            path.unlink()
            path.symlink_to(folder / "nowhere")
    found = find_scans([folder / "scans"], "t2")
    processor = RasaloreImageProcessor(small_config().image_size, 1)
    files = ("mask", "summary")
    manifest = predict_scans(
        make_model(), processor, found, folder / "out", files=files, say=lambda line: None
    )
    done = [key for key, entry in manifest["scans"].items() if entry["status"] == "done"]
    assert done == [f"{number}_t2" for number in range(5) if number in fetched - broken]
    assert manifest["file_counts"]["files"] == len(manifest["scans"]) == 5


def test_a_result_tells_nothing_of_the_scan_but_whose_it_is(tmp_path: Path, model: Path) -> None:
    scan = save(tmp_path / "a.nii.gz", header="DOE JANE")
    assert predict(scan, model, tmp_path / "out") == 0
    written = nib.load(tmp_path / "out" / "a_mask.nii.gz")
    assert written.header["descrip"].item() == b"rasalore result"
    assert np.array_equal(written.affine, nib.load(scan).affine)


@pytest.mark.parametrize("format", ["nrrd", "mha", "dicom-seg"])
def test_results_in_other_formats_are_known_again(tmp_path: Path, model: Path, format: str) -> None:
    for library in ("pydicom", "highdicom", "nrrd"):
        pytest.importorskip(library)
    folder = tmp_path / "scans"
    write_series(folder / "series_t2", tiny_voxels(), AFFINE)
    for place in ("scans", "scans/results"):
        for _ in range(2):
            assert predict(folder, model, tmp_path / place, "--format", format) == 0
            assert list(manifest_of(tmp_path / place)["scans"]) == ["series_t2"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (*folder.glob("*_mask.*"), *folder.glob("*_scores.*")):
        path.rename(moved / path.name.replace("_mask", "_t2").replace("_scores", "_t2_b"))
    with pytest.raises(ValueError, match="holds no t2 scan"):
        find_scans([moved], "t2")


def test_files_of_others_are_never_overwritten(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scans"
    for name in ("a", "b", "c"):
        save(folder / f"{name}_t2.nii.gz")
    mine = save(folder / "a_t2_mask.nii.gz", (tiny_voxels() > 300).astype(np.uint8))
    sidecar = folder / "b_t2.json"
    sidecar.write_text('{"EchoTime": 0.1}')
    before = mine.read_bytes(), sidecar.read_bytes()
    for _ in range(2):
        assert predict(folder, model, folder, "--modality", "t2") == 1
        entries = manifest_of(folder)["scans"]
        assert [entries[f"{name}_t2"]["status"] for name in "abc"] == ["failed", "failed", "done"]
        assert (
            "a_t2_mask.nii.gz in --out was not written by this software"
            in (entries["a_t2"]["reason"])
        )
        assert "b_t2.json in --out" in entries["b_t2"]["reason"]
        assert (mine.read_bytes(), sidecar.read_bytes()) == before
    assert capsys.readouterr().err.count("give --out another folder.") == 4


@pytest.mark.parametrize("name", ["results.csv", "report.html", "manifest.json"])
def test_a_table_of_others_is_not_overwritten(
    tmp_path: Path, model: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = save(tmp_path / "a_t2.nii.gz")
    (tmp_path / name).write_text("mine")
    assert predict(scan, model, tmp_path) == 1
    assert f"holds {name}, not written by this software" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_the_description_of_a_bids_data_set_stays_its_own(tmp_path: Path, model: Path) -> None:
    save(tmp_path / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    description = tmp_path / "dataset_description.json"
    description.write_text('{"Name": "a", "BIDSVersion": "1.8.0"}')
    assert predict(tmp_path, model, tmp_path) == 0
    assert json.loads(description.read_text())["Name"] == "a"


def test_a_scan_of_several_sequences_gives_the_one_that_the_model_knows(
    tmp_path: Path, model: Path
) -> None:
    voxels = np.stack([tiny_voxels(seed) for seed in range(4)], axis=-1)
    scan = save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", voxels)
    outputs = []
    for words in ((), ("--modality", "t2"), ("--volume", "3")):
        out = tmp_path / f"out{len(outputs)}"
        assert predict(scan, model, out, *words) == 0
        outputs.append(nib.load(out / "BRATS_001_scores.nii.gz").get_fdata())
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])
    entry = manifest_of(tmp_path / "out0")["scans"]["BRATS_001"]
    assert entry["modality"] == "t2"
    assert "volume 3 was taken, t2: what the model was trained on." in entry["warnings"]


def test_a_file_name_never_breaks_the_line_of_its_scan(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "scans" / "new\nline\x1b[31m_t2.nii.gz")
    assert predict(tmp_path / "scans", model, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "new\\nline\\x1b[31m_t2.nii.gz: " in printed and "\x1b" not in printed
