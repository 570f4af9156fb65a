"""Read slice labels from slice_labels.csv, or derive them from lesion areas."""

import csv
import difflib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import some
from .patient import Patient

logger = logging.getLogger(__name__)

LABELS_FILE = "slice_labels.csv"
UNHEALTHY, HEALTHY, UNKNOWN = 1, 0, -1
LABEL_NAMES = {UNHEALTHY: "unhealthy", HEALTHY: "healthy"}
LABEL_WORDS = {"healthy": HEALTHY, "0": HEALTHY, "unhealthy": UNHEALTHY, "1": UNHEALTHY}
# The paper counts "more than 200 px" on 1 mm pixels; as an area it means the same on every scan.
UNHEALTHY_AREA = 200.0  # mm2


def add_slice_labels(patients: Sequence[Patient], path: Path) -> list[Patient]:
    """Return the patients with the labels that slice_labels.csv at `path` gives their slices.

    A patient that the file does not name has no labelled slice; a warning says so.

    Raises:
        ValueError: a column is missing, a row without an index or a label, one slice with both
            labels, or a volume that is none of the patients.
    """
    labels = _read_labels(path)
    known = [patient.patient_id for patient in patients]
    for volume in labels:
        if volume not in known:
            nearest = difflib.get_close_matches(volume, known, n=1, cutoff=0) or known[:1]
            raise ValueError(
                f"{path}: volume {volume!r} is no patient in this folder; the nearest known one "
                f"is {nearest[0]!r}."
            )
    unnamed = [patient_id for patient_id in known if patient_id not in labels]
    if unnamed:
        logger.warning("%s names no slice of %s", path, some(unnamed))
    return [
        replace(patient, slice_labels=labels.get(patient.patient_id, {})) for patient in patients
    ]


def _read_labels(path: Path) -> dict[str, dict[int, int]]:
    """Return volume -> slice index -> label; every slice may be named once."""
    labels: dict[str, dict[int, int]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"volume", "slice_index", "label"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: the first line must name the columns volume, slice_index and label; "
                f"{', '.join(sorted(missing))} not found in {rows.fieldnames}."
            )
        for row in rows:
            index, label = row["slice_index"] or "", LABEL_WORDS.get(str(row["label"]).lower())
            if label is None or not index.isdecimal():
                raise ValueError(
                    f"{path}, line {rows.line_num}: a row needs a slice_index counted from 0 and "
                    f"a label healthy or unhealthy (or 0 or 1), got {list(row.values())}."
                )
            slices = labels.setdefault(row["volume"], {})
            if slices.setdefault(int(index), label) != label:
                raise ValueError(
                    f"{path}, line {rows.line_num}: slice {index} of {row['volume']} is both "
                    "healthy and unhealthy; keep one of the two rows."
                )
    return labels


def label_slices(lesion: np.ndarray, spacing: tuple[float, float]) -> list[int]:
    """Return one label per slice of a lesion mask (S, H, W) bool, `spacing` (row, column) in mm.

    1 unhealthy with more than 200 mm2 of lesion, 0 healthy without any, -1 in between: such slices
    are scored but not trained on.
    """
    areas = np.count_nonzero(lesion, axis=(1, 2)) * (spacing[0] * spacing[1])
    # rounded, because a spacing stored in float32 would make 200 px of 1 mm slightly more
    unhealthy = np.round(areas, 2) > UNHEALTHY_AREA
    return np.where(unhealthy, UNHEALTHY, np.where(areas > 0, UNKNOWN, HEALTHY)).tolist()
