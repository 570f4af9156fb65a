"""Finished benchmarks of several folds and seeds: read back, and refused where they do not fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from modeling_rasalore.data.patient import Patient
from modeling_rasalore.evaluation.rows import Row, ScoredRun, Thresholds, evaluate_runs
from modeling_rasalore.recipes import DataRecipe

from .scoring import KeptPatients
from .tables import failure_rows

# Facts of a system's settings.json that are of the benchmark; all others are of trained models.
BENCHMARK_FACTS = ("flips", "size", "settings", "weights", "training_slices", "false_alarm_rate")
# What folds and seeds may differ in: who is in them, where files lie, what chance decides.
FREE = (
    *(".out", ".model", ".pseudo_masks", ".initial_weights", ".data.root", ".loop.seed"),
    *(".split.seed", ".split.fold", ".data.shuffle_buffer", ".data.lanes"),
)
# Of config.json: every fold chooses a heatmap and fits a temperature of its own.
FREE_FIELDS = ("heatmap", "temperature", "transformers_version")
MASK_FACTS = (  # of pseudo-masks
    *("source", "modality", "threshold", "filter_reach", "segmenter"),
    *("uncertain_above", "uncertain_up_to"),
)


@dataclass(frozen=True)
class Finished:
    """A folder of train/run_benchmark.py, and what its results.json says.

    Raises:
        ValueError: it is not finished, or nothing in it has scores.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "results.json").is_file():
            raise ValueError(f"{self.folder} holds no results.json of train/run_benchmark.py.")
        if missing := {"seed", "data_sha256"} - self.meta.keys():
            raise ValueError(
                f"{self.folder}/results.json does not say {' and '.join(sorted(missing))}; start "
                "its benchmark again, which keeps what is finished."
            )
        if not any(kept(self, system) for system in systems_of([self])):
            raise ValueError(f"no system of {self.folder} has scores; its results.md says why.")

    @cached_property
    def content(self) -> dict[str, Any]:
        """All of results.json."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text("utf-8"))
        return found

    @property
    def meta(self) -> dict[str, Any]:
        """What results.json says of the whole run."""
        found: dict[str, Any] = self.content["meta"]
        return found

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
        scored = next(system for system in systems_of([self]) if kept(self, system))
        return DataRecipe(**(self.settings(scored)["data"] | self.meta["scored_on"]))

    def rows(self, system: str) -> list[Row]:
        """Rows of one system, none where it was not asked for."""
        return [row for row in self.content["rows"] if row["system"] == system]

    def settings(self, system: str) -> dict[str, Any]:
        """What a system's scores depend on."""
        path = self.folder / "systems" / system / "settings.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found


def refuse_mixture(runs: Sequence[Finished]) -> None:
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
            if kept(first, system) and kept(run, system):
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


def repetitions(runs: Sequence[Finished]) -> list[int]:
    """A number for each run; runs of one number add patients, numbers are averaged.

    A seed's folds share the seed. On another data set every run scores everybody again.
    """
    return [number if run.crossed else run.seed for number, run in enumerate(runs)]


def systems_of(runs: Sequence[Finished]) -> list[str]:
    """Names of all systems, in the order of the tables."""
    return list(dict.fromkeys(row["system"] for run in runs for row in run.content["rows"]))


def kept(run: Finished, system: str) -> bool:
    """Whether a run has scores of a system."""
    return any("failure" not in row for row in run.rows(system))


def refuse_other_settings(first: Finished, run: Finished, system: str) -> None:
    """Raise ValueError where two runs made a system in different ways."""
    ours, theirs = (comparable(one.settings(system)) for one in (first, run))
    for key in sorted(ours.keys() | theirs.keys()):
        if (here := ours.get(key)) != (there := theirs.get(key)):
            raise ValueError(
                f"{first.folder} and {run.folder} made {system} in different ways: {key} is "
                f"{here} and {there}; pool runs of the same settings."
            )


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same in all folds and seeds of a system, by dotted name."""
    facts: dict[str, Any] = {key: settings[key] for key in BENCHMARK_FACTS if key in settings}
    facts["data"] = settings["data"]
    others = {"seed", "data", "split_sha256", "cross", "cross_patients", *BENCHMARK_FACTS}
    models = [key for key in settings if key not in others]
    for number, folder in enumerate(models):
        facts[f"model {number + 1}"] = facts_of_model(Path(folder), json.loads(settings[folder]))
    flat = flatten_facts(facts)
    return {key: value for key, value in flat.items() if not f".{key}".endswith(FREE)}


def facts_of_model(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """How a trained model was made: its recipe, its fields, and those of its pseudo-masks."""
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
    """Nested facts by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        flat |= flatten_facts(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def pool_system(
    system: str, runs: Sequence[Finished], patients: Mapping[str, Patient], seed: int
) -> list[Row]:
    """Rows of one system over all runs, or rows that say which run has none.

    Args:
        patients: of the data set, by id.
        seed: of the bootstrap over patients.
    """
    for run in runs:
        if not kept(run, system):
            reasons = [row["failure"] for row in run.rows(system)]
            reason = f"{run.folder} has none: {(reasons or ['it was not asked for'])[0]}"
            return failure_rows(system, run.meta["modality"], reason)
    found = [run.rows(system) for run in runs]
    scored = [
        ScoredRun(
            KeptPatients(
                [patients[patient] for patient in run.patients],
                runs[0].data,
                system,
                run.folder / "systems" / system / "scores",
            ),
            label_free_of(rows),
            repetition,
        )
        for run, rows, repetition in zip(runs, found, repetitions(runs), strict=True)
    ]
    rows = evaluate_runs(system, scored, found[0][0]["modality"], seed)
    return [row | cost_of([rows[0] for rows in found]) for row in rows]


def label_free_of(rows: Sequence[Row]) -> Thresholds:
    """The label-free threshold that a system's rows state."""
    for row in rows:
        if row["threshold"] == "label_free":
            return Thresholds(row["threshold_value"], row["false_alarm_rate"])
    return Thresholds()


def cost_of(rows: Sequence[Row]) -> Row:
    """Mean times and highest peaks of a system's rows, one of each run."""
    cost: Row = {}
    for name in ("seconds", "peak_mib", "scoring_seconds", "scoring_peak_mib"):
        values = [row[name] for row in rows if row.get(name) is not None]
        highest = max(values, default=None)
        mean = sum(values) / len(values) if values else None
        cost[name] = highest if name.endswith("mib") else mean
    stand_in = [row["weights"] for row in rows if row["weights"] == "stand-in"]
    return cost | {"weights": (stand_in or [rows[0]["weights"]])[0]}
