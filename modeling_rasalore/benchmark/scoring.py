"""Scores patients with one system, and takes its threshold from healthy slices.

Healthy slices of unhealthy patients may be all the healthy brain there is, so those of one patient
count as one healthy scan.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.labels import HEALTHY
from ..data.patient import LabelledSlice, Patient, See
from ..evaluation.rows import PatientScores, Thresholds
from ..evaluation.scan_thresholds import attainable_share, promised_threshold, scan_threshold
from ..files import replace_file
from ..recipes import DataRecipe
from ..scans.background import brain_of
from .slices import HeldOut, as_scan, read_examples
from .systems import Image, ScanSlices, System


def sequence_of(system: System, data: DataRecipe) -> str:
    """Return what a row says of the sequence that its system sees."""
    if not system.ALL_SEQUENCES:
        return data.modality
    return str(getattr(system, "sequence", "all"))


class ScoredPatients:
    """Patients with one system's maps beside the truth, scored once; the maps lie on disk.

    Args:
        held_out: who is scored.
        name: of the system, for the progress bar.
        folder: of the maps, one file per patient.
        all_sequences: whether the system's slices hold all four sequences.
        score: slices of a scan -> their maps; None where an earlier run has left all of them.
        see: of a system that sees slices as part of their scan.
        false_alarm_rate: of `healthy_thresholds`; None where they are not wanted.

    Attributes:
        seconds: that scoring took.
        healthy_thresholds: patient id -> the threshold that the patient's healthy slices need, of
            patients who were scored. Slice labels say which they are; without any there is none.
    """

    def __init__(
        self,
        held_out: HeldOut,
        name: str,
        folder: Path,
        all_sequences: bool,
        score: Callable[[ScanSlices], list[Image]] | None = None,
        see: See | None = None,
        false_alarm_rate: float | None = None,
    ):
        self.held_out, self.name, self.folder = held_out, name, folder
        self.all_sequences, self.score, self.see = all_sequences, score, see
        self.false_alarm_rate = false_alarm_rate
        self.seconds = 0.0
        self.healthy_thresholds: dict[str, float] = {}

    def __iter__(self) -> Iterator[PatientScores]:
        for patient in tqdm(self.held_out.patients, desc=self.name, unit="patient"):
            yield self.score_patient(patient)

    def score_patient(self, patient: Patient) -> PatientScores:
        """Return a patient's maps, truth and brain, each (S, H, W)."""
        slices = read_examples(
            patient, self.held_out.data, self.all_sequences, with_mask=True, see=self.see
        )
        scores = self.read_maps(patient.patient_id, as_scan(slices, self.held_out.data.modality))
        known, rate = patient.patient_id in self.healthy_thresholds, self.false_alarm_rate
        if rate is not None and not known and any(e.label == HEALTHY for e in slices):
            self.healthy_thresholds[patient.patient_id] = threshold_of(list(scores), slices, rate)
        return PatientScores(
            patient_id=patient.patient_id,
            scores=scores,
            truth=np.stack([example.lesion for example in slices]),
            brain=np.stack([brain_of(example.image) for example in slices]),
            spacing=slices[0].spacing,
        )

    def read_maps(self, patient_id: str, scan: ScanSlices) -> np.ndarray:
        """Return one patient's maps (S, H, W), computed where they are not on disk.

        Raises:
            ValueError: they are gone, and there is nothing to compute them with.
        """
        path = self.folder / f"{patient_id}.npy"
        if not path.is_file():
            if self.score is None:
                raise ValueError(
                    f"{path} is missing; delete its system's folder and score it again."
                )
            started = time.monotonic()
            maps = np.stack(self.score(scan))
            self.seconds += time.monotonic() - started
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda draft: np.save(draft, maps))
        return np.asarray(np.load(path))


def find_threshold(
    system: System,
    patients: Sequence[Patient],
    data: DataRecipe,
    false_alarm_rate: float,
    scans_above: float,
) -> Thresholds:
    """Return the threshold that validation patients' healthy slices need, without any mask.

    Args:
        false_alarm_rate, scans_above: as for `choose_threshold`.
    """
    thresholds = []
    for patient in patients:
        labels = None if system.whole_scans else {HEALTHY}
        examples = read_examples(patient, data, system.ALL_SEQUENCES, labels=labels, see=system.see)
        if any(example.label == HEALTHY for example in examples):
            maps = system.score(as_scan(examples, data.modality))
            thresholds.append(threshold_of(maps, examples, false_alarm_rate))
    return choose_threshold(thresholds, false_alarm_rate, scans_above)


def threshold_of(
    maps: Sequence[Image], examples: Sequence[LabelledSlice], false_alarm_rate: float
) -> float:
    """Return the lowest threshold at which at most a share of a patient's healthy slices is marked.

    Args:
        maps: of the patient's slices, of which those that are labelled healthy count.
    """
    pairs = zip(maps, examples, strict=True)
    healthy = [(plane, example.image) for plane, example in pairs if example.label == HEALTHY]
    brain = np.stack([brain_of(image) for _, image in healthy])
    return scan_threshold(np.stack([plane for plane, _ in healthy]), brain, false_alarm_rate)


def choose_threshold(
    thresholds: Sequence[float], false_alarm_rate: float, scans_above: float
) -> Thresholds:
    """Return the label-free threshold of patients that a system has not learned from.

    Args:
        thresholds: of one patient each; without any there is none.
        false_alarm_rate: the most of a scan's healthy brain that may be marked.
        scans_above: share of scans in which more may be marked; 1 of n + 1 where n patients
            cannot promise less.
    """
    if not thresholds:
        return Thresholds()
    promise = promised_threshold(thresholds, attainable_share(scans_above, len(thresholds)))
    return Thresholds(promise.threshold, false_alarm_rate, promise)
