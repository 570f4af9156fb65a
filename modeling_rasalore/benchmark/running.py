"""Fits and scores every system of a benchmark, each in a process of its own, and resumes."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.layouts import find_patients
from ..data.patient import ALL, Patient
from ..data.splits import read_split, split_hash
from ..evaluation.rows import Row, evaluate_system, write_results
from ..evaluation.tables import difference_table
from ..files import some, write_json
from ..processes import run_apart
from ..provenance import peak_mib, provenance
from .ablations import CHANGES, STAGE1_HEATMAPS, ChangedNetwork, ablation_rows
from .output import compare, compare_controlled, failure_rows, write_tables
from .own import OWN_ROWS, REFERENCES, controlled_rows
from .pictures import write_grid
from .recipe import BenchmarkRecipe
from .scoring import ScoredPatients, find_threshold, sequence_of
from .slices import HeldOut, Split, data_name, refuse_leaks, training_slices, truth_hash
from .systems import COMPETITORS, System, SystemRow


def run_benchmark(recipe: BenchmarkRecipe) -> Path:
    """Return the folder of results.json, results.md and pictures, after scoring every system.

    Raises:
        ValueError: a wrong name, a mask that is missing, or a scored patient that may be known.
    """
    check_words(recipe)
    chosen = choose_rows(recipe)
    split = load_split(recipe)
    held_out = load_held_out(recipe, split)
    folders = dict.fromkeys(folder for row in OWN_ROWS for folder in row.folders(recipe))
    data_sha256 = refuse_leaks(split, recipe.data, list(folders), held_out)
    controlled_rows(recipe)  # a control that is none is refused before anything is scored
    with ThreadPoolExecutor(recipe.workers) as pool:  # each waits for a process of its own
        score = partial(score_row, recipe=recipe, split=split, held_out=held_out)
        rows = [row for table in pool.map(score, chosen) for row in table]
    write_benchmark(recipe, rows, split, held_out, data_sha256)
    return recipe.results


def check_words(recipe: BenchmarkRecipe) -> None:
    """Raise ValueError for a view or numbers that are none, before anything is fitted."""
    if recipe.view not in ("slice", "scan"):
        raise ValueError(f"view must be slice or scan, got {recipe.view!r}.")
    if recipe.workers < 1:
        raise ValueError(f"workers must be at least 1, got {recipe.workers}.")
    if not (0 < recipe.false_alarm_rate < 1 and 0 <= recipe.scans_above < 1):
        raise ValueError(
            "false_alarm_rate must lie in (0, 1) and scans_above in [0, 1), got "
            f"{recipe.false_alarm_rate:g} and {recipe.scans_above:g}."
        )


# --- Which systems, on whom -----------------------------------------------------------------------
def known_rows() -> dict[str, SystemRow]:
    """Return every row by name, in the table's order; competitors that are registered included."""
    own: dict[str, SystemRow] = {row.name: row for row in OWN_ROWS}
    first = dict(list(own.items())[:REFERENCES])
    return first | COMPETITORS | own


def choose_rows(recipe: BenchmarkRecipe) -> list[SystemRow]:
    """Return the rows to run, in the table's order, and the ablations after them.

    Raises:
        ValueError: for an unknown name, or one whose folder is not given.
    """
    ablations = ablation_rows(recipe.ablation, recipe.whole, Path(recipe.out) / "ablations")
    rows = known_rows()
    if recipe.systems in ("all", "own"):
        names = [row.name for row in OWN_ROWS] if recipe.systems == "own" else list(rows)
        given = [rows[name] for name in names if "" not in rows[name].folders(recipe)]
        return [*given, *ablations]
    names = [word.strip() for word in recipe.systems.split(",")]
    for name in names:
        if name not in rows:
            raise ValueError(f"systems are all, own, or any of {', '.join(rows)}, got {name!r}.")
        if "" in rows[name].folders(recipe):
            raise ValueError(f"{name} needs the folder of a trained model, and none was given.")
    return [*(rows[name] for name in rows if name in names), *ablations]


def load_split(recipe: BenchmarkRecipe) -> dict[str, list[Patient]]:
    """Return stage 1's split."""
    patients = find_patients(recipe.data.root, recipe.data.same_person)
    return read_split(Path(recipe.stage1) / "split.json", patients)


