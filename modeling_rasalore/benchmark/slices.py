"""Reads slices as the benchmark's systems get them, and refuses test patients that leak in."""

import hashlib
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.patient import LabelledSlice, Patient, See, Skip
from ..data.slices import read_slices
from ..data.splits import refuse_known_persons, refuse_other_split
from ..evaluation.leaks import check_disjoint, image_fingerprint
from ..files import sha256_of
from ..recipes import DataRecipe
from ..scans.naming import MODALITIES
from .systems import ScanSlices, SeenSlices

WHITE = 0.99  # quantile of a scan's brain that becomes intensity 1
Split = Mapping[str, Sequence[Patient]]


@dataclass(frozen=True)
class HeldOut:
    """Whom systems are scored on, and how those patients' slices are read."""

    patients: Sequence[Patient]
    data: DataRecipe


def data_name(root: str, modality: str) -> str:
    """Return a data set and its sequence, as tables name them."""
    return f"`{Path(root).name}` ({modality})"


def read_examples(
    patient: Patient,
    data: DataRecipe,
    all_sequences: bool = False,
    with_mask: bool = False,
    labels: Collection[int] | None = None,
    see: See | None = None,
) -> list[LabelledSlice]:
    """Return slices of one patient as `read_slices` gives them, the scan's white point at 1.

    With all sequences, `image` is (4, H, W) in the order of `MODALITIES`; one that the patient does
    not have, or without brain there, is 0. The white point is the 0.99 quantile of the brain, slice
    labels notwithstanding.
    """
    examples = list(read_slices(patient, data.modality, with_mask, data.skip_slices, see=see))
    scans = [np.stack([example.image for example in examples])] if examples else []
    if all_sequences and examples:
        indices = [example.slice_index for example in examples]
        scans = [_sequence(patient, name, data, indices, scans[0]) for name in MODALITIES]
    scaled = [scan / (np.quantile(scan[scan > 0], WHITE) if scan.any() else 1) for scan in scans]
    planes = list(np.stack(scaled, axis=1).astype(np.float32)) if examples else []
    return [
        replace(example, image=channels if all_sequences else channels[0])
        for example, channels in zip(examples, planes, strict=True)
        if labels is None or example.label in labels
    ]


def as_scan(examples: Sequence[LabelledSlice], modality: str) -> ScanSlices:
    """Return slices of one patient, at least one, as systems score them."""
    images = [example.image for example in examples]
    indices = [example.slice_index for example in examples]
    seen = [example.seen for example in examples]
    views = None if seen[0] is None else seen
    return ScanSlices(images, views, indices, examples[0].spacing, modality)


def training_slices(
    patients: Sequence[Patient],
    data: DataRecipe,
    all_sequences: bool,
    most: int,
    seed: int,
    see: See | None = None,
) -> tuple[SeenSlices, list[int]]:
    """Return slices and labels, 0 or 1, of training patients; at most `most`, 0 for all.

    Masks are opened only where a data set has no other source of slice labels, and never leave
    `read_slices`.
    """
    known = {HEALTHY, UNHEALTHY}
    examples = [
        example
        for patient in patients
        for example in read_examples(patient, data, all_sequences, labels=known, see=see)
    ]
    if most and most < len(examples):
        chosen = np.random.default_rng(seed).choice(len(examples), most, replace=False)
        examples = [examples[index] for index in np.sort(chosen)]
    views = [example.seen for example in examples] if see else None
    labels = [int(example.label) for example in examples]
    return SeenSlices([example.image for example in examples], views), labels


def refuse_leaks(
    split: Split, data: DataRecipe, folders: Sequence[str], scored: HeldOut | None = None
) -> str:
    """Return a SHA-256 (hex) of all scans, the same for every split of one data set, or of two.

    Nobody may be in two parts of the split; no scored image may be a copy, under whatever name, of
    one that systems learn from; every trained model must stem from this very split, or from a data
    set with none of its patients, and so must whatever it started from. Of another data set nobody
    is scored whom a table of persons finds in one of these splits.

    Args:
        folders: of trained models, "" for none.
        scored: None for the split's test patients.

    Raises:
        ValueError: a scored patient may have been trained on.
    """
    check_disjoint({name: [p.patient_id for p in part] for name, part in split.items()})
    crossed = scored is not None and scored.patients != split["test"]
    scored = scored or HeldOut(split["test"], data)
    for folder in filter(None, folders):
        refuse_other_split(folder, split)
        if crossed:
            refuse_known_persons(folder, scored.patients)
    modalities = {data.modality, scored.data.modality}  # copies may differ in what is read of them
    learned = {
        fingerprint: patient.patient_id
        for patient in [*split["train"], *split["validation"]]
        for fingerprint in _fingerprints(patient, modalities, data.skip_slices)
    }
    shown = set(learned)
    unscored = [patient for patient in split["test"] if patient not in scored.patients]
    for patient in [*scored.patients, *unscored]:
        for fingerprint in _fingerprints(patient, modalities, data.skip_slices):
            shown.add(fingerprint)
            if (twin := learned.get(fingerprint)) is not None:
                raise ValueError(
                    f"test patient {patient.patient_id} shows the same image as {twin}, which "
                    "systems learn from; keep copies in one part of the split, and take patients "
                    "of the training data set out of another one."
                )
    return hashlib.sha256(repr(sorted(shown)).encode()).hexdigest()


def truth_hash(patients: Sequence[Patient]) -> str:
    """Return the SHA-256 (hex) of the true masks and slice labels of patients."""
    told = {
        p.patient_id: (p.mask and _file_hash(p.mask, p.mask.stat().st_mtime_ns), p.slice_labels)
        for p in patients
    }
    return hashlib.sha256(repr(sorted(told.items())).encode()).hexdigest()


@cache
def _file_hash(path: Path, changed: int) -> str:
    """Return the hash of a file as it was `changed`; kept, for every row of a benchmark asks."""
    return sha256_of(path)


def _sequence(
    patient: Patient, name: str, data: DataRecipe, indices: list[int], like: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return one sequence of a patient at the given slice indices, (S, H, W)."""
    if name == data.modality:
        return like
    if name not in patient.images:
        return np.zeros_like(like)
    images = {e.slice_index: e.image for e in read_slices(patient, name, skip=data.skip_slices)}
    empty = np.zeros_like(like[0])
    return np.stack([images.get(index, empty) for index in indices])


def _fingerprints(patient: Patient, modalities: Set[str], skip: Skip) -> list[str]:
    """Return one fingerprint of each of these sequences that a patient has."""
    scans = [
        [example.image for example in read_slices(patient, modality, skip=skip)]
        for modality in sorted(modalities & patient.images.keys())
    ]
    return [image_fingerprint(np.stack(slices)) for slices in scans if slices]
