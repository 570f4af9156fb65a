"""Thresholds that the Space offers, and the example cases that it opens."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from saved_defaults import save_defaults
from space import write_scan

from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS
from modeling_rasalore.prediction.volume import (
    describe_model,
    predict_volume,
)
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import say_nothing
from example_cases import EXAMPLES, RECORD, Case, write_scores
from handlers import Handlers
from model_choice import open_model
from scan_reading import read_scan
from thresholds import OWN, settle_threshold, source_of


def test_presets_are_those_of_the_calibration_that_fits_the_scores(
    handlers: Handlers, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (preset,) = open_model(str(folder)).presets
    assert (preset.words, preset.threshold) == ("score 0.5, not calibrated", 0.5)
    entry = {"unit": "voxels", "threshold": 0.4, "promise": "so it is"}
    stored = [
        entry | {"rate": 0.05},
        entry | {"rate": 0.01, "threshold": 0.7},
        entry | {"rate": 0.02, "flips": True},
        entry | {"rate": 0.03, "unit": "slices"},
    ]
    weights = handlers.usual.facts["weights_sha256"]
    calibration = {"weights_sha256": weights, "thresholds": stored}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    analyst = open_model(str(folder))
    assert [(preset.words, preset.threshold) for preset in analyst.presets] == [
        ("marks 1 in 100 healthy voxels", 0.7),
        ("marks 5 in 100 healthy voxels", 0.4),
    ]
    assert source_of(0.4, analyst.presets).startswith("calibrated: so it is")
    assert source_of(0.5, analyst.presets) == OWN
    settle = partial(settle_threshold, analyst.options, analyst.presets)
    assert settle("marks 5 in 100 healthy voxels", 0.9) == 0.4
    assert settle("score 0.5, not calibrated", 0.9) == 0.7  # a preset of another model
    assert (settle(None, None), settle(None, 0.9)) == (0.7, 0.9)
    for word in ("0.3", [0.3], True):
        with pytest.raises(ValueError, match="threshold must be a number in"):
            settle(None, word)


def test_masks_are_made_as_the_models_folder_says(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    saved = replace(DEFAULT_OPTIONS, flips=True, smallest_ml=1000)
    save_defaults(folder, saved, "scans of a test")
    analyst = open_model(str(folder))
    path = write_scan(tmp_path / "scan.nii.gz")
    analysis = analyst.analyse(read_scan(path), 0.5, say_nothing)
    expected = predict_volume(*load_model(str(folder), device="cpu"), read_volume(path))
    assert np.array_equal(analysis.prediction.scores, expected.scores)  # of mirror images, too
    assert (expected.scores > 0.5).any() and not expected.mask.any()
    assert not analysis.prediction.mask.any() and not analysis.at(0.4).mask.any()


def test_the_bundled_cases_are_small_and_have_their_truth(handlers: Handlers) -> None:
    folders = sorted(EXAMPLES.iterdir())
    assert 3 <= len(folders) <= 5
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*")) < 3e6
    for folder in folders:
        case = Case.read(folder)
        volume = read_volume(folder / case.scan)
        truth = read_mask(folder / "truth.nii.gz", volume)
        assert truth.any() == ("healthy" not in folder.name)


def test_a_case_without_scores_of_its_model_is_computed_and_compared_with_its_truth(
    handlers: Handlers,
) -> None:
    analysis = Case.read(EXAMPLES / "2_small").analyse(handlers.usual, say_nothing)
    assert analysis.prediction.scores.any() and analysis.truth is not None
    report = analysis.report(0.5, "")
    assert report["dice"] == dice(analysis.at(0.5).mask, analysis.truth)
    assert f"Dice with the truth {report['dice']:.2f}" in handlers.describe(analysis, 0.5)[0]


def test_a_case_with_scores_of_its_model_is_opened_without_computing(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(EXAMPLES / "2_small", folder)
    computed = replace(Case.read(folder), weights_sha256=None).analyse(handlers.usual, say_nothing)
    write_scores(folder, computed.prediction.scores, computed.scan.volume)
    record = json.loads((folder / RECORD).read_text("utf-8"))
    record["weights_sha256"] = describe_model(handlers.usual.model)["weights_sha256"]
    (folder / RECORD).write_text(json.dumps(record), "utf-8")
    monkeypatch.setattr("analysis.predict_volume", None)
    opened = Case.read(folder).analyse(handlers.usual, say_nothing)
    assert np.abs(opened.prediction.scores - computed.prediction.scores).max() <= 0.0005001
    monkeypatch.setattr("example_cases.EXAMPLES", tmp_path)
    first = Handlers(handlers.models).open_first_case()
    assert first and np.array_equal(first.prediction.scores, opened.prediction.scores)
    assert first.told == opened.told


def test_a_bundled_case_is_what_its_script_makes() -> None:
    pytest.importorskip("nilearn")
    from write_example import make_patient

    folder = EXAMPLES / "2_small"
    record = json.loads((folder / RECORD).read_text("utf-8"))
    sequence = record["scan"].removesuffix(".nii.gz").rpartition("_")[2]
    patient = make_patient(record["seed"], sequence)
    bundled = read_volume(folder / record["scan"])
    assert np.array_equal(bundled.affine, patient.affine)
    # Rounding may differ by one between processors.
    made = patient.voxels.transpose(2, 1, 0).astype(np.float32)
    assert np.abs(bundled.slices - made).max() <= 1
    truth = read_mask(folder / "truth.nii.gz", bundled)
    assert np.array_equal(truth, patient.truth.transpose(2, 1, 0))