def load_held_out(recipe: BenchmarkRecipe, split: Split) -> HeldOut:
    """Return the test patients, or all patients of another data set whom no table leaves out.

    Raises:
        ValueError: masks are missing; all sequences at once; or a `cross.modality` without another
            data set, for it would change nothing.
    """
    if ALL in (recipe.data.modality, recipe.cross.modality):
        raise ValueError(
            "data.modality of a benchmark is the one sequence of the systems of one, got all; give "
            "the folder of a network of all sequences as modalities.all."
        )
    if recipe.cross.modality and not recipe.cross.root:
        raise ValueError(
            f"cross.modality is of the data set that cross.root names, got {recipe.cross.modality} "
            "and no cross.root; give it, or data.modality."
        )
    root, persons = recipe.cross.root, recipe.data.same_person
    everyone = find_patients(root, persons) if root else split["test"]
    patients = [patient for patient in everyone if not patient.left_out]
    unscored = [patient.patient_id for patient in patients if patient.mask is None]
    if unscored:
        raise ValueError(
            f"scoring needs a mask of every scored patient, but {some(unscored)} have none; "
            "everything else works without: see train/study.py."
        )
    return HeldOut(patients, recipe.scored_data)


# --- One system -----------------------------------------------------------------------------------
def score_row(
    row: SystemRow, recipe: BenchmarkRecipe, split: Split, held_out: HeldOut
) -> list[Row]:
    """Return a system's rows: of an earlier run with the same settings, or of a new process."""
    modality = recipe.scored_data.modality
    if isinstance(row, ChangedNetwork) and (reason := run_apart(row.train)):
        return failure_rows(row.name, row.title, modality, reason)
    folder = claim_folder(row, recipe, split, held_out)
    results = folder / "rows.json"
    if not results.exists() and (reason := run_apart(partial(run_system, row, recipe))):
        return failure_rows(row.name, row.title, modality, reason)
    return [entry | {"title": row.title} for entry in json.loads(results.read_text())["rows"]]


def claim_folder(row: SystemRow, recipe: BenchmarkRecipe, split: Split, held_out: HeldOut) -> Path:
    """Return the folder of a system's scores, emptied where it holds those of other settings."""
    facts = row.facts(recipe) | {
        "data": asdict(recipe.data),
        "split_sha256": split_hash(split),
        "truth_sha256": truth_hash([p for part in split.values() for p in part]),
        "training_slices": recipe.training_slices,
        "false_alarm_rate": recipe.false_alarm_rate,
        "scans_above": recipe.scans_above,
    }
    folder = clear_unless(Path(recipe.out) / "systems" / row.name, facts)
    if recipe.cross.root:
        ids = [patient.patient_id for patient in held_out.patients]
        facts |= {"cross": asdict(recipe.cross), "cross_patients": ids}
        facts |= {"cross_truth_sha256": truth_hash(held_out.patients)}
        folder = clear_unless(recipe.results / "systems" / row.name, facts)
    return folder


