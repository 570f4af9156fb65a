"""What a model is unsure of: entropies by hand, the order of scans, and its reasons."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_scans import SLICES, make_patients, write_patient
from space import save_model

from modeling_rasalore.data.layouts import find_scanned_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.slices import read_patient
from modeling_rasalore.labelling.pictures import draw_patient, read_images
from modeling_rasalore.labelling.suggestion import (
    Adviser,
    binary_entropy,
    measure_doubt,
    rank_by_doubt,
)
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.scans.volume_writing import write_volume


def test_entropy_by_hand() -> None:
    # 0.25: -(1/4 log2 1/4 + 3/4 log2 3/4) = 0.5 + 0.3113
    assert binary_entropy(np.array([0.5, 0.25, 0.75])).tolist() == pytest.approx(
        [1, 0.8113, 0.8113], abs=1e-4
    )
    assert binary_entropy(np.array([0.0, 1.0])).tolist() == pytest.approx([0, 0], abs=1e-9)


class SaysOneScore(Adviser):
    """Gives every slice of a patient one score."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.modality = scores, "flair"

    def predict(self, patient: Patient, labelled: str | None) -> Any:
        _, images = read_images(patient, "flair")
        score = np.full(images.shape, self.scores[patient.patient_id], np.float32)
        return type("Prediction", (), {"scores": score}), images


def test_scans_with_scores_near_a_half_come_first(tmp_path: Path) -> None:
    patients = make_patients(tmp_path)
    doubts, unread = rank_by_doubt(
        SaysOneScore({"ann": 0.05, "bob": 0.5, "cid": 0.8}), patients, None
    )
    assert [doubt.patient.patient_id for doubt in doubts] == ["bob", "cid", "ann"]
    assert [doubt.entropy for doubt in doubts] == pytest.approx([1, 0.7219, 0.2864], abs=1e-4)
    assert unread == []
    assert doubts[0].reason == (
        "mean entropy 1.00 bit; 10 of 10 slices score between 0.25 and 0.75; least sure of slice "
        "2, score 0.50"
    )


def test_a_scan_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    patients = make_patients(tmp_path)
    next(tmp_path.glob("bob/*")).write_bytes(b"no scan")
    doubts, unread = rank_by_doubt(SaysOneScore({"ann": 0.1, "cid": 0.2}), patients, None)
    assert [doubt.patient.patient_id for doubt in doubts] == ["cid", "ann"]
    assert [(patient.patient_id, "plain data" in text) for patient, text in unread] == [
        ("bob", True)
    ]


def test_slices_without_brain_have_no_say(tmp_path: Path) -> None:
    patient = make_patients(tmp_path)[0]
    images = np.zeros((3, 20, 20), np.float32)
    images[1, 5:15, 5:15] = 1
    scores = np.stack([np.full((20, 20), value, np.float32) for value in (0.5, 0.25, 0.5)])
    assert measure_doubt(patient, scores, images).entropy == pytest.approx(0.8113, abs=1e-4)


@pytest.fixture(scope="module")
def adviser(tmp_path_factory: pytest.TempPathFactory) -> Adviser:
    model, processor = load_model(str(save_model(tmp_path_factory.mktemp("model"))), device="cpu")
    model.config.modality = "t2"
    return Adviser(model, processor)


def test_the_tint_is_of_the_sequence_that_the_model_knows(adviser: Adviser, tmp_path: Path) -> None:
    write_patient(tmp_path, "ann", ("flair", "t2"))
    patient = find_scanned_patients(tmp_path)[0]
    prediction, images = adviser.predict(patient, "flair")
    assert prediction.scores.shape == images.shape == (SLICES, 28, 24)
    assert adviser.tint(patient, draw_patient(patient)).startswith(b"\x89PNG")


def test_the_model_looks_at_the_brain_that_a_mask_tells(adviser: Adviser, tmp_path: Path) -> None:
    write_patient(tmp_path, "ann", ("t2",))
    patient = find_scanned_patients(tmp_path)[0]
    volume, images = read_images(patient, "t2")
    brain = images > 0
    brain[:, : brain.shape[1] // 2] = False
    path = write_volume(tmp_path / "brain.nii.gz", brain, volume, np.uint8)
    masked = replace(patient, brain_mask=path)
    prediction, shown = adviser.predict(masked, "t2")
    assert np.array_equal(shown > 0, brain) and not prediction.scores[~brain].any()
    assert np.array_equal(read_patient(masked, "t2").slices, shown)


def test_a_patient_without_the_models_sequence_is_a_sentence(
    adviser: Adviser, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the model knows t2, and ann has only flair"):
        adviser.predict(make_patients(tmp_path)[0], None)
