"""Writes what a benchmark ends in: results.json, its tables, and two pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.patient import LabelledSlice, Patient
from ..evaluation.rows import VIEWS, Row, compare_rows, write_results
from ..evaluation.slice_grid import GridSlice, results_grid
from ..evaluation.tables import (
    cost_table,
    overview_table,
    results_figure,
    results_table,
    sequence_table,
    system_name,
)
from ..files import replace_file
from ..recipes import DataRecipe
from .own import CONTROL
from .slices import read_examples

PATIENTS_SHOWN = 4  # in the picture of slices, one slice each


def failure_rows(name: str, title: str, modality: str, reason: str) -> list[Row]:
    """Return one row per view that says why a system has no scores."""
    empty = {"threshold": "0.5", "patients": 0, "slices": 0, "dice": None, "weights": "none"}
    row = {"system": name, "title": title, "modality": modality, **empty, "failure": reason}
    return [row | {"view": view} for view in VIEWS]


def compare(rows: Sequence[Row], seed: int, name: str = "threshold") -> list[Row]:
    """Return paired differences of every other system from one, the intensity threshold."""
    scored = [row for row in rows if "failure" not in row]
    reference = {(r["view"], r["threshold"]): r for r in scored if r["system"] == name}
    pairs = [
        (row, reference[row["view"], row["threshold"]])
        for row in scored
        if row["system"] != name and (row["view"], row["threshold"]) in reference
    ]
    return [
        compare_rows(row, other, seed) | {"title": row["title"], "reference_title": other["title"]}
        for row, other in pairs
    ]


def compare_controlled(rows: Sequence[Row], controlled: Sequence[str], seed: int) -> list[Row]:
    """Return paired differences of the rows that have a control from it."""
    chosen = [row for row in rows if row["system"] in (CONTROL, *controlled)]
    return compare(chosen, seed, CONTROL)


def write_tables(
    out: Path, meta: Mapping[str, Any], rows: list[Row], headline: str, *more: str
) -> None:
    """Write results.json, results.md and results.png, and print the tables.

    Args:
        more: further tables, after the overview; "" is left out.
    """
    write_results(out / "results.json", meta, rows)
    tables = [headline, view_line(meta), promise_line(rows), overview_table(rows), *more]
    tables += [sequence_table(rows), results_table(rows), cost_table(rows)]
    text = "\n".join(filter(None, tables))
    replace_file(out / "results.md", lambda draft: draft.write_text(text, encoding="utf-8"))
    replace_file(out / "results.png", lambda draft: results_figure(rows, draft))
    print(text)
    print(f"done: {out / 'results.json'}, results.md, results.png")


def view_line(meta: Mapping[str, Any]) -> str:
    """Return how competing systems see slices, as a line of its own; "" for each by itself."""
    sees_scan = meta["view"] == "scan"
    return "Competing systems see slices in the square around their scan's brain.\n" * sees_scan


def promise_line(rows: Sequence[Row]) -> str:
    """Return what the label-free thresholds promise, as the line under the headline; "" without."""
    promises = [promise["in_words"] for row in rows if (promise := row.get("promise"))]
    sentences = "; or ".join(dict.fromkeys(promises))
    return (
        f"Label-free thresholds: {sentences}, of scans like those that gave them. The healthy "
        "slices of a patient count as one scan.\n"
    ) * bool(promises)


# --- The picture of slices ------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class ChosenSlice:
    """A slice that the picture shows, and its position among its patient's scored slices."""

    example: LabelledSlice
    position: int

    def as_row(self, patient: str) -> GridSlice:
        """Return the slice as the picture takes it, captioned with a name of the patient."""
        example = self.example
        caption = f"{patient}, {example.slice_index}"
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
    if not chosen:
        return []
    ids = [shown.example.patient_id for shown in chosen]
    maps = {}
    for system, title in {r["system"]: system_name(r) for r in rows if "failure" not in r}.items():
        files = [folders[i] / "systems" / system / "scores" / f"{i}.npy" for i in ids]
        if all(file.is_file() for file in files):
            pairs = zip(files, chosen, strict=True)
            maps[title] = [np.load(file, "r")[shown.position] for file, shown in pairs]
    names = ids if named else [f"patient {number}" for number in range(1, len(ids) + 1)]
    lines = [shown.as_row(name) for shown, name in zip(chosen, names, strict=True)]
    replace_file(path, lambda draft: results_grid(lines, maps, draft))
    return ids


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
        for patient in ordered[start:]:
            if patient.patient_id in chosen:
                continue
            examples = read_examples(patient, data, with_mask=True)
            areas = [np.count_nonzero(example.lesion) for example in examples]
            if any(areas):
                largest = int(np.argmax(areas))
                chosen[patient.patient_id] = ChosenSlice(examples[largest], largest)
                break
    return [chosen[patient_id] for patient_id in sorted(chosen)]
