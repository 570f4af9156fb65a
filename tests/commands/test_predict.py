"""`rasalore predict` and the thresholds it takes, called as a function."""

import csv
import json
import shutil

import numpy as np
import pytest
from predict_command import predict, save_tiny_model

from modeling_rasalore import (
    DdptConfig,
    DdptModel,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)
from modeling_rasalore.cli import main
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_volume


def test_predict_writes_four_files_and_says_where(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("a_mask.nii.gz", "a_scores.nii.gz", "a_overlay.png", "a.json"),
        *("manifest.json", "results.csv", "report.html", "journals"),
    }
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
    assert all(str(path) in line for path, line in zip((broken, missing), errors, strict=True))
    assert "failed: broken.nii" in captured.out
    assert "1 of 3 scans" in captured.out
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert '<li class="failed">broken: broken.nii: ' in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out" / "a.json").exists()


def test_the_threshold_reaches_the_mask(scan, model, tmp_path):
    predict(scan, model=model, out=tmp_path, options=["--threshold", "0"])
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["threshold"] == 0
    assert summary["millilitres"] == pytest.approx(12 * 16 * 4 * 3 / 1000)  # the whole brain


def test_a_4d_scan_needs_its_channel(model, tmp_path, capsys):
    data = np.zeros((8, 8, 6, 2), np.int16)
    data[2:6, 2:6, 1:5] = np.random.default_rng(0).integers(20, 200, (4, 4, 4, 2))
    scan = write_nifti(tmp_path / "four.nii.gz", data, np.diag([4.0, 4, 4, 1]))
    assert predict(scan, model=model, out=tmp_path / "out") == 1
    assert "--volume" in capsys.readouterr().err
    assert predict(scan, model=model, out=tmp_path / "out", options=["--volume", "1"]) == 0


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


def test_a_folder_run_finishes_the_good_scans_between_bad_ones(scan, model, tmp_path, capsys):
    folder = scan.parent
    for name, content in (("0.nii", b""), ("b.nii.gz", b"no gzip"), ("c.nii", b"x" * 999)):
        (folder / name).write_bytes(content)
    (folder / "d.nii.gz").write_bytes(scan.read_bytes())
    assert predict(folder, model=model, out=tmp_path / "out") == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    status = {key: entry["status"] for key, entry in manifest["scans"].items()}
    assert status == {"0": "failed", "a": "done", "b": "failed", "c": "failed", "d": "done"}
    assert "2 of 5 scans" in capsys.readouterr().out
    rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:3]] == [["0", "failed"], ["a", "done"]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2  # overlays; nothing was marked
    assert "empty mask does not exclude disease" in page


def test_a_folder_with_several_sequences_needs_its_modality(scan, model, tmp_path, capsys):
    for name in ("p_t1.nii.gz", "p_t2.nii.gz", "p_seg.nii.gz"):
        (scan.parent / name).write_bytes(scan.read_bytes())
    scan.unlink()
    assert predict(scan.parent, model=model, out=tmp_path / "out") == 1
    assert "t1, t2" in capsys.readouterr().err
    options = ["--modality", "t2"]
    assert predict(scan.parent, model=model, out=tmp_path / "out", options=options) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["scans"]) == ["p_t2"]


def test_a_scan_of_another_sequence_than_the_models_is_warned_about(scan, tmp_path, capsys):
    config = RasaloreConfig.preset("tiny", modality="t2")
    RasaloreModel(config).save_pretrained(tmp_path / "t2")
    RasaloreImageProcessor(size=config.image_size).save_pretrained(tmp_path / "t2")
    for name, options, warned in (
        ("x_FLAIR.nii.gz", [], True),
        ("x_t2.nii.gz", [], False),
        ("x.nii.gz", ["--modality", "t1"], True),
        ("x.nii.gz", [], False),
    ):
        (scan.parent / name).write_bytes(scan.read_bytes())
        words = [*options, "--noise-samples", "2"]
        assert predict(scan.parent / name, model=tmp_path / "t2", out=tmp_path, options=words) == 0
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["model"]["modality"] == "t2"
        (entry,) = manifest["scans"].values()
        told = [line for line in entry["warnings"] if "was trained on t2" in line]
        errors = capsys.readouterr().err
        assert len(told) == errors.count("was trained on t2") == int(warned)
        assert all(f"warning: {scan.parent / name}: {line}" in errors for line in told)
        (summary,) = tmp_path.glob("x*.json")
        assert json.loads(summary.read_text())["warnings"] == entry["warnings"]
        summary.unlink()


