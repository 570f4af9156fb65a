"""Reads finished benchmarks, and refuses runs that do not belong in one table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..evaluation.rows import Row, systems_in
from ..recipes import DataRecipe

# Facts of a system's settings.json that are of the benchmark; all others are of trained models.
BENCHMARK_FACTS = (
    *("flips", "size", "view", "settings", "weights", "training_slices"),
    *("false_alarm_rate", "scans_above"),
)
# And those that say who is scored, which differ by fold.
SCORED_FACTS = ("split_sha256", "truth_sha256", "cross", "cross_patients", "cross_truth_sha256")
# What folds and seeds may differ in: who is in them, where files lie, what chance decides.
FREE = (
    *(".out", ".model", ".pseudo_masks", ".initial_weights", ".data.root", ".loop.seed"),
    *(".split.seed", ".split.fold", ".split.file"),
    *(".data.shuffle_buffer", ".data.lanes", ".data.same_person"),
)
# Of config.json: every fold chooses a heatmap and fits a temperature of its own.
FREE_FIELDS = ("heatmap", "temperature", "transformers_version")
MASK_FACTS = (  # of pseudo-masks
    *("source", "modality", "threshold", "filter_reach", "segmenter"),
    *("uncertain_above", "uncertain_up_to"),
)


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
    return systems_in(row for run in runs for row in run.content["rows"])


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
    others = {"seed", "data", *SCORED_FACTS, *BENCHMARK_FACTS}
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
