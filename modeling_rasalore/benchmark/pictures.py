"""Draws every system's maps of a few test patients: evenly spaced ones, or from best to worst."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.patient import LabelledSlice, Patient
from ..evaluation.rows import Row, systems_in
from ..evaluation.slice_grid import GridSlice, results_grid
from ..evaluation.tables import system_name
from ..files import replace_file
from ..recipes import DataRecipe
from .slices import read_examples

PATIENTS_SHOWN = 4  # one slice each
RANKS_SHOWN = 6  # from the best patient to the worst


@dataclass(frozen=True, eq=False)
class ChosenSlice:
    """A slice that a picture shows, and its position among its patient's scored slices."""

    example: LabelledSlice
    position: int

    @property
    def patient_id(self) -> str:
        """Whose slice it is."""
        return self.example.patient_id

    def as_row(self, caption: str) -> GridSlice:
        """Return the slice as a picture takes it."""
        example = self.example
        return GridSlice(example.image, example.lesion, example.spacing[1:], caption)


def write_grid(
    path: Path,
    patients: Sequence[Patient],
    data: DataRecipe,
    rows: Sequence[Row],
    folders: Mapping[str, Path],
    most: int = PATIENTS_SHOWN,
    named: bool = True,
) -> list[str]:
    """Draw every system's maps of a few slices; without a lesion anywhere there is no picture.

    Args:
        patients: the test patients.
        rows: of results.json; systems whose maps are gone have no column.
        folders: patient id -> the benchmark folder that holds its maps.
        most: patients that are shown, one slice each.
        named: caption slices with patient ids; else patients are numbered from 1.

    Returns:
        The ids of the patients that are shown, from top to bottom.
    """
    chosen = choose_slices(patients, data, most)
    names = [one.patient_id if named else f"patient {i}" for i, one in enumerate(chosen, 1)]
    captions = [
        f"{name}, {one.example.slice_index}" for name, one in zip(names, chosen, strict=True)
    ]
    draw_slices(path, chosen, captions, rows, folders)
    return [one.patient_id for one in chosen]


def write_ranked_grid(
    path: Path,
    patients: Mapping[str, Patient],
    data: DataRecipe,
    rows: Sequence[Row],
    folders: Mapping[str, Path],
    system: str,
    columns: Sequence[str] = (),
) -> list[str]:
    """Draw the same of patients from best to worst, evenly spaced in a system's ranking.

    Args:
        patients: by id.
        rows, folders: as of `write_grid`.
        system: whose average precision ranks patients; it is their caption.
        columns: systems that are drawn; none: all.

    Returns:
        The ids of the patients that are shown, from top to bottom.

    Raises:
        ValueError: no such system, or no patient with a lesion.
    """
    precisions = rank_patients(rows, system)
    order = list(precisions)
    places = np.linspace(0, len(order) - 1, min(RANKS_SHOWN, len(order))).round().astype(int)
    shown = list(with_lesion((patients[order[place]] for place in places), data))
    captions = [f"average precision {100 * precisions[one.patient_id]:.0f}" for one in shown]
    drawn = [row for row in rows if not columns or row["system"] in columns]
    draw_slices(path, shown, captions, drawn, folders)
    return [one.patient_id for one in shown]


def rank_patients(rows: Sequence[Row], system: str) -> dict[str, float]:
    """Return patient id -> a system's average precision, in [0, 1], the best first.

    Raises:
        ValueError: no such system, or no patient with a lesion.
    """
    paper = (row for row in rows if row["system"] == system and row["view"] == "paper")
    by_patient = next(paper, {}).get("average_precision_by_patient") or {}
    known = {patient: mean for patient, (mean, _) in by_patient.items() if not np.isnan(mean)}
    if not known:
        have = ", ".join(systems_in(rows))
        raise ValueError(f"patients are ranked by a scored system, one of {have}, got {system!r}.")
    return dict(sorted(known.items(), key=lambda item: (-item[1], item[0])))


def draw_slices(
    path: Path,
    chosen: Sequence[ChosenSlice],
    captions: Sequence[str],
    rows: Sequence[Row],
    folders: Mapping[str, Path],
) -> None:
    """Draw slices, and beside each every system's map of it; without a slice nothing is drawn."""
    if not chosen:
        return
    ids, maps = [one.patient_id for one in chosen], {}
    for system, title in {r["system"]: system_name(r) for r in rows if "failure" not in r}.items():
        files = [folders[i] / "systems" / system / "scores" / f"{i}.npy" for i in ids]
        if all(file.is_file() for file in files):
            pairs = zip(files, chosen, strict=True)
            maps[title] = [np.load(file, "r")[one.position] for file, one in pairs]
    lines = [one.as_row(caption) for one, caption in zip(chosen, captions, strict=True)]
    replace_file(path, lambda draft: results_grid(lines, maps, draft))


# --- Which slices ---------------------------------------------------------------------------------
def choose_slices(
    patients: Sequence[Patient], data: DataRecipe, most: int = PATIENTS_SHOWN
) -> list[ChosenSlice]:
    """Return the slice with the largest lesion of up to `most` patients, evenly spaced.

    They are in sorted order, and no system's score has a say. A patient without a lesion gives way
    to the next one.
    """
    ordered = sorted(patients, key=lambda patient: patient.patient_id)
    chosen: dict[str, ChosenSlice] = {}
    for start in (np.arange(most) * len(ordered) / most).astype(int):
        others = (p for p in ordered[start:] if p.patient_id not in chosen)
        if found := next(with_lesion(others, data), None):
            chosen[found.patient_id] = found
    return [chosen[patient_id] for patient_id in sorted(chosen)]


def with_lesion(patients: Iterator[Patient], data: DataRecipe) -> Iterator[ChosenSlice]:
    """Yield the slice with the largest lesion of each patient who has one."""
    return (found for patient in patients if (found := largest_lesion(patient, data)))


def largest_lesion(patient: Patient, data: DataRecipe) -> ChosenSlice | None:
    """Return a patient's slice with the largest lesion; None without a lesion."""
    examples = read_examples(patient, data, with_mask=True)
    areas = [np.count_nonzero(example.lesion) for example in examples]
    if not any(areas):
        return None
    largest = int(np.argmax(areas))
    return ChosenSlice(examples[largest], largest)
