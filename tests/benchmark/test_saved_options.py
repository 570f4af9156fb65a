"""Rows of the benchmark smooth and fuse maps as `rasalore predict` does with the same folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from saved_defaults import save_defaults
from small_rasalore import make_model

from modeling_rasalore import RasaloreImageProcessor, predict_volume
from modeling_rasalore.benchmark.systems import ScanSlices
from modeling_rasalore.benchmark.trained import AllSequencesNetwork, Stage2Network, finish_maps
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS, PredictionOptions
from modeling_rasalore.prediction.saved_options import carry_defaults
from modeling_rasalore.scans.reading import read_scan
from modeling_rasalore.scans.volume_writing import write_nifti

SPACING = (4.0, 5.0, 5.0)
MADE = PredictionOptions(smooth_mm=6.0, free_map=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that saved how its masks are made."""
    make_model(initializer_range=0.5, modality="t2").save_pretrained(tmp_path)
    RasaloreImageProcessor(size=16).save_pretrained(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"modality": "t2"}))
    save_defaults(tmp_path, MADE, "nothing")
    return tmp_path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.zeros((24, 20, 6), np.float32)
    noise = np.random.default_rng(0).uniform(50, 200, (16, 12, 4))
    data[4:20, 4:16, 1:5] = noise
    return write_nifti(tmp_path / "scan_t2.nii.gz", data, np.diag([-5.0, -5.0, 4.0, 1.0]))


def test_a_row_has_the_scores_of_predict_with_the_same_folder(folder: Path, scan: Path) -> None:
    volume, network = read_scan(scan), Stage2Network(folder)
    with_brain = [i for i, plane in enumerate(volume.slices) if plane.any()]
    images = [volume.slices[i] for i in with_brain]
    slices = ScanSlices(images, None, with_brain, volume.spacing, "t2")
    predicted = predict_volume(network.model, network.processor, volume, MADE)
    expected = [predicted.scores[i] for i in with_brain]
    assert network.whole_scans
    np.testing.assert_allclose(network.score(slices), expected, atol=1e-5)


def test_a_folder_that_saved_nothing_leaves_the_maps_alone(folder: Path) -> None:
    (folder / "prediction.json").unlink()
    assert not Stage2Network(folder).whole_scans


def test_four_sequences_as_channels_have_no_one_to_look_at(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"modality": "all"}))
    assert not AllSequencesNetwork(folder).whole_scans


def test_a_sequence_that_is_missing_keeps_its_empty_maps() -> None:
    empty = [np.zeros((4, 4), np.float32)] * 2
    slices = ScanSlices(empty, None, [3, 5], SPACING, "t2")
    finished = finish_maps(empty, slices, replace(DEFAULT_OPTIONS, smooth_mm=2.0, free_map=1.0))
    assert not np.any(finished)


def test_what_is_saved_with_a_model_goes_along_with_what_is_trained_from_it(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    carry_defaults(folder, tmp_path / "run")
    assert (tmp_path / "run" / "prediction.json").read_text() == (
        folder / "prediction.json"
    ).read_text()
    (folder / "prediction.json").unlink()
    (tmp_path / "other").mkdir()
    carry_defaults(folder, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())
