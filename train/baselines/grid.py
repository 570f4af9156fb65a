"""Which test slices the picture of all systems shows, and the maps of them that were kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modeling_rasalore.data.patient import LabelledSlice, Patient
from modeling_rasalore.evaluation.rows import Row
from modeling_rasalore.evaluation.slice_grid import GridSlice, results_grid
from modeling_rasalore.evaluation.tables import system_name
from modeling_rasalore.recipes import DataRecipe

from .data import read_examples

SHOWN = 4  # patients, one slice each
Chosen = tuple[str, int, LabelledSlice]  # patient id, place among its scored slices, the slice


def write_grid(
    path: Path,
    patients: Sequence[Patient],
    data: DataRecipe,
    rows: Sequence[Row],
    folders: Mapping[str, Path],
) -> None:
    """Draw every system's kept maps of a few slices; without a lesion anywhere there is no picture.

    Args:
        patients: the test patients.
        rows: of results.json; systems whose maps are gone have no column.
        folders: patient id -> the benchmark folder that keeps its maps.
    """
    chosen = choose_slices(patients, data)
    if not chosen:
        return
    maps = {}
    for system, title in {r["system"]: system_name(r) for r in rows if "failure" not in r}.items():
        files = [folders[p] / "systems" / system / "scores" / f"{p}.npy" for p, _, _ in chosen]
        if all(file.is_file() for file in files):
            kept = zip(files, chosen, strict=True)
            maps[title] = [np.load(file, "r")[place] for file, (_, place, _) in kept]
    results_grid([grid_slice(*one) for one in chosen], maps, path)


def choose_slices(patients: Sequence[Patient], data: DataRecipe) -> list[Chosen]:
    """The slice with the largest lesion of up to `SHOWN` patients, evenly spaced in sorted order.

    No system's score is looked at. A patient without a lesion gives way to the next one.
    """
    ordered = sorted(patients, key=lambda patient: patient.patient_id)
    found: dict[str, Chosen] = {}
    for start in (np.arange(SHOWN) * len(ordered) / SHOWN).astype(int):
        for patient in ordered[start:]:
            if patient.patient_id in found:
                continue
            examples = read_examples(patient, data, with_mask=True)
            areas = [np.count_nonzero(example.lesion) for example in examples]
            if any(areas):
                place = int(np.argmax(areas))
                found[patient.patient_id] = (patient.patient_id, place, examples[place])
                break
    return sorted(found.values(), key=lambda one: one[0])


def grid_slice(patient_id: str, place: int, example: LabelledSlice) -> GridSlice:
    """A chosen slice as the picture takes it."""
    caption = f"{patient_id}, {example.slice_index}"
    spacing = example.spacing[1:]
    return GridSlice(example.image, example.lesion, spacing, caption)
