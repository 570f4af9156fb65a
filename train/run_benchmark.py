"""Fit and score every system on held-out patients under one protocol, and write the table.

    accelerate launch --cpu train/run_benchmark.py data.root=phantoms stage1=runs/stage1 \
        stage2=runs/stage2 ceiling=runs/ceiling out=runs/benchmark systems=all size=small

Only test patients are scored, with every slice that shows brain; `cross.root=` scores all patients
of another data set instead, with what was learned on this one. True masks are read here for the
first time, and only to score: systems get slices and slice labels, nothing else. Thresholds come
from healthy slices of validation patients, or are called oracle. Each system runs in a process of
its own: its failure is a row that says why. Start it again after an interruption: finished systems
are kept, and failed ones are tried again.
"""

import json
import multiprocessing
import shutil
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baselines.ablations import CHANGES, STAGE1_HEATMAPS, choose_ablations, train_ablation
from baselines.data import Scored, Split, data_name, refuse_leaks, training_slices
from baselines.grid import write_grid
from baselines.interface import System
from baselines.registry import LEARNED, SequenceRuns, Sources, build, choose, describe, restore
from baselines.scoring import ScoredPatients, label_free, sequence_of
from baselines.tables import compare, failure_rows, write_tables
from omegaconf import MISSING

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import ALL, Patient
from modeling_rasalore.data.splits import read_split, split_hash
from modeling_rasalore.evaluation.rows import evaluate_system, write_results
from modeling_rasalore.files import first_line, some, write_json
from modeling_rasalore.provenance import peak_mib, provenance
from modeling_rasalore.recipes import DataRecipe, load_recipe


@dataclass
class CrossRecipe:
    """Another data set, all of whose patients are scored instead of the test patients."""

    root: str = ""  # as data.root; empty: none
    modality: str | None = None  # of its scans; null: data.modality


@dataclass
class BenchmarkRecipe:
    """Which systems, on which patients."""

    out: str = MISSING
    stage1: str = MISSING  # folder of train/stage1.py; its split.json says who is held out
    synthetic_only: str = ""  # folder of train/stage2.py on painted lesions, or on phantoms, alone
    stage2: str = ""  # the same on stage 1's pseudo-masks
    stage2_with_sam: str = ""  # the same with masks of a segmenter
    stage2_warm: str = ""  # the same after a start on painted lesions
    stage2_warm_selftrained: str = ""  # and after rounds of self-training
    ceiling: str = ""  # folder of train/stage2.py on true masks
    sequences: SequenceRuns = field(default_factory=SequenceRuns)
    # Stage 2 with one part changed, trained below `out`, and stage 1's kinds of heatmap: "all", or
    # names with commas between them.
    ablation: str = ""
    # "all"; "own": chance, threshold and the project's models; or names with commas between them.
    # Models whose folder is not given have no row.
    systems: str = "own"
    size: str = "small"  # of the competing systems: "small" (two cores, minutes) or "paper" (a GPU)
    sam: str = "facebook/sam-vit-base"  # repo ids or folders of segmenters
    medsam: str = "flaviagiammarino/medsam-vit-base"
    medsam2: str = "wanglab/MedSAM2"  # needs conversion to a Sam2Model folder first
    data: DataRecipe = field(default_factory=DataRecipe)
    cross: CrossRecipe = field(default_factory=CrossRecipe)
    training_slices: int = 0  # most slices that competing systems learn from; 0: all
    false_alarm_rate: float = 0.01  # of brain voxels of healthy slices, for label-free thresholds
    seed: int = 0
    workers: int = 1  # systems at a time, which share the cores; times are those of shared cores
    flips: bool = False  # score stage-2 networks as `rasalore predict --flips` does

    def sources(self) -> Sources:
        """What systems are built from."""
        return Sources(**{f.name: getattr(self, f.name) for f in fields(Sources)})

    @property
    def ablated(self) -> str:
        """The run that ablations are of: the one that has every part."""
        return self.stage2_with_sam or self.stage2

    @property
    def ablations(self) -> dict[str, str]:
        """Name of each ablation to run -> its folder."""
        names = choose_ablations(self.ablation, self.ablated)
        out = Path(self.out) / "ablations"
        return {name: self.stage1 if name in STAGE1_HEATMAPS else str(out / name) for name in names}

    @property
    def scored_data(self) -> DataRecipe:
        """How the slices of scored patients are read."""
        modality = self.cross.modality or self.data.modality
        return replace(self.data, root=self.cross.root or self.data.root, modality=modality)

    @property
    def results(self) -> Path:
        """Folder of the results; what systems learned stays in `out` whomever they score."""
        out = Path(self.out)
        return out / "cross" / Path(self.cross.root).name if self.cross.root else out


