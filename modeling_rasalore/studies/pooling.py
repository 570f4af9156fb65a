"""Pools finished benchmarks of folds and seeds into one table, their maps scored again together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from ..data.layouts import find_patients
from ..data.patient import Patient
from ..evaluation.rows import POOLED_SOURCES, Row, ScoredRun, Thresholds, evaluate_runs
from ..evaluation.scan_thresholds import Promise
from ..evaluation.tables import difference_table
from ..provenance import provenance
from ..recipes import DataRecipe
from .output import compare, compare_controlled, failure_rows, write_grid, write_tables
from .scoring import ScoredPatients, choose_threshold
from .slices import HeldOut, data_name

# The rows that all others are compared with, of those that are there.
REFERENCES = ("threshold", "mirror", "ddpt", "rasalore_poster", "rasalore", "rasalore_with_sam")
# Facts of a system's settings.json that are of the benchmark; all others are of trained models.
BENCHMARK_FACTS = (
    *("flips", "size", "settings", "weights", "training_slices"),
    *("false_alarm_rate", "scans_above"),
)
# What folds and seeds may differ in: who is in them, where files lie, what chance decides.
FREE = (
    *(".out", ".model", ".pseudo_masks", ".initial_weights", ".data.root", ".loop.seed"),
    *(".split.seed", ".split.fold", ".data.shuffle_buffer", ".data.lanes", ".data.same_person"),
)
# Of config.json: every fold chooses a heatmap and fits a temperature of its own.
FREE_FIELDS = ("heatmap", "temperature", "transformers_version")
MASK_FACTS = (  # of pseudo-masks
    *("source", "modality", "threshold", "filter_reach", "segmenter"),
    *("uncertain_above", "uncertain_up_to"),
)


@dataclass
class PoolRecipe:
    """Which finished benchmarks become one table.

    Attributes:
        folders: of train/run_benchmark.py.
        out: folder of the table.
        seed: of the bootstrap over patients.
    """

    folders: list[str] = field(default_factory=list)
    out: str = MISSING
    seed: int = 0


@dataclass(frozen=True)
class FinishedBenchmark:
    """A folder of `run_benchmark`, and what its results.json says.

    Raises:
        ValueError: it is not finished, or nothing in it has scores.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "results.json").is_file():
            raise ValueError(f"{self.folder} holds no results.json of train/run_benchmark.py.")
        stated = self.meta.keys() | {key for row in self.content["rows"] for key in row}
        if missing := {"seed", "data_sha256", "title"} - stated:
            raise ValueError(
                f"{self.folder}/results.json does not say {' and '.join(sorted(missing))}; start "
                "its benchmark again, which keeps what is finished."
            )
        if not any(has_scores(self, system) for system in systems_of([self])):
            raise ValueError(f"no system of {self.folder} has scores; its results.md says why.")

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of results.json."""
        content: dict[str, Any] = json.loads((self.folder / "results.json").read_text("utf-8"))
        return content

    @property
    def meta(self) -> dict[str, Any]:
        """What results.json says of the whole run."""
        meta: dict[str, Any] = self.content["meta"]
        return meta

    @property
    def seed(self) -> int:
        """The benchmark's seed."""
        return int(self.meta["seed"])

    @property
    def crossed(self) -> bool:
        """Whether it scores all patients of another data set than it learned from."""
        return bool(self.meta["learned_from"] != self.meta["scored_on"])

    @property
    def patients(self) -> list[str]:
        """Ids of its test patients."""
        return list(self.meta["test_patients"])

    @property
    def data(self) -> DataRecipe:
        """How the slices of its patients were read."""
        scored = next(system for system in systems_of([self]) if has_scores(self, system))
        return DataRecipe(**(self.settings(scored)["data"] | self.meta["scored_on"]))

    def rows(self, system: str) -> list[Row]:
        """Return the rows of one system, none where it was left out."""
        return [row for row in self.content["rows"] if row["system"] == system]

    def settings(self, system: str) -> dict[str, Any]:
        """What a system's scores depend on."""
        path = self.folder / "systems" / system / "settings.json"
        settings: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return settings


def pool_folds(recipe: PoolRecipe) -> Path:
    """Return the folder of results.json, results.md and pictures of all runs together.

    Raises:
        ValueError: fewer than two runs, or runs that do not belong together.
    """
    if len(recipe.folders) < 2:
        raise ValueError(
            f"pooling takes two folders or more, folders=[one,another], got {recipe.folders}."
        )
    runs = [FinishedBenchmark(Path(folder)) for folder in recipe.folders]
    refuse_mixture(runs)
    patients = {p.patient_id: p for p in find_patients(runs[0].meta["scored_on"]["root"])}
    tables = [pool_system(name, runs, patients, recipe.seed) for name in systems_of(runs)]
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


