"""Patients with anomaly maps small enough to be scored in an instant."""

from typing import Any

import numpy as np

from modeling_rasalore.evaluation.patient_scores import PatientScores
from modeling_rasalore.evaluation.rows import Row, Thresholds, evaluate_system

SHAPE = (14, 32, 32)
LABEL_FREE = Thresholds(label_free=0.37, false_alarm_rate=0.02)


def ball(radius: float, centre: tuple[int, int, int] = (7, 16, 16)) -> np.ndarray:
    """Boolean ball in a volume of `SHAPE`."""
    axes = np.indices(SHAPE) - np.reshape(centre, (3, 1, 1, 1))
    return (axes**2).sum(axis=0) <= radius**2


def make_patient(
    patient_id: str = "a",
    scores: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    spacing: tuple[float, float, float] = (1.0, 2.0, 2.0),
    **arrays: Any,
) -> PatientScores:
    """One lesion with noisy scores inside a brain, unless told otherwise; pixels of 4 mm2."""
    seed = sum(patient_id.encode())
    brain = np.zeros(SHAPE, bool)
    brain[:, 2:30, 2:30] = True
    truth = ball(5 + seed % 3) if truth is None else truth
    if scores is None:
        noise = np.random.default_rng(seed).normal(0.15, 0.12, SHAPE)
        scores = np.clip((noise + 0.45 * truth) * brain, 0, 1)
    scores = scores.astype(np.float32)
    return PatientScores(scores, truth, arrays.get("brain", brain), spacing, patient_id)


def random_scores(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Tied scores that know something about the truth, and the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.random(size) < 0.2
    scores = np.clip(generator.normal(0.4 + 0.2 * truth, 0.2), 0, 1).round(2)
    return scores.astype(np.float32), truth


def evaluate(*patients: PatientScores, thresholds: Thresholds = LABEL_FREE) -> list[Row]:
    """Rows of a system called ae, of T2."""
    return evaluate_system("ae", patients, thresholds, "t2", seconds=1.5, peak_mib=20.0)


def find(rows: list[Row], view: str, threshold: str = "0.5") -> Row:
    """The one row of a view and threshold."""
    (row,) = [row for row in rows if (row["view"], row["threshold"]) == (view, threshold)]
    return row