def main(words: list[str]) -> None:
    recipe = load_recipe(BenchmarkRecipe, words)
    names = choose(recipe.systems, recipe.sources())
    split = load_split(recipe)
    scored = load_scored(recipe, split)
    trained = [recipe.synthetic_only, recipe.stage2, recipe.stage2_with_sam, recipe.ceiling]
    trained += [recipe.stage2_warm, recipe.stage2_warm_selftrained]
    folders = [recipe.stage1, *trained, *asdict(recipe.sequences).values()]
    data_sha256 = refuse_leaks(split, recipe.data, folders, scored)
    check_workers(recipe.workers)
    with ThreadPoolExecutor(recipe.workers) as pool:  # each waits for a process of its own
        tables = pool.map(partial(rows_of, recipe=recipe, split=split, scored=scored), names)
        rows = [row for table in tables for row in table]
    write_out(recipe, rows, split, scored, data_sha256)


def check_workers(workers: int) -> None:
    """Raise ValueError for a number of workers that can do nothing."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")


def load_split(recipe: BenchmarkRecipe) -> dict[str, list[Patient]]:
    """Stage 1's split."""
    return read_split(Path(recipe.stage1) / "split.json", find_patients(recipe.data.root))


def load_scored(recipe: BenchmarkRecipe, split: Split) -> Scored:
    """The test patients, or all patients of another data set; ValueError where masks are missing.

    A `cross.modality` without another data set is refused too, for it would change nothing.
    """
    if ALL in (recipe.data.modality, recipe.cross.modality):
        raise ValueError(
            "data.modality of a benchmark is the one sequence of the systems of one, got all; give "
            "the folder of a network of all sequences as sequences.all."
        )
    if recipe.cross.modality and not recipe.cross.root:
        raise ValueError(
            f"cross.modality is of the data set that cross.root names, got {recipe.cross.modality} "
            "and no cross.root; give it, or data.modality."
        )
    patients = find_patients(recipe.cross.root) if recipe.cross.root else split["test"]
    unscored = [patient.patient_id for patient in patients if patient.mask is None]
    if unscored:
        raise ValueError(
            f"scoring needs a mask of every scored patient, but {some(unscored)} have none; "
            "everything else works without: see train/demo.sh."
        )
    return Scored(patients, recipe.scored_data)


# --- One system ---------------------------------------------------------------------------------
def rows_of(
    name: str, recipe: BenchmarkRecipe, split: Split, scored: Scored
) -> list[dict[str, Any]]:
    """A system's rows: those of an earlier run with the same settings, or of a new process."""
    modality = recipe.scored_data.modality
    try:
        if name in CHANGES:
            train_ablation(name, Path(recipe.ablated), Path(recipe.ablations[name]))
    except ValueError as error:
        return failure_rows(name, modality, first_line(error))
    facts = describe(name, recipe.sources()) | {
        "data": asdict(recipe.data),
        "split_sha256": split_hash(split),
        "training_slices": recipe.training_slices,
        "false_alarm_rate": recipe.false_alarm_rate,
    }
    folder = clear_unless(Path(recipe.out) / "systems" / name, facts)
    if recipe.cross.root:
        ids = [patient.patient_id for patient in scored.patients]
        facts |= {"cross": asdict(recipe.cross), "cross_patients": ids}
        folder = clear_unless(recipe.results / "systems" / name, facts)
    results = folder / "rows.json"
    if not results.exists():
        (folder / "failure.txt").unlink(missing_ok=True)
        process = multiprocessing.get_context("spawn").Process(
            target=run_system, args=(name, recipe)
        )
        process.start()
        process.join()
        if not results.exists():
            return failure_rows(name, modality, reason_of(folder, process.exitcode))
    rows: list[dict[str, Any]] = json.loads(results.read_text())["rows"]
    return rows


def clear_unless(folder: Path, facts: dict[str, Any]) -> Path:
    """Return `folder`, emptied unless its settings.json states these facts."""
    facts = json.loads(json.dumps(facts))  # tuples as JSON keeps them
    settings = folder / "settings.json"
    if not settings.exists() or json.loads(settings.read_text()) != facts:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(settings, facts)
    return folder


