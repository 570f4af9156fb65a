"""Survey a folder of scans before anything is trained: what it holds, what cannot be used."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..data.labels import HEALTHY, LABELS_FILE, UNHEALTHY
from ..data.layouts import find_patients
from ..data.patient import Patient, Skip
from ..data.slices import read_slices
from ..files import some
from ..provenance import available_cores
from ..scans.naming import MODALITIES
from ..scans.volumes import VolumeError
from .recipe import StudyData
from .sharing import VALIDATION_SHARE

FEWEST_PATIENTS = 3  # one to learn from, one to choose weights by, one to test
Counts = Counter[int]  # slices by label


@dataclass(frozen=True)
class Survey:
    """What a folder of scans holds for a study of one sequence.

    Attributes:
        root: the folder.
        modality: the sequence.
        patients: who can take part.
        counts: their slices by label, one counter each.
        left_out: patient id -> why the patient cannot take part, as the end of a sentence.
    """

    root: str
    modality: str
    patients: Sequence[Patient]
    counts: Sequence[Counts]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def slices(self) -> Counts:
        """Slices of all patients, by label."""
        return sum(self.counts, Counter())

    @property
    def labelled(self) -> list[Patient]:
        """Patients with labelled slices."""
        pairs = zip(self.patients, self.counts, strict=True)
        return [patient for patient, counts in pairs if counts[HEALTHY] or counts[UNHEALTHY]]

    @property
    def masked(self) -> list[Patient]:
        """Patients whose true mask is there, for scores."""
        return [patient for patient in self.patients if patient.mask is not None]

    def example(self) -> tuple[Patient, int]:
        """Return a patient with healthy slices, and how many slices choose the weights of a run."""
        pairs = zip(self.patients, self.counts, strict=True)
        patient = next(patient for patient, counts in pairs if counts[HEALTHY])
        chosen = max(1, round(VALIDATION_SHARE * len(self.labelled)))
        slices = self.slices[HEALTHY] + self.slices[UNHEALTHY]
        return patient, round(chosen * slices / len(self.labelled))

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of who takes part, and of how their slices are labelled."""
        facts = [
            (
                patient.patient_id,
                sorted((patient.slice_labels or {}).items()),
                sorted(counts.items()),
            )
            for patient, counts in zip(self.patients, self.counts, strict=True)
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def describe(self) -> list[str]:
        """Return sentences that say what there is."""
        layouts = ", ".join(sorted({patient.source for patient in self.patients}))
        by = LABELS_FILE if any(p.slice_labels for p in self.patients) else "the masks"
        slices = self.slices
        lines = [
            f"found in {self.root} ({layouts}): {len(self.patients)} patients with a "
            f"{self.modality} scan, {len(self.masked)} with a mask",
            f"labels from {by}: {slices[UNHEALTHY]} unhealthy and {slices[HEALTHY]} healthy slices "
            f"of {len(self.labelled)} patients",
        ]
        return lines + [f"left out: {name}, {why}" for name, why in self.left_out.items()]


def survey_scans(data: StudyData) -> Survey:
    """Return what the folder of a study holds; every scan of the sequence is read once.

    Raises:
        ValueError: no layout that is known, labels that do not fit the scans, or nothing that a
            study could learn from.
    """
    everyone = find_patients(data.root, data.same_person)
    patients = [patient for patient in everyone if not patient.left_out]
    modality = data.modality or only_modality(patients)
    shown = sorted({name for patient in patients for name in patient.images})
    if modality not in shown:
        raise ValueError(
            f"no scan in {data.root} is of {modality}, only of {', '.join(shown)}; name one of "
            "these with --modality."
        )
    left_out = {
        p.patient_id: f"who has no {modality} scan" for p in patients if modality not in p.images
    }
    seen = [patient for patient in patients if modality in patient.images]

    count = partial(count_slices, modality=modality, skip=data.skip_slices)
    with ThreadPoolExecutor(available_cores()) as pool:  # inflating frees the lock
        told = list(pool.map(count, seen))
    readable, counts = [], []
    for patient, answer in zip(seen, told, strict=True):
        if isinstance(answer, str):
            left_out[patient.patient_id] = answer
        else:
            readable.append(patient)
            counts.append(answer)
    survey = Survey(str(data.root), modality, readable, counts, left_out)
    refuse_too_little(survey)
    return survey


def only_modality(patients: Sequence[Patient]) -> str:
    """Return the one sequence that the patients have; ValueError where there are several."""
    shown = [name for name in MODALITIES if any(name in patient.images for patient in patients)]
    if len(shown) == 1:
        return shown[0]
    raise ValueError(
        f"a network learns one sequence, and the scans are of {', '.join(shown) or 'none'}; give "
        "--modality."
    )


def count_slices(patient: Patient, modality: str, skip: Skip) -> Counts | str:
    """Return how many slices of a scan have each label; why it cannot be read, in words."""
    try:
        return Counter(example.label for example in read_slices(patient, modality, skip=skip))
    except VolumeError as error:
        return f"whose scan cannot be read: {' '.join(str(error).split())}"


def refuse_too_little(survey: Survey) -> None:
    """Raise ValueError where nothing could be learned, or nobody could be held out."""
    slices, folder = survey.slices, Path(survey.root)
    persons = {patient.person for patient in [*survey.labelled, *survey.masked]}
    if len(persons) < FEWEST_PATIENTS:
        lost = f" ({some(list(survey.left_out))} left out)" if survey.left_out else ""
        raise ValueError(
            f"training needs labels of {FEWEST_PATIENTS} patients at least, to learn from, to "
            f"choose by and to test on, but {folder} has {len(persons)}{lost}; label more, or "
            "use a model that is trained already."
        )
    for label, name in ((HEALTHY, "healthy"), (UNHEALTHY, "unhealthy")):
        if not slices[label]:
            raise ValueError(
                f"training needs healthy and unhealthy slices, but no slice in {folder} is "
                f"labelled {name}; label some, or add scans that show such slices."
            )
