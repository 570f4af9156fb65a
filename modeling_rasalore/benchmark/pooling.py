"""Pools finished benchmarks of folds and seeds into one table, their maps scored again together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ..data.layouts import find_patients
from ..data.patient import Patient
from ..evaluation.rows import POOLED_SOURCES, Row, ScoredRun, Thresholds, evaluate_runs
from ..evaluation.scan_thresholds import Promise
from ..evaluation.tables import difference_table
from ..provenance import provenance
from .finished import (
    FinishedBenchmark,
    has_scores,
    one_of_each_split,
    refuse_mixture,
    repetitions,
    systems_of,
    takes_a_seed,
)
from .output import compare, compare_controlled, failure_rows, write_tables
from .pictures import write_grid, write_ranked_grid
from .scoring import ScoredPatients, choose_threshold
from .slices import HeldOut, data_name

# The rows that all others are compared with, of those that are there.
REFERENCES = ("threshold", "mirror", "ddpt", "rasalore_poster", "rasalore", "rasalore_with_sam")


@dataclass
class PoolRecipe:
    """Which finished benchmarks become one table.

    Attributes:
        folders: of train/run_benchmark.py.
        out: folder of the table.
        ranked_by: system by whose average precision six patients are drawn, from best to worst, in
            results_ranked.png; empty: no such picture.
        columns: systems of that picture; empty: all.
        seed: of the bootstrap over patients.
    """

    folders: list[str] = field(default_factory=list)
    out: str = MISSING
    ranked_by: str = ""
    columns: list[str] = field(default_factory=list)
    seed: int = 0


def pool_folds(recipe: PoolRecipe) -> Path:
    """Return the folder of results.json, results.md and pictures of all runs together.

    Raises:
        ValueError: fewer than two runs, runs that do not belong together, or systems to draw that
            they do not have.
    """
    if len(recipe.folders) < 2:
        raise ValueError(
            f"pooling takes two folders or more, folders=[one,another], got {recipe.folders}."
        )
    runs = [FinishedBenchmark(Path(folder)) for folder in recipe.folders]
    refuse_mixture(runs)
    names = systems_of(runs)
    asked = filter(None, (recipe.ranked_by, *recipe.columns))
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(
            f"ranked_by and columns take {', '.join(names)}, got {', '.join(unknown)}."
        )
    patients = {p.patient_id: p for p in find_patients(runs[0].meta["scored_on"]["root"])}
    tables = [pool_system(name, runs, patients, recipe.seed) for name in names]
    rows = [row for table in tables for row in table]
    compared = {f"against_{name}": compare(rows, recipe.seed, name) for name in REFERENCES}
    controlled = [name for run in runs[:1] for name in run.meta.get("controlled", [])]
    compared["against_control"] = compare_controlled(rows, controlled, recipe.seed)
    meta = describe_runs(runs) | {key: value for key, value in compared.items() if value}
    out = Path(recipe.out)
    shown = [f"against_{name}" for name in ("threshold", "mirror", "ddpt", "control")]
    differences = difference_table([row for name in shown for row in compared[name]])
    write_tables(out, meta, rows, headline(runs, patients), differences)
    folders = {patient: run.folder for run in reversed(runs) for patient in run.patients}
    tested = [patients[patient] for patient in meta["test_patients"]]
    write_grid(out / "results_grid.png", tested, runs[0].data, rows, folders)
    if recipe.ranked_by:
        write_ranked_grid(
            out / "results_ranked.png",
            patients,
            runs[0].data,
            rows,
            folders,
            recipe.ranked_by,
            recipe.columns,
        )
    return out


def pool_system(
    name: str, runs: Sequence[FinishedBenchmark], patients: Mapping[str, Patient], seed: int
) -> list[Row]:
    """Return rows of one system over all runs, or rows that say which run has none.

    Args:
        patients: of the data set, by id.
        seed: of the bootstrap over patients.
    """
    title = title_of(name, runs)
    numbers = repetitions(runs)
    if not takes_a_seed(name, runs):  # its maps are the same at every seed
        runs = one_of_each_split(name, runs)
        numbers = [number if run.crossed else 0 for number, run in enumerate(runs)]
    for run in runs:
        if not has_scores(run, name):
            reasons = [row["failure"] for row in run.rows(name)]
            reason = f"{run.folder} has none: {(reasons or ['it was not asked for'])[0]}"
            return failure_rows(name, title, run.meta["modality"], reason)
    tables = [run.rows(name) for run in runs]
    scored = [
        ScoredRun(stored_maps(name, run, patients), find_threshold(name, run, runs), repetition)
        for run, repetition in zip(runs, numbers, strict=True)
    ]
    rows = evaluate_runs(name, scored, tables[0][0]["modality"], seed)
    cost = cost_of([table[0] for table in tables])
    return [row | {"title": title} | cost for row in rows]


def title_of(name: str, runs: Sequence[FinishedBenchmark]) -> str:
    """Return a system's title for readers."""
    return next(row["title"] for run in runs for row in run.rows(name))