def run_system(name: str, recipe: BenchmarkRecipe) -> None:
    """Fit and score one system, and write its rows or why there are none."""
    folder = recipe.results / "systems" / name
    torch.set_num_threads(max(torch.get_num_threads() // recipe.workers, 1))
    try:
        split = load_split(recipe)
        scored = load_scored(recipe, split)
        system = fitted(name, recipe, split)
        patients = ScoredPatients(system, scored, name, folder / "scores")
        rows = evaluate_system(
            name,
            patients,
            label_free(system, split["validation"], recipe.data, recipe.false_alarm_rate),
            sequence_of(system, scored.data),
            seconds=system.seconds,
            peak_mib=system.peak_mib,
            weights=system.weights,
            seed=recipe.seed,
        )
        cost = {"scoring_seconds": patients.seconds, "scoring_peak_mib": peak_mib()}
        write_results(folder / "rows.json", {}, [row | cost for row in rows])
    except Exception as error:
        traceback.print_exc()
        (folder / "failure.txt").write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def fitted(name: str, recipe: BenchmarkRecipe, split: Split) -> System:
    """The system ready to score; what an earlier run learned is not learned again."""
    folder = Path(recipe.out) / "systems" / name
    cost = folder / "cost.json"
    if name in LEARNED and cost.exists():
        system: System = restore(name, folder, recipe.sources())
    else:
        system = build(name, recipe.sources())
        if system.seconds is not None or system.weights == "none":  # trained elsewhere, or never
            return system
        slices, labels = training_slices(
            split["train"], recipe.data, system.ALL_SEQUENCES, recipe.training_slices, recipe.seed
        )
        started = time.monotonic()
        system.fit(slices, labels)
        seconds = round(time.monotonic() - started, 1)
        system.save(folder)
        write_json(cost, {"seconds": seconds, "peak_mib": peak_mib()})
    known = json.loads(cost.read_text())
    system.seconds, system.peak_mib = known["seconds"], known["peak_mib"]
    return system


# --- What is written ----------------------------------------------------------------------------
def reason_of(folder: Path, exit_code: int | None) -> str:
    """Why a system has no rows, in one line."""
    path = folder / "failure.txt"
    if path.exists():
        return " ".join(path.read_text().split())
    return f"its process ended with code {exit_code} (-9: killed, most often for memory)"


def write_out(
    recipe: BenchmarkRecipe,
    rows: list[dict[str, Any]],
    split: Split,
    scored: Scored,
    data_sha256: str,
) -> None:
    """Write results.json, results.md and both pictures, and print the table."""
    meta = {
        **provenance(),
        "modality": scored.data.modality,
        "size": recipe.size,
        "learned_from": {"root": recipe.data.root, "modality": recipe.data.modality},
        "scored_on": {"root": scored.data.root, "modality": scored.data.modality},
        "test_patients": [patient.patient_id for patient in scored.patients],
        "split_sha256": split_hash(split),
        "data_sha256": data_sha256,
        "seed": recipe.seed,
        "seeds": 1,
        "against_threshold": compare(rows, recipe.seed),
    }
    if recipe.ablation:
        whole = "rasalore" if recipe.stage2_with_sam else "rasalore_without_sam"
        meta["ablations_against_whole"] = [
            difference
            for reference, names in ((whole, CHANGES), ("ddpt", STAGE1_HEATMAPS))
            for difference in compare(
                [row for row in rows if row["system"] in (reference, *names)],
                recipe.seed,
                reference,
            )
        ]
    out = recipe.results
    write_tables(out, meta, rows, headline(recipe, len(scored.patients)))
    folders = {patient.patient_id: out for patient in scored.patients}
    write_grid(out / "results_grid.png", scored.patients, scored.data, rows, folders)


def headline(recipe: BenchmarkRecipe, patients: int) -> str:
    """Which data set was scored, over the tables."""
    learned = data_name(recipe.data.root, recipe.data.modality)
    if not recipe.cross.root:
        return f"Scored: {patients} test patients of {learned}.\n"
    scored = data_name(recipe.cross.root, recipe.scored_data.modality)
    return (
        f"Scored: all {patients} patients of {scored}. Learned from, and label-free thresholds "
        f"from healthy validation slices of: {learned}.\n"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