def test_of_a_folder_with_several_sequences_the_models_own_is_taken(scan, tmp_path, capsys):
    for patient in ("p1", "p2"):
        for name in ("t1", "t1ce", "t2", "flair"):
            path = scan.parent / patient / f"{patient}_{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(scan.read_bytes())
    scan.unlink()
    model = save_tiny_model(tmp_path / "t2", "t2")
    assert predict(scan.parent, model=model, out=tmp_path / "out") == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["scans"]) == ["p1/p1_t2", "p2/p2_t2"]
    said = [warning for entry in manifest["scans"].values() for warning in entry["warnings"]]
    assert all("a head 20 to 600 mm" in warning for warning in said)  # and none of the sequence
    rate = ["--false-alarms", "0.05"]
    assert main(["calibrate", str(scan.parent), "--model", str(model), *rate]) == 0
    (entry,) = json.loads((model / "calibration.json").read_text())["thresholds"]
    assert entry["scans"] == 2
    options = ["--modality", "flair"]  # what is asked for wins
    assert predict(scan.parent, model=model, out=tmp_path / "flair", options=options) == 0
    manifest = json.loads((tmp_path / "flair" / "manifest.json").read_text())
    assert list(manifest["scans"]) == ["p1/p1_flair", "p2/p2_flair"]


def test_a_second_run_with_fewer_options_says_what_stays_and_what_goes(
    scan, model, tmp_path, capsys
):
    out, noise = tmp_path / "out", ["--noise-samples", "2"]
    assert predict(scan, model=model, out=out, options=noise) == 0
    other = scan.with_name("b.nii.gz")
    other.write_bytes(scan.read_bytes())
    capsys.readouterr()
    assert predict(other, model=model, out=out) == 0
    said = capsys.readouterr().out
    assert "1 of 1 scans segmented; results are in" in said
    assert "results of earlier runs that stay in table and report: 1 (1 with other" in said
    assert (out / "a_spread.nii.gz").exists()
    assert predict(scan, model=model, out=out) == 0
    assert "files of an earlier run removed: a_spread.nii.gz" in capsys.readouterr().out
    assert not (out / "a_spread.nii.gz").exists()


def test_a_model_folder_without_its_processor_is_one_line_with_what_it_needs(
    scan, model, tmp_path, capsys
):
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    (folder / "preprocessor_config.json").unlink()
    assert predict(scan, model=folder, out=tmp_path / "out") == 1
    assert f"--model {folder} is incomplete: it needs config.json" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(b"half")
    assert predict(scan, model=folder, out=tmp_path / "out") == 1
    assert f"--model {folder} is incomplete: it needs config.json" in capsys.readouterr().err


def test_a_sequence_that_does_not_exist_is_refused(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path, options=["--modality", "T2"]) == 1
    assert "must be one of t1, t1ce, t2, flair, got T2" in capsys.readouterr().err


def test_resume_skips_what_is_finished_and_repeats_what_changed(scan, model, tmp_path, capsys):
    other = scan.with_name("b.nii.gz")
    other.write_bytes(scan.read_bytes())
    predict(scan.parent, model=model, out=tmp_path / "out")
    (tmp_path / "out" / "b_mask.nii.gz").unlink()
    capsys.readouterr()
    assert predict(scan.parent, model=model, out=tmp_path / "out", options=["--resume"]) == 0
    printed = capsys.readouterr().out
    assert f"{scan}: finished before, skipped" in printed
    assert f"{other}: finished before" not in printed
    assert (tmp_path / "out" / "b_mask.nii.gz").exists()
    options = ["--resume", "--threshold", "0.1"]
    assert predict(scan, model=model, out=tmp_path / "out", options=options) == 0
    assert "skipped" not in capsys.readouterr().out