def clear_unless(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Return `folder`, emptied unless its settings.json states these facts and no others.

    What it does not state, as an earlier version may not, is taken to be the same.
    """
    facts = json.loads(json.dumps(facts))  # tuples as JSON keeps them
    settings = folder / "settings.json"
    stated = json.loads(settings.read_text()) if settings.exists() else None
    if stated is None or facts | stated != facts:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(settings, facts)
    return folder


def run_system(row: SystemRow, recipe: BenchmarkRecipe) -> None:
    """Fit and score one system, and write its rows."""
    folder = recipe.results / "systems" / row.name
    torch.set_num_threads(max(torch.get_num_threads() // recipe.workers, 1))
    split = load_split(recipe)
    held_out = load_held_out(recipe, split)
    system = fit_or_restore(row, recipe, split)
    crossed, rate = bool(recipe.cross.root), recipe.false_alarm_rate
    patients = ScoredPatients(
        held_out,
        row.name,
        folder / "scores",
        system.ALL_SEQUENCES,
        system.score,
        system.see,
        false_alarm_rate=None if crossed else rate,
    )
    rows = evaluate_system(
        row.name,
        patients,
        find_threshold(system, split["validation"], recipe.data, rate, recipe.scans_above),
        sequence_of(system, held_out.data),
        seconds=system.seconds,
        peak_mib=system.peak_mib,
        weights=system.weights,
        seed=recipe.seed,
    )
    more = {
        "scoring_seconds": patients.seconds,
        "scoring_peak_mib": peak_mib(),
        "all_sequences": system.ALL_SEQUENCES,
        "healthy_thresholds": stored_thresholds(recipe, row.name)
        if crossed
        else patients.healthy_thresholds,
    }
    write_results(folder / "rows.json", {}, [entry | more for entry in rows])


def fit_or_restore(row: SystemRow, recipe: BenchmarkRecipe, split: Split) -> System:
    """Return the system ready to score; what an earlier run learned is not learned again."""
    folder = Path(recipe.out) / "systems" / row.name
    cost = folder / "cost.json"
    system = row.restore(folder, recipe) if cost.exists() else None
    if system is None:
        system = row.make(recipe)
        if system.seconds is not None or system.weights == "none":  # trained elsewhere, or never
            return system
        slices, labels = training_slices(
            split["train"],
            recipe.data,
            system.ALL_SEQUENCES,
            recipe.training_slices,
            recipe.seed,
            system.see,
        )
        started = time.monotonic()
        system.fit(slices, labels)
        seconds = round(time.monotonic() - started, 1)
        system.save(folder)
        write_json(cost, {"seconds": seconds, "peak_mib": peak_mib()})
    known = json.loads(cost.read_text())
    system.seconds, system.peak_mib = known["seconds"], known["peak_mib"]
    return system


def stored_thresholds(recipe: BenchmarkRecipe, name: str) -> dict[str, float]:
    """Return what the healthy slices of the data set that a system learned from need, by patient.

    Those of its test patients, where they were scored before.
    """
    path = Path(recipe.out) / "systems" / name / "rows.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else [{}]
    known: dict[str, float] = rows[0].get("healthy_thresholds", {})
    return known


# --- What is written ------------------------------------------------------------------------------
def write_benchmark(
    recipe: BenchmarkRecipe,
    rows: list[Row],
    split: Split,
    held_out: HeldOut,
    data_sha256: str,
) -> None:
    """Write results.json, results.md and both pictures, and print the table."""
    meta = {
        **provenance(),
        "modality": held_out.data.modality,
        "size": recipe.size,
        "view": recipe.view,
        "learned_from": {"root": recipe.data.root, "modality": recipe.data.modality},
        "scored_on": {"root": held_out.data.root, "modality": held_out.data.modality},
        "test_patients": [patient.patient_id for patient in held_out.patients],
        "split_sha256": split_hash(split),
        "data_sha256": data_sha256,
        "seed": recipe.seed,
        "seeds": 1,
        "against_threshold": compare(rows, recipe.seed),
        "controlled": (controlled := controlled_rows(recipe)),
    }
    if against_control := compare_controlled(rows, controlled, recipe.seed):
        meta["against_control"] = against_control
    if recipe.ablation:
        meta["ablations_against_whole"] = compare_ablations(recipe, rows)
    out = recipe.results
    first = headline(recipe, len(held_out.patients))
    write_tables(out, meta, rows, first, difference_table(against_control))
    folders = {patient.patient_id: out for patient in held_out.patients}
    write_grid(out / "results_grid.png", held_out.patients, held_out.data, rows, folders)


def compare_ablations(recipe: BenchmarkRecipe, rows: Sequence[Row]) -> list[Row]:
    """Return paired differences of ablations from the whole, and of heatmaps from stage 1's own."""
    whole = "rasalore_with_sam" if recipe.rasalore_with_sam else "rasalore"
    differences = []
    for reference, names in ((whole, CHANGES), ("ddpt", STAGE1_HEATMAPS)):
        chosen = [row for row in rows if row["system"] in (reference, *names)]
        differences += compare(chosen, recipe.seed, reference)
    return differences


def headline(recipe: BenchmarkRecipe, patients: int) -> str:
    """Return which data set was scored, over the tables."""
    learned = data_name(recipe.data.root, recipe.data.modality)
    if not recipe.cross.root:
        return f"Scored: {patients} test patients of {learned}.\n"
    scored = data_name(recipe.cross.root, recipe.scored_data.modality)
    return (
        f"Scored: all {patients} patients of {scored}. Learned from, and label-free thresholds "
        f"from healthy validation slices of: {learned}.\n"
    )
