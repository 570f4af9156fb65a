"""One system's scores of patients with masks, and its threshold from healthy slices."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from modeling_rasalore.data.labels import HEALTHY
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.evaluation.metrics import false_alarm_threshold
from modeling_rasalore.evaluation.rows import PatientScores, Thresholds
from modeling_rasalore.files import replace_file
from modeling_rasalore.recipes import DataRecipe
from modeling_rasalore.scans.background import brain_of

from .data import Scored, read_examples
from .interface import Image, System
from .registry import sees_all_sequences


def sequence_of(system: System, data: DataRecipe) -> str:
    """What a row says of the sequence that its system sees."""
    if not system.ALL_SEQUENCES:
        return data.modality
    return str(getattr(system, "sequence", "all"))


def patient_scores(
    patient: Patient,
    data: DataRecipe,
    all_sequences: bool,
    maps_of: Callable[[str, list[Image]], np.ndarray],
) -> PatientScores:
    """A patient's maps, (S, H, W) of an id and its slices, beside the truth."""
    slices = read_examples(patient, data, all_sequences, with_mask=True)
    images = [example.image for example in slices]
    return PatientScores(
        patient_id=patient.patient_id,
        scores=maps_of(patient.patient_id, images),
        truth=np.stack([example.lesion for example in slices]),
        brain=np.stack([brain_of(image) for image in images]),
        spacing=slices[0].spacing,
    )


class KeptPatients:
    """Patients whose maps an earlier run of the benchmark has left in `folder`."""

    def __init__(self, patients: Sequence[Patient], data: DataRecipe, name: str, folder: Path):
        self.patients, self.data = patients, data
        self.name, self.folder = name, folder

    def __iter__(self) -> Iterator[PatientScores]:
        everything = sees_all_sequences(self.name)
        for patient in tqdm(self.patients, desc=self.name, unit="patient"):
            yield patient_scores(patient, self.data, everything, self.scores)

    def scores(self, patient_id: str, images: list[Image]) -> np.ndarray:
        """Scores (S, H, W) of one patient; ValueError where they are gone."""
        path = self.folder / f"{patient_id}.npy"
        if not path.is_file():
            raise ValueError(f"{path} is missing; delete its system's folder and score it again.")
        return np.asarray(np.load(path))


class ScoredPatients:
    """Patients with one system's scores, scored once; scores wait on disk between passes."""

    def __init__(self, system: System, scored: Scored, name: str, folder: Path):
        self.system, self.scored = system, scored
        self.name, self.folder = name, folder
        self.seconds = 0.0
        folder.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[PatientScores]:
        everything, data = self.system.ALL_SEQUENCES, self.scored.data
        for patient in tqdm(self.scored.patients, desc=self.name, unit="patient"):
            yield patient_scores(patient, data, everything, self.scores)

    def scores(self, patient_id: str, images: list[Image]) -> np.ndarray:
        """Scores (S, H, W) of one patient, computed once."""
        path = self.folder / f"{patient_id}.npy"
        if not path.exists():
            started = time.monotonic()
            scores = np.stack(self.system.score(images))
            self.seconds += time.monotonic() - started
            replace_file(path, lambda draft: np.save(draft, scores))
        return np.load(path)


def label_free(
    system: System, patients: Sequence[Patient], data: DataRecipe, false_alarm_rate: float
) -> Thresholds:
    """Threshold for the asked false-alarm rate on healthy validation slices; no mask is opened."""
    inside = []
    for patient in patients:
        healthy = read_examples(patient, data, system.ALL_SEQUENCES, labels={HEALTHY})
        images = [example.image for example in healthy]
        scores = system.score(images) if images else []
        for score, image in zip(scores, images, strict=True):
            inside.append(score[brain_of(image)])
    if not inside:
        return Thresholds()
    threshold = false_alarm_threshold(np.concatenate(inside), false_alarm_rate)
    return Thresholds(threshold, false_alarm_rate)