def test_json_is_all_that_is_printed_and_quiet_prints_nothing(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path / "out", options=["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scans"]["a"]["status"] == "done"
    assert predict(scan, model=model, out=tmp_path / "out", options=["--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_calibrated_threshold_is_used_and_an_unknown_rate_refused(scan, model, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    rate = ["--false-alarms", "0.05"]
    assert predict(scan, model=folder, out=tmp_path / "out", options=rate) == 1
    assert "run `rasalore calibrate`" in capsys.readouterr().err
    assert main(["calibrate", str(scan), "--model", str(folder), *rate]) == 0
    (entry,) = json.loads((folder / "calibration.json").read_text())["thresholds"]
    assert (entry["scans"], entry["slices"], entry["voxels"]) == (1, 4, 12 * 16 * 4)
    said = capsys.readouterr().out
    assert "in at most 1 of 2 scans is more than 5 % of healthy brain marked (from 1 scans" in said
    assert "same scanner, protocol and kind of people" in said
    few = ["calibrate", str(scan), "--model", str(folder), *rate, "--scans-above", "0.1"]
    assert main(few) == 1
    assert "give 9 healthy scans" in capsys.readouterr().err
    assert predict(scan, model=folder, out=tmp_path / "out", options=rate) == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["threshold"] == entry["threshold"]
    options = ["--false-alarms", "0.07"]
    assert predict(scan, model=folder, out=tmp_path / "out", options=options) == 1


def test_noise_samples_add_a_map_of_doubt_and_a_quality_score(scan, model, tmp_path):
    options = ["--noise-samples", "3", "--flips"]
    for out in ("first", "again"):
        assert predict(scan, model=model, out=tmp_path / out, options=options) == 0
    summary = json.loads((tmp_path / "first" / "a.json").read_text())
    assert 0 <= summary["quality_score"] <= 1
    spread = read_volume(tmp_path / "first" / "a_spread.nii.gz").slices
    assert 0 < spread.max() <= 0.5
    assert not spread[read_volume(scan).slices == 0].any()
    names = [tmp_path / out / "a_spread.nii.gz" for out in ("first", "again")]
    assert names[0].read_bytes() == names[1].read_bytes()
    (row,) = csv.DictReader((tmp_path / "first" / "results.csv").read_text().splitlines())
    assert row["quality_score"]


def test_the_summary_tells_size_place_and_largest_part_in_mm_and_ml(scan, model, tmp_path):
    assert predict(scan, model=model, out=tmp_path, options=["--threshold", "0"]) == 0
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["largest_component_ml"] == summary["millilitres"] == pytest.approx(2.304)
    # Voxels 4..15, 4..19 and 1..4 of an affine of -1, -1 and 3 mm, with half a voxel around.
    assert summary["bounding_box_mm"] == [[-15.5, -19.5, 1.5], [-3.5, -3.5, 13.5]]
    assert summary["quality_score"] is None


def test_smoothing_and_removal_change_masks_only_when_asked_for(scan, model, tmp_path):
    whole = ["--threshold", "0", "--smallest-ml"]  # the brain is one part of 2.304 mL
    for size, volume in (("2.3", 2.304), ("2.4", 0.0)):
        assert predict(scan, model=model, out=tmp_path / size, options=[*whole, size]) == 0
        summary = json.loads((tmp_path / size / "a.json").read_text())
        assert summary["millilitres"] == pytest.approx(volume)
    predict(scan, model=model, out=tmp_path / "plain")
    predict(scan, model=model, out=tmp_path / "smooth", options=["--smooth-mm", "3"])
    plain, smooth = (
        read_volume(tmp_path / name / "a_scores.nii.gz").slices for name in ("plain", "smooth")
    )
    assert np.array_equal(plain > 0, smooth > 0)
    assert smooth[plain > 0].std() < 0.9 * plain[plain > 0].std()


def test_the_free_map_joins_the_scores_and_is_recorded(scan, model, tmp_path, capsys):
    words = {"plain": [], "none": ["--free-map", "0"], "fused": ["--free-map", "1"]}
    for name, options in words.items():
        options = [*options, "--assume-modality", "t2"]
        assert predict(scan, model=model, out=tmp_path / name, options=options) == 0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["settings"]["free_map"] == float(name == "fused")
    plain, none, fused = (read_volume(tmp_path / name / "a_scores.nii.gz").slices for name in words)
    assert np.array_equal(plain, none)
    assert np.array_equal(plain > 0, fused > 0) and not np.allclose(plain, fused, atol=0.01)
    assert predict(scan, model=model, out=tmp_path, options=["--free-map", "-1"]) == 2
    words = ["calibrate", str(scan), "--model", str(model), "--false-alarms", "0.1", "--quiet"]
    assert main([*words, "--free-map", "0.5", "--assume-modality", "t2"]) == 0
    stored = json.loads((model / "calibration.json").read_text())["thresholds"]
    assert [entry["free_map"] for entry in stored] == [0.5]
    assert predict(scan, model=model, out=tmp_path, options=["--false-alarms", "0.1"]) == 1
    assert "the model is calibrated for no share of voxels, not 0.1; run" in capsys.readouterr().err


def test_device_and_precision_are_chosen_and_said(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path / "a", options=["--device", "cpu"]) == 0
    assert "computing on cpu in float32" in capsys.readouterr().out
    options = ["--device", "cpu", "--precision", "bfloat16"]
    assert predict(scan, model=model, out=tmp_path / "b", options=options) == 0
    assert "computing on cpu in bfloat16" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["settings"]["precision"] == "bfloat16"
    scores = [read_volume(tmp_path / name / "a_scores.nii.gz").slices for name in "ab"]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.05
    assert predict(scan, model=model, out=tmp_path / "c", options=["--precision", "int8"]) == 1
    assert "must be auto, float32 or bfloat16" in capsys.readouterr().err


def test_options_that_no_prediction_can_have_end_with_code_2(scan, model, tmp_path, capsys):
    assert predict(scan, model=model, out=tmp_path, options=["--smooth-mm", "inf"]) == 2
    assert "must be 0 or more, got inf mm" in " ".join(capsys.readouterr().err.split())


def test_a_real_scan_is_segmented(brats2021, model, tmp_path):
    scan = sorted(brats2021.glob("*/*_t2.nii.gz"))[0]
    assert predict(scan, model=model, out=tmp_path) == 0
    summary = json.loads(next(tmp_path.glob("*_t2.json")).read_text())
    assert (summary["slices"], summary["voxel_mm3"]) == (155, 1.0)
    assert summary["warnings"] == []
