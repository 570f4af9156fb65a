"""`rasalore predict scan.nii.gz` and `rasalore demo` with nothing else said."""

import json
from pathlib import Path

import numpy as np
import pytest
from own_model import save_own_model, use_own_model
from saved_defaults import save_defaults

from modeling_rasalore.cli import main
from modeling_rasalore.commands import demo as demo_module
from modeling_rasalore.prediction.loading import describe_model, load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import CALIBRATION_FILE
from modeling_rasalore.scans.volume_writing import write_nifti


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_own_model(save_own_model(tmp_path / "own" / "t2"), monkeypatch)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    (tmp_path / "scans").mkdir()
    return write_nifti(tmp_path / "scans" / "a_t2.nii.gz", data, np.diag([-5.0, -5.0, 10.0, 1.0]))


def calibrate(folder: Path, **made: object) -> None:
    """Store thresholds 0 for 5 %, 0.25 for 1 % and 0.9 for 2 % of healthy voxels."""
    entry = {"unit": "voxels", "promise": "in at most 1 of 9 scans more", **made}
    rates = ((0.05, 0.0), (0.01, 0.25), (0.02, 0.9))
    content = {
        "weights_sha256": describe_model(load_model(str(folder))[0])["weights_sha256"],
        "thresholds": [{**entry, "rate": rate, "threshold": value} for rate, value in rates],
    }
    (folder / CALIBRATION_FILE).write_text(json.dumps(content))


def summary_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "a_t2.json").read_text())
    return content


def test_a_scan_alone_is_enough_and_the_report_is_named_last(
    own_model: Path, scan: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(scan)]) == 0
    out, err = capfd.readouterr()
    page = scan.parent / "a_t2_rasalore" / "report.html"
    assert out.splitlines()[-1] == f"report: {page}" and page.is_file()
    assert out.startswith("model: own, t2, which comes with the package\ncomputing on ")
    assert all(line.startswith("warning: ") for line in err.splitlines())


def test_a_second_run_takes_a_new_folder_and_resume_the_last_one(
    own_model: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(scan)]) == main(["predict", str(scan)]) == 0
    first, second = (scan.parent / name for name in ("a_t2_rasalore", "a_t2_rasalore_2"))
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["predict", str(scan), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "finished before, skipped" in said and f"results are in {second}" in said
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(scan.parent.iterdir())) == 3


def test_results_beside_scans_are_no_scans_of_the_next_run(own_model: Path, scan: Path) -> None:
    assert main(["predict", str(scan)]) == 0
    assert main(["predict", str(scan.parent)]) == 0
    manifest = json.loads((scan.parents[1] / "scans_rasalore" / "manifest.json").read_text())
    assert list(manifest["scans"]) == ["a_t2"] and manifest["file_counts"]["left_out"] == 0


def test_shards_without_a_common_folder_are_refused(
    own_model: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(scan), "--shard", "0/2"]) == 1
    assert "give all the same --out" in capsys.readouterr().err
    assert [path.name for path in scan.parent.iterdir()] == ["a_t2.nii.gz"]


def test_the_threshold_is_the_calibrated_one_for_1_percent_and_said(
    own_model: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate(own_model)
    assert main(["predict", str(scan)]) == 0
    said = "threshold 0.25: the model's default, calibrated: in at most 1 of 9 scans more"
    assert said in capsys.readouterr().out
    summary = summary_of(scan.parent / "a_t2_rasalore")
    volumes = summary["millilitres_at_rates"]
    assert summary["threshold"] == 0.25 and isinstance(volumes, dict)
    assert volumes["0.01"] == summary["millilitres"]
    assert volumes["0.05"] == pytest.approx(12 * 16 * 4 * 5 * 5 * 10 / 1000)  # the whole brain
    assert summary["interval_ml"] == [volumes["0.01"], volumes["0.05"]]


def test_what_the_user_gives_wins_over_what_the_model_saves(own_model: Path, scan: Path) -> None:
    calibrate(own_model, smooth_mm=4.0)
    save_defaults(own_model, PredictionOptions(smooth_mm=4.0, flips=True), "painted scans")
    runs = {
        "own": [],
        "given": ["--smooth-mm", "0", "--no-flips"],
        "threshold": ["--threshold", "0.125", "--no-flips"],
    }
    settings = {}
    for name, words in runs.items():
        assert main(["predict", str(scan), "--out", str(scan.parents[1] / name), *words]) == 0
        manifest = json.loads((scan.parents[1] / name / "manifest.json").read_text())
        settings[name] = manifest["settings"]
    made = {name: (s["smooth_mm"], s["flips"], s["threshold"]) for name, s in settings.items()}
    assert made == {"own": (4, True, 0.5), "given": (0, False, 0.5), "threshold": (4, False, 0.125)}
    assert "other flips, smoothing or free map" in settings["own"]["threshold_source"]
    assert settings["threshold"]["threshold_source"] == "given"
    assert settings["threshold"]["thresholds_at_rates"] == {"0.01": 0.25, "0.05": 0.0}


def test_the_demo_segments_its_scan_and_opens_the_report(
    own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(demo_module, "has_screen", lambda: True)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == main(["demo", "--no-open"]) == 0
    assert opened == [(tmp_path / "rasalore_demo" / "report.html").as_uri()]
    assert (tmp_path / "rasalore_demo_2" / "synthetic_t2_mask.nii.gz").is_file()
