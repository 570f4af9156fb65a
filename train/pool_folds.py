"""One table of several folds and seeds: every patient of the data set is a test patient of it.

    python train/pool_folds.py folders=[runs/fold1/benchmark,runs/fold2/benchmark] out=runs/pooled

Each folder is one of a finished train/run_benchmark.py, whose kept maps are scored again, together.
Folds add patients. Seeds of a fold are averaged patient by patient before anything else, and so are
all runs on another data set (<fold's benchmark>/cross/<name>), each of which scores all of its
patients. Each run's label-free thresholds are applied to its own test patients; the oracle is one
threshold for all slices of all runs. Refused are runs that tested a patient twice at one seed, that
read other scans, or that made a system in different ways.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines.data import data_name
from baselines.grid import write_grid
from baselines.pooling import (
    Finished,
    label_free_of,
    pool_system,
    refuse_mixture,
    repetitions,
    systems_of,
)
from baselines.tables import compare, write_tables
from omegaconf import MISSING

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.evaluation.rows import POOLED_SOURCES
from modeling_rasalore.evaluation.tables import difference_table
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import load_recipe

# The rows that all others are compared with, of those that are there.
REFERENCES = ("threshold", "ddpt", "rasalore_without_sam", "rasalore")


@dataclass
class PoolRecipe:
    """Which finished benchmarks become one table."""

    folders: list[str] = field(default_factory=list)  # of train/run_benchmark.py
    out: str = MISSING
    seed: int = 0  # of the bootstrap over patients


def main(words: list[str]) -> None:
    recipe = load_recipe(PoolRecipe, words)
    if len(recipe.folders) < 2:
        raise ValueError(
            f"pooling takes two folders or more, folders=[one,another], got {recipe.folders}."
        )
    runs = [Finished(Path(folder)) for folder in recipe.folders]
    refuse_mixture(runs)
    patients = {p.patient_id: p for p in find_patients(runs[0].meta["scored_on"]["root"])}
    tables = [pool_system(name, runs, patients, recipe.seed) for name in systems_of(runs)]
    rows = [row for table in tables for row in table]
    compared = {f"against_{name}": compare(rows, recipe.seed, name) for name in REFERENCES}
    meta = describe(runs) | {key: value for key, value in compared.items() if value}
    out = Path(recipe.out)
    differences = difference_table([*compared["against_threshold"], *compared["against_ddpt"]])
    write_tables(out, meta, rows, headline(runs, patients), differences)
    folders = {patient: run.folder for run in reversed(runs) for patient in run.patients}
    tested = [patients[patient] for patient in meta["test_patients"]]
    write_grid(out / "results_grid.png", tested, runs[0].data, rows, folders)


def describe(runs: Sequence[Finished]) -> dict[str, Any]:
    """What the table states of where it comes from."""
    first = runs[0].meta
    return {
        **provenance(),
        **{key: first[key] for key in ("modality", "size", "learned_from", "scored_on")},
        "data_sha256": first["data_sha256"],
        "test_patients": sorted({patient for run in runs for patient in run.patients}),
        "seeds": len({run.seed for run in runs}),
        "averaged": len(set(repetitions(runs))),
        "thresholds": POOLED_SOURCES,
        "label_free_thresholds": {
            name: [label_free_of(run.rows(name)).label_free for run in runs]
            for name in systems_of(runs)
        },
        "runs": [
            {"folder": str(run.folder), "seed": run.seed, "test_patients": run.patients}
            | {key: run.meta[key] for key in ("split_sha256", "commit")}
            for run in runs
        ],
    }


def headline(runs: Sequence[Finished], patients: dict[str, Patient]) -> str:
    """Whose scores these are, over the tables."""
    tested = {patient for run in runs for patient in run.patients}
    seeds = len({run.seed for run in runs})
    learned, scored = (data_name(**runs[0].meta[key]) for key in ("learned_from", "scored_on"))
    how = f", each as a test patient, in {len(runs)} runs; seeds: {seeds}"
    if runs[0].crossed:
        how = f" in each of {len(runs)} runs that learned from {learned}; seeds: {seeds}"
    return (
        f"Scored: {len(tested)} of {len(patients)} patients of {scored}{how}, averaged patient by "
        "patient. Label-free thresholds are each run's own; the oracle is one threshold for all "
        "slices.\n"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
