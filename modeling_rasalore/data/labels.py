"""Give slices their labels: those of slice_labels.csv, or what lesion areas say."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import some
from ..scans.naming import file_stem
from ..scans.volumes import VolumeError, read_facts
from .label_table import HEALTHY, UNHEALTHY, LabelTable, read_label_table
from .patient import Patient
from .persons import patient_id_of_name, patient_id_of_path

logger = logging.getLogger(__name__)

LABELS_FILE = "slice_labels.csv"
UNKNOWN = -1  # neither healthy nor unhealthy
LABEL_NAMES = {UNHEALTHY: "unhealthy", HEALTHY: "healthy"}
# The paper counts "more than 200 px" on 1 mm pixels; as an area it means the same on every scan.
UNHEALTHY_AREA = 200.0  # mm2
SliceLabels = dict[str, dict[int, int]]  # patient_id -> slice index -> label


def add_slice_labels(patients: Sequence[Patient], path: Path) -> list[Patient]:
    """Return the patients with the labels that slice_labels.csv at `path` gives their slices.

    Warnings say which patients the file does not name, who then have no labelled slice, and what
    of the file was read in another way than the documented one.

    Raises:
        ValueError: as `read_slice_labels`.
    """
    labels = read_slice_labels(patients, path)
    if unnamed := [p.patient_id for p in patients if p.patient_id not in labels]:
        logger.warning("%s names no slice of %s", path, some(unnamed))
    return [
        replace(patient, slice_labels=labels.get(patient.patient_id, {})) for patient in patients
    ]


def read_slice_labels(patients: Sequence[Patient], path: Path) -> SliceLabels:
    """Return the labels that slice_labels.csv at `path` gives the slices of patients.

    Raises:
        ValueError: a file that cannot be read for certain, one slice with both labels, or a volume
            that is none of the patients.
    """
    table = read_label_table(path)
    notes = list(table.notes)
    labels = labels_by_patient(table, _match_volumes(table, patients, notes))
    labels = _counted_from_0(table, labels, patients, notes)
    if notes:
        logger.warning("%s: %s", path, "; ".join(notes))
    return labels


def labels_by_patient(table: LabelTable, patient_of: Mapping[str, str]) -> SliceLabels:
    """Return each patient's labels; a slice may have several rows that agree.

    Args:
        patient_of: volume -> patient_id.

    Raises:
        ValueError: one slice with both labels.
    """
    labels: SliceLabels = {}
    for row in table.rows:
        slices = labels.setdefault(patient_of[row.volume], {})
        if slices.setdefault(row.slice_index, row.label) != row.label:
            raise ValueError(
                f"{table.path}, line {row.line}: slice {row.slice_index} of {row.volume} is both "
                "healthy and unhealthy; keep one of the two rows."
            )
    return labels


# --- Whom a volume names --------------------------------------------------------------------------
def _match_volumes(
    table: LabelTable, patients: Sequence[Patient], notes: list[str]
) -> dict[str, str]:
    """Return volume -> patient_id; a file's name or path stands for the patient it belongs to."""
    known = {patient.patient_id for patient in patients}
    names = _names_of(patients)
    volumes = list(dict.fromkeys(row.volume for row in table.rows))
    patient_of = {}
    for volume in volumes:
        meant = {names[name] for name in map(_fold, _readings(volume)) if name in names}
        if volume in known or len(meant) == 1:
            patient_of[volume] = volume if volume in known else meant.pop()
    if unknown := [volume for volume in volumes if volume not in patient_of]:
        raise ValueError(_unknown_volumes(table, unknown, known))
    if other := [f"{v} as {patient_of[v]}" for v in volumes if patient_of[v] != v]:
        notes.append(f"volumes name files or differ in case: {some(other)}")
    return patient_of


def _names_of(patients: Sequence[Patient]) -> dict[str, str]:
    """Return what names one patient alone -> patient_id: the id, and the names of files."""
    owners: dict[str, set[str]] = {}
    for patient in patients:
        stems = {file_stem(path) for path in patient.images.values()}
        for name in {patient.patient_id, *stems}:
            owners.setdefault(_fold(name), set()).add(patient.patient_id)
    return {name: owner for name, (owner, *others) in owners.items() if not others}


