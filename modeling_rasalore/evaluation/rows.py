"""Score one system's anomaly maps against true masks: the rows of `results.json`.

Two views side by side. `paper`: slices with more than 200 mm2 of lesion, scored one by one, then
averaged over slices. `volume`: whole patients, healthy and barely affected slices included. Three
thresholds, never mixed: 0.5, a label-free one, and an oracle that no claim may rest on. Runs of
several folds and seeds give one table: folds add patients, seeds are averaged patient by patient.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from .intervals import Estimate, paired_bootstrap
from .leaks import check_disjoint
from .metrics import best_threshold
from .patient_scores import (
    HEALTHY_BRAIN,
    VIEWS,
    PatientScores,
    Tally,
    Values,
    mean_over_seeds,
    mean_values,
    outcome_of,
    tally_patient,
)
from .row_scores import Row, ranking_scores, threshold_scores
from .scan_thresholds import Promise

THRESHOLD_SOURCES = {
    "0.5": "fixed",
    "label_free": "of healthy validation slices, those of each patient being one scan",
    "oracle": "best on the true masks of the test set; never a result",
}
POOLED_SOURCES = {
    "0.5": "fixed",
    "label_free": "of each run, for its own patients: of the healthy slices of patients that other "
    "folds test, which count as one scan per patient",
    "oracle": "one for all slices of all runs, best on their true masks; never a result",
}
# Keys of a row that name patients: what is published leaves them out.
BY_PATIENT = ("dice_by_patient", "average_precision_by_patient", "healthy_thresholds")


@dataclass(frozen=True)
class Thresholds:
    """A system's label-free threshold, and what it was asked for.

    Without one (no healthy validation slices) the results have no `label_free` column.

    Attributes:
        label_free: the threshold.
        false_alarm_rate: the most of a scan's healthy brain that may be marked.
        promise: in how many scans more may be marked; None where nothing is promised.
    """

    label_free: float | None = None
    false_alarm_rate: float | None = None
    promise: Promise | None = None


@dataclass(frozen=True)
class ScoredRun:
    """One system's maps of one test set, such as a fold's, and the thresholds that belong to them.

    Attributes:
        patients: as for `evaluate_system`.
        seed: of what was trained; test sets of one seed have no patient in common.
    """

    patients: Iterable[PatientScores]
    thresholds: Thresholds
    seed: int = 0


def evaluate_system(
    system: str,
    patients: Iterable[PatientScores],
    thresholds: Thresholds,
    modality: str,
    seconds: float | None = None,
    peak_mib: float | None = None,
    weights: str = "trained",
    seed: int = 0,
) -> list[Row]:
    """Rows of `results.json` for one system, one per view and threshold, of plain JSON values.

    None stands for what cannot be had: an interval of fewer than two patients, a mean of nothing,
    a false alarm in the paper view, the ranking of a map that is already binary.

    Args:
        patients: the test set, one patient in memory at a time. It is read twice, the second time
            at the oracle threshold, and must give the same maps again: a generator is held whole,
            an object whose `__iter__` reads stored maps is not.
        seconds, peak_mib: what the system cost, as the caller measured it.
        weights: "trained", "stand-in", "contaminated" or a repo id.
        seed: of the bootstrap over patients.
    """
    cost = {"seconds": seconds, "peak_mib": peak_mib, "weights": weights}
    rows = evaluate_runs(system, [ScoredRun(patients, thresholds)], modality, seed)
    return [row | cost for row in rows]


def evaluate_runs(
    system: str, runs: Sequence[ScoredRun], modality: str, seed: int = 0
) -> list[Row]:
    """Rows of one system over the patients of all runs, as of `evaluate_system` without the cost.

    Every value of a patient is first averaged over the seeds; rankings and calibration of pooled
    voxels are those within each seed, averaged. Each run's label-free threshold is applied to its
    own patients, and its value is None where runs differ; a run without one takes the column away.
    The oracle is one threshold for all slices of all runs.

    Raises:
        ValueError: no patients, a patient twice at one seed, or not at every seed.
    """
    runs = [hold_generator(run) for run in runs]
    thresholds = thresholds_of(runs)
    tallies = [
        (run.seed, count_scan_above(tally_patient(patient, values), run.thresholds))
        for run, values in zip(runs, thresholds, strict=True)
        for patient in run.patients
    ]
    merged = [mean_over_seeds(seeds) for seeds in group_by_patient(tallies)]
    shared = {name: value for name, value in thresholds[0].items() if is_shared(thresholds, name)}
    oracles = {view: oracle_threshold(merged, view, shared) for view in VIEWS}
    merged = with_oracle_outcomes(merged, runs, oracles)
    rankings = ranking_scores(merged, seed)
    rate, promise = runs[0].thresholds.false_alarm_rate, weakest_promise(runs)
    sources = THRESHOLD_SOURCES if len(runs) == 1 else POOLED_SOURCES
    return [
        {
            "system": system,
            "modality": modality,
            "view": view,
            "threshold": name,
            "threshold_value": (shared | {"oracle": oracles[view]}).get(name),
            "threshold_source": sources[name],
            "false_alarm_rate": rate if name == "label_free" else None,
            "promise": promise if name == "label_free" else None,
            **threshold_scores(merged, view, name, seed),
            **rankings[view],
        }
        for view in VIEWS
        for name in (*thresholds[0], "oracle")
    ]


def hold_generator(run: ScoredRun) -> ScoredRun:
    """The run with its patients in a list where they could be read only once."""
    if isinstance(run.patients, Iterator):
        return replace(run, patients=list(run.patients))
    return run


def thresholds_of(runs: Sequence[ScoredRun]) -> list[dict[str, float]]:
    """Each run's thresholds by name; the same names for all."""
    label_free = [run.thresholds.label_free for run in runs]
    return [
        {"0.5": 0.5} if value is None or None in label_free else {"0.5": 0.5, "label_free": value}
        for value in label_free
    ]