def takes_a_seed(name: str, runs: Sequence[FinishedBenchmark]) -> bool:
    """Return whether chance has a part in a system's scores, as far as its settings say."""
    scored = [run for run in runs if has_scores(run, name)]
    return not scored or "seed" in scored[0].settings(name)


def one_of_each_split(name: str, runs: Sequence[FinishedBenchmark]) -> list[FinishedBenchmark]:
    """Return a run of each split: one that has scores of a system, where there is one."""
    chosen: dict[str, FinishedBenchmark] = {}
    for run in sorted(runs, key=lambda run: not has_scores(run, name)):
        chosen.setdefault(run.meta["split_sha256"], run)
    return list(chosen.values())


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


# --- Which runs belong together -------------------------------------------------------------------
def refuse_mixture(runs: Sequence[FinishedBenchmark]) -> None:
    """Raise ValueError unless these are folds and seeds of one benchmark of one data set."""
    first = runs[0]
    for run in runs[1:]:
        if run.meta["data_sha256"] != first.meta["data_sha256"]:
            raise ValueError(
                f"{run.folder} and {first.folder} read other scans; pool folds of one data set."
            )
        if run.crossed != first.crossed:
            crossed, folds = (run, first) if run.crossed else (first, run)
            raise ValueError(
                f"{crossed.folder} scores another data set than it learned from, {folds.folder} "
                "does not; pool folds of one data set, or runs on one other."
            )
        for system in systems_of([run]):
            if has_scores(first, system) and has_scores(run, system):
                refuse_other_settings(first, run, system)
    tested: dict[tuple[int, str, str], Path] = {}
    for run in runs:
        fold = run.meta["split_sha256"] if run.crossed else ""  # all folds score everybody then
        for patient in run.patients:
            if other := tested.get((run.seed, fold, patient)):
                raise ValueError(
                    f"{patient} is a test patient of {other} and of {run.folder} at the seed "
                    f"{run.seed}; pool different folds, or the same ones at different seeds."
                )
            tested[run.seed, fold, patient] = run.folder


def repetitions(runs: Sequence[FinishedBenchmark]) -> list[int]:
    """Return a number for each run; runs of one number add patients, numbers are averaged.

    A seed's folds share the seed. On another data set every run scores everybody again.
    """
    return [number if run.crossed else run.seed for number, run in enumerate(runs)]


def systems_of(runs: Sequence[FinishedBenchmark]) -> list[str]:
    """Return the names of all systems, in the order of the tables."""
    return list(dict.fromkeys(row["system"] for run in runs for row in run.content["rows"]))


def has_scores(run: FinishedBenchmark, system: str) -> bool:
    """Return whether a run has scores of a system."""
    return any("failure" not in row for row in run.rows(system))


def refuse_other_settings(first: FinishedBenchmark, run: FinishedBenchmark, system: str) -> None:
    """Raise ValueError where two runs made a system in different ways."""
    ours, theirs = (comparable(either.settings(system)) for either in (first, run))
    for key in sorted(ours.keys() | theirs.keys()):
        if (here := ours.get(key)) != (there := theirs.get(key)):
            raise ValueError(
                f"{first.folder} and {run.folder} made {system} in different ways: {key} is "
                f"{here} and {there}; pool runs of the same settings."
            )


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all folds and seeds of a system, by dotted name."""
    facts: dict[str, Any] = {key: settings[key] for key in BENCHMARK_FACTS if key in settings}
    facts["data"] = settings["data"]
    others = {"seed", "data", "split_sha256", "cross", "cross_patients", *BENCHMARK_FACTS}
    models = [key for key in settings if key not in others]
    for number, folder in enumerate(models):
        facts[f"model {number + 1}"] = facts_of_model(Path(folder), json.loads(settings[folder]))
    flat = flatten_facts(facts)
    return {key: value for key, value in flat.items() if not f".{key}".endswith(FREE)}


def facts_of_model(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model was made: its recipe, its fields, and those of its pseudo-masks."""
    masks = summary.get("pseudo_masks") or {}
    facts: dict[str, Any] = {key: summary.get(key) for key in ("stage", "modality")}
    facts["masks"] = {key: masks.get(key) for key in MASK_FACTS}
    facts["masks"]["sharpened"] = bool(masks.get("appearance"))
    if (folder / "recipe.yaml").is_file():
        facts["recipe"] = OmegaConf.to_container(OmegaConf.load(folder / "recipe.yaml"))
    if (folder / "config.json").is_file():
        fields = json.loads((folder / "config.json").read_text("utf-8"))
        facts["config"] = {k: v for k, v in fields.items() if k not in FREE_FIELDS}
    return facts


def flatten_facts(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested facts by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        flat |= flatten_facts(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