def stored_maps(
    name: str, run: FinishedBenchmark, patients: Mapping[str, Patient]
) -> ScoredPatients:
    """Return a run's patients with the maps that a system left there."""
    held_out = HeldOut([patients[patient] for patient in run.patients], run.data)
    folder = run.folder / "systems" / name / "scores"
    return ScoredPatients(held_out, name, folder, run.rows(name)[0]["all_sequences"])


def find_threshold(
    name: str, run: FinishedBenchmark, runs: Sequence[FinishedBenchmark]
) -> Thresholds:
    """Return a system's label-free threshold for the patients of one run.

    Each patient was scored by networks that have not learned from that one, so the other folds'
    patients give the threshold of a fold, those of all folds that of another data set: many more
    than the validation patients, whose threshold stands where there are no others. This takes the
    networks of a seed's folds to score alike. Masks have no part in it, slice labels have.
    """
    others = [other for other in runs if other.seed == run.seed and (run.crossed or other != run)]
    by_patient: dict[str, float] = {}
    for other in others:
        first: Row = next(iter(other.rows(name)), {})
        by_patient |= first.get("healthy_thresholds") or {}
    if not by_patient:
        return stated_threshold(run.rows(name))
    settings = run.settings(name)
    rate, above = settings["false_alarm_rate"], settings.get("scans_above", 0.0)
    return choose_threshold(list(by_patient.values()), rate, above)


def stated_threshold(rows: Sequence[Row]) -> Thresholds:
    """Return the label-free threshold that a system's rows state."""
    for row in rows:
        if row["threshold"] == "label_free":
            value, stated = row["threshold_value"], row.get("promise")
            promise = Promise(value, stated["scans"], stated["rank"]) if stated else None
            return Thresholds(value, row["false_alarm_rate"], promise)
    return Thresholds()


def cost_of(rows: Sequence[Row]) -> Row:
    """Return mean times and highest peaks of a system's rows, one of each run."""
    cost: Row = {}
    for name in ("seconds", "peak_mib", "scoring_seconds", "scoring_peak_mib"):
        values = [row[name] for row in rows if row.get(name) is not None]
        highest = max(values, default=None)
        mean = sum(values) / len(values) if values else None
        cost[name] = highest if name.endswith("mib") else mean
    stand_in = [row["weights"] for row in rows if row["weights"] == "stand-in"]
    return cost | {"weights": (stand_in or [rows[0]["weights"]])[0]}


def describe_runs(runs: Sequence[FinishedBenchmark]) -> dict[str, Any]:
    """Return what the table states of where it comes from."""
    first = runs[0].meta
    return {
        **provenance(),
        **{key: first[key] for key in ("modality", "size", "learned_from", "scored_on")},
        "view": first.get("view", "slice"),
        "data_sha256": first["data_sha256"],
        "test_patients": sorted({patient for run in runs for patient in run.patients}),
        "seeds": len({run.seed for run in runs}),
        "averaged": len(set(repetitions(runs))),
        "thresholds": POOLED_SOURCES,
        "label_free_thresholds": {
            name: [
                find_threshold(name, run, runs).label_free if has_scores(run, name) else None
                for run in runs
            ]
            for name in systems_of(runs)
        },
        "runs": [
            {"folder": str(run.folder), "seed": run.seed, "test_patients": run.patients}
            | {key: run.meta[key] for key in ("split_sha256", "commit")}
            for run in runs
        ],
    }


def headline(runs: Sequence[FinishedBenchmark], patients: Mapping[str, Patient]) -> str:
    """Return whose scores these are, over the tables."""
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
