"""The command line, called as a function; one test runs it as a user would."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore import (
    DdptConfig,
    DdptModel,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)
from modeling_rasalore.cli import main, output_places
from modeling_rasalore.volumes import write_nifti


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = RasaloreConfig.preset("tiny")
    RasaloreModel(config).save_pretrained(folder)
    RasaloreImageProcessor(size=config.image_size).save_pretrained(folder)
    return folder


@pytest.fixture
def scan(tmp_path):
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    return write_nifti(tmp_path / "scans" / "a.nii.gz", data, np.diag([-1.0, -1.0, 3.0, 1.0]))


@pytest.fixture(autouse=True)
def _scans_folder(tmp_path):
    (tmp_path / "scans").mkdir()


def predict(*scans, model, out, options=()):
    return main(["predict", *map(str, scans), "--model", str(model), "--out", str(out), *options])


def test_predict_writes_four_files_and_says_where(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a_mask.nii.gz", "a_scores.nii.gz", "a_overlay.png", "a.json"}
    printed = capsys.readouterr().out
    assert f"1 of 1 scans segmented; results are in {tmp_path / 'out'}" in printed
    assert "not a medical device" in printed


def test_an_unreadable_scan_costs_one_line_and_the_rest_go_on(scan, model, tmp_path, capsys):
    broken = tmp_path / "scans" / "broken.nii"
    broken.write_text("no scan")
    missing = tmp_path / "scans" / "missing.nii"
    assert predict(broken, scan, missing, model=model, out=tmp_path / "out") == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert [str(path) in line for path, line in zip((broken, missing), errors, strict=True)]
    assert "1 of 3 scans" in captured.out
    assert (tmp_path / "out" / "a.json").exists()


def test_the_threshold_reaches_the_mask(scan, model, tmp_path):
    predict(scan, model=model, out=tmp_path, options=["--threshold", "0"])
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["threshold"] == 0
    assert summary["millilitres"] == pytest.approx(12 * 16 * 4 * 3 / 1000)  # the whole brain


def test_a_4d_scan_needs_its_channel(model, tmp_path, capsys):
    data = np.ones((8, 8, 3, 2), np.int16)
    scan = write_nifti(tmp_path / "scans" / "four.nii.gz", data, np.eye(4))
    assert predict(scan, model=model, out=tmp_path / "out") == 1
    assert "channel" in capsys.readouterr().err
    assert predict(scan, model=model, out=tmp_path / "out", options=["--channel", "1"]) == 0


def test_a_model_that_is_nowhere_is_one_line(scan, tmp_path, capsys):
    assert predict(scan, model=tmp_path / "nowhere", out=tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("error: --model needs an existing folder")


def test_a_stage_1_model_is_refused(scan, tmp_path, capsys):
    DdptModel(DdptConfig.preset("tiny")).save_pretrained(tmp_path / "ddpt")
    assert predict(scan, model=tmp_path / "ddpt", out=tmp_path / "out") == 1
    assert "got DdptModel" in capsys.readouterr().err


def test_incomplete_weights_are_refused(scan, tmp_path, capsys):
    folder = tmp_path / "partial"
    whole = RasaloreModel(RasaloreConfig.preset("tiny"))
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("point_head")}
    whole.save_pretrained(folder, state_dict=state)
    assert predict(scan, model=folder, out=tmp_path / "out") == 1
    assert "point_head" in capsys.readouterr().err


def test_results_mirror_the_folders_of_the_scans():
    scans = [Path("/data/sub-1/anat/t2.nii.gz"), Path("/data/sub-2/anat/t2.nii")]
    assert output_places(scans, Path("out")) == [
        Path("out/sub-1/anat/t2"),
        Path("out/sub-2/anat/t2"),
    ]


def test_results_of_one_folder_are_not_nested():
    scans = [Path("/data/a.nii"), Path("/data/b.nii.gz")]
    assert output_places(scans, Path("out")) == [Path("out/a"), Path("out/b")]


def test_two_scans_with_one_name_are_refused():
    with pytest.raises(ValueError, match="name each scan once"):
        output_places([Path("/data/a.nii"), Path("/data/a.nii.gz")], Path("out"))


def test_phantoms_are_written_with_the_asked_numbers(tmp_path, capsys):
    small = ["--shape", "24", "28", "24", "--voxel-size", "8"]
    words = ["phantoms", str(tmp_path / "p"), "--patients", "2", "--healthy", "1", "--seed", "3"]
    assert main([*words, *small]) == 0
    assert len(list((tmp_path / "p").glob("*/*_t2.nii.gz"))) == 2
    assert str(tmp_path / "p") in capsys.readouterr().out


def test_a_users_mistake_is_one_line(tmp_path, capsys):
    assert main(["phantoms", str(tmp_path), "--patients", "1", "--healthy", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: healthy_patients")


def test_the_installed_command_prints_its_help():
    command = [sys.executable, "-m", "modeling_rasalore.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "predict" in result.stdout
    assert "phantoms" in result.stdout
    assert result.stderr == ""


def test_a_real_scan_is_segmented(brats2021, model, tmp_path):
    scan = sorted(brats2021.glob("*/*_t2.nii.gz"))[0]
    assert predict(scan, model=model, out=tmp_path) == 0
    summary = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert (summary["slices"], summary["voxel_mm3"]) == (155, 1.0)
    assert summary["warnings"] == []
