"""Slice labels as a labeller would leave them beside the scans."""

import csv
from collections.abc import Sequence
from pathlib import Path

from modeling_rasalore.data.labels import LABEL_NAMES, UNKNOWN, label_slices
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.scans.volumes import read_volume


def write_slice_labels(patients: Sequence[Patient], path: Path) -> Path:
    """Return `path`, a slice_labels.csv of what the masks say; unclear slices have no row."""
    rows = [
        (patient.patient_id, index, LABEL_NAMES[label])
        for patient in patients
        for index, label in enumerate(labels_of(patient))
        if label != UNKNOWN
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("volume", "slice_index", "label"), *rows])
    return path


def labels_of(patient: Patient) -> list[int]:
    assert patient.mask is not None
    mask = read_volume(patient.mask)
    return label_slices(mask.slices > 0, mask.spacing[1:])