def weakest_promise(runs: Sequence[ScoredRun]) -> Row | None:
    """What the label-free thresholds of all runs promise, as a row states it; None for nothing."""
    promises = [run.thresholds.promise for run in runs]
    rate = runs[0].thresholds.false_alarm_rate
    known = [promise for promise in promises if promise is not None]
    if rate is None or len(known) < len(promises):
        return None
    weakest = max(known, key=lambda promise: promise.share)
    return {
        "rank": weakest.rank,
        "scans": weakest.scans,
        "in_words": weakest.in_words(rate),
    }


def count_scan_above(tally: Tally, thresholds: Thresholds) -> Tally:
    """The tally with whether more of the patient's healthy brain is marked than was asked for."""
    key, rate = ("volume", "label_free"), thresholds.false_alarm_rate
    if key not in tally.outcomes or rate is None:
        return tally
    marked, brain = tally.outcomes[key][HEALTHY_BRAIN]
    above = np.array([marked > rate * brain] if brain else [], float)
    outcome = tally.outcomes[key] | {"scans_above_rate": above}
    return replace(tally, outcomes=tally.outcomes | {key: outcome})


def is_shared(thresholds: Sequence[Mapping[str, float]], name: str) -> bool:
    """Whether the threshold of that name is one value for all runs."""
    return len({values[name] for values in thresholds}) == 1


def group_by_patient(tallies: Sequence[tuple[int, Tally]]) -> list[list[Tally]]:
    """Tallies of each patient, one per seed and in the order of seeds.

    Args:
        tallies: each with its seed.

    Raises:
        ValueError: no tallies, a patient twice at one seed, or not at every seed.
    """
    if not tallies:
        raise ValueError("patients is empty; give the scores of at least one test patient.")
    by_patient: dict[str, list[Tally]] = defaultdict(list)
    seeds = sorted({seed for seed, _ in tallies})
    for seed in seeds:
        of_seed = [tally for its_seed, tally in tallies if its_seed == seed]
        check_disjoint({"test": [tally.patient_id for tally in of_seed]})
        for tally in of_seed:
            by_patient[tally.patient_id].append(tally)
    for patient_id, of_patient in by_patient.items():
        if len(of_patient) < len(seeds):
            raise ValueError(
                f"every patient must be scored at each of the seeds {seeds}, but {patient_id} is "
                f"at {len(of_patient)} of them; add the runs that are missing."
            )
    return list(by_patient.values())


def oracle_threshold(tallies: Sequence[Tally], view: str, tried: Mapping[str, float]) -> float:
    """Threshold of the highest mean Dice: of the curve's grid, or tried, which may lie between."""
    dices = {name: [tally.outcomes[view, name]["dice"] for tally in tallies] for name in tried}
    count = max(sum(values.size for values in dices["0.5"]), 1)
    threshold, best = best_threshold(np.sum([t.curves[view] for t in tallies], axis=0) / count)
    means = [(np.concatenate(dices[name]).sum() / count, value) for name, value in tried.items()]
    return max([(best, threshold), *means])[1]


def with_oracle_outcomes(
    tallies: Sequence[Tally], runs: Sequence[ScoredRun], oracles: Mapping[str, float]
) -> list[Tally]:
    """The tallies with what all runs' patients are at the oracle thresholds, which are by view."""
    outcomes: dict[tuple[str, str], list[Values]] = defaultdict(list)
    for run in runs:
        for patient in run.patients:
            for view, threshold in oracles.items():
                outcomes[patient.patient_id, view].append(outcome_of(patient, view, threshold))
    return [
        replace(
            tally,
            outcomes=tally.outcomes
            | {(v, "oracle"): mean_values(outcomes[tally.patient_id, v]) for v in oracles},
        )
        for tally in tallies
    ]


def systems_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all systems, in the order of their rows."""
    return list(dict.fromkeys(row["system"] for row in rows))


def compare_rows(row: Row, reference: Row, seed: int = 0) -> Row:
    """Paired differences, `row` minus `reference`, each with its 95 % interval over patients.

    Of Dice, and in the paper view of average precision, None where one row has none, as where no
    slice is in the view.

    Raises ValueError unless both rows show one view of the same patients and slices.
    """
    counts = [{name: n for name, (_, n) in r["dice_by_patient"].items()} for r in (row, reference)]
    if row["view"] != reference["view"] or counts[0] != counts[1]:
        raise ValueError(
            f"rows of {row['system']} and {reference['system']} must show one view of the same "
            "patients and slices; evaluate both systems on one test set."
        )
    compared = {key: row[key] for key in ("system", "modality", "view", "threshold", "patients")}
    compared["reference"] = reference["system"]
    for measure in ("dice", "average_precision"):
        difference = _paired_difference(row, reference, measure, seed)
        compared |= difference.columns(f"{measure}_difference")
    return compared


def _paired_difference(row: Row, reference: Row, measure: str, seed: int) -> Estimate:
    scored, against = (r.get(f"{measure}_by_patient") for r in (row, reference))
    if not scored or not against:
        return Estimate(None, None, None)
    values = [np.full(n, mean) for mean, n in scored.values()]
    others = [np.full(n, against[name][0]) for name, (_, n) in scored.items()]
    return paired_bootstrap(values, others, seed)


def write_results(path: str | Path, meta: Mapping[str, Any], rows: list[Row]) -> Path:
    """Write the JSON `{"meta": ..., "rows": ...}`, whole or not at all, NaN as null; its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, _plain({"meta": meta, "rows": rows}))


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy scalars become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