def _fold(name: str) -> str:
    """Return a name without what systems change: upper case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _readings(volume: str) -> Iterator[str]:
    """Yield what a volume may name: a patient, a file, or a path that ends in one."""
    parts = [part for part in re.split(r"[\\/]", volume) if part not in ("", ".")]
    for start in range(len(parts)):
        yield patient_id_of_path(parts[start:])
        yield patient_id_of_path([*parts[start:], ""])  # a folder, such as sub-01/ses-1
    if parts:
        yield file_stem(Path(parts[-1]))


def _unknown_volumes(table: LabelTable, unknown: Sequence[str], known: set[str]) -> str:
    """Return why volumes that are no patients stop the reading, in one sentence."""
    volumes = [volume[:100] for volume in unknown]
    others = f" (neither is {some(volumes[1:])})" if len(volumes) > 1 else ""
    foreign = next((volume for volume in volumes if not volume.isascii()), None)
    if table.encoding == "latin-1" and foreign:
        return (
            f"{table.path} is not in UTF-8; as Latin-1 it names the volume {foreign!r}, which is "
            "no patient in this folder; save as UTF-8, or correct the name."
        )
    return (
        f"{table.path}: volume {volumes[0]!r} is no patient in this folder{others}; the nearest "
        f"known one is {nearest_id(unknown[0], known)!r}."
    )


def nearest_id(volume: str, known: set[str]) -> str:
    """Return the patient_id most like a volume: first by numbers, then by letters to change."""

    def numbers(name: str) -> Counter[str]:
        return Counter(digits.lstrip("0") for digits in re.findall(r"\d+", name))

    name = (patient_id_of_name(volume) or volume)[:200]

    def differences(patient_id: str) -> tuple[int, int, str]:
        first, second = numbers(name), numbers(patient_id)
        apart = max((first - second).total(), (second - first).total())
        return apart, count_edits(_fold(name), _fold(patient_id)), patient_id

    return min(known, key=differences)


def count_edits(first: str, second: str) -> int:
    """Return how many letters to add, drop or change turn one word into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        above, row = row, [number]
        for column, other in enumerate(second):
            changed = above[column] + (letter != other)
            row.append(min(changed, above[column + 1] + 1, row[column] + 1))
    return row[-1]


# --- Where counting starts ------------------------------------------------------------------------
def _counted_from_0(
    table: LabelTable, labels: SliceLabels, patients: Sequence[Patient], notes: list[str]
) -> SliceLabels:
    """Return the labels by slices counted from 0.

    A table whose highest index is a patient's number of slices, and that names no slice 0, counts
    from 1 or is wrong. It counts from 1 where it names the slices 1 of such patients, too.
    """
    if any(0 in named for named in labels.values()):
        return labels
    counts = {p.patient_id: _slice_count(p) for p in patients if p.patient_id in labels}
    reached = [name for name, count in counts.items() if count and max(labels[name]) == count]
    beyond = [name for name, count in counts.items() if count and max(labels[name]) > count]
    if not reached or beyond:  # whoever reads the scan names a slice beyond it
        return labels
    name, count = reached[0], counts[reached[0]]
    if not all(1 in labels[name] for name in reached):
        raise ValueError(
            f"{table.path} names slice {count} of {name}, whose scan has slices 0 to {count - 1}, "
            "and no slice 0; if it counts from 1, subtract 1 from every slice_index, else correct "
            "that line."
        )
    notes.append(f"slices are counted from 1, to {count} of {count} in {name}: 1 was subtracted")
    return {
        name: {index - 1: label for index, label in named.items()} for name, named in labels.items()
    }


def _slice_count(patient: Patient) -> int:
    """Return how many axial slices the scans of a patient have, by their headers; 0: not known."""
    try:
        counts = {read_facts(path).geometry.shape[0] for path in patient.images.values()}
    except (VolumeError, OSError):  # whoever reads the scan will say what is wrong with it
        return 0
    return counts.pop() if len(counts) == 1 else 0


# --- Without a table ------------------------------------------------------------------------------
def label_slices(lesion: np.ndarray, spacing: tuple[float, float]) -> list[int]:
    """Return one label per slice of a lesion mask (S, H, W) bool, `spacing` (row, column) in mm.

    1 unhealthy with more than 200 mm2 of lesion, 0 healthy without any, -1 in between: such slices
    are scored but not trained on.
    """
    areas = np.count_nonzero(lesion, axis=(1, 2)) * (spacing[0] * spacing[1])
    # rounded, because a spacing stored in float32 would make 200 px of 1 mm slightly more
    unhealthy = np.round(areas, 2) > UNHEALTHY_AREA
    return np.where(unhealthy, UNHEALTHY, np.where(areas > 0, UNKNOWN, HEALTHY)).tolist()
