"""Scores one system's anomaly maps against true masks: the rows of `results.json`.

Two views side by side. `paper`: slices with more than 200 mm2 of lesion, scored one by one, then
averaged over slices. `volume`: whole patients, healthy and barely affected slices included. Three
thresholds, never mixed: 0.5, a label-free one, and an oracle that no claim may rest on. Runs of
several folds and seeds give one table: folds add patients, seeds are averaged patient by patient.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from .leaks import check_disjoint
from .metrics import (
    BINS,
    best_threshold,
    bootstrap_interval,
    brier,
    expected_calibration_error,
    paired_bootstrap,
    pooled_auroc,
    pooled_average_precision,
    pooled_interval,
)
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

THRESHOLD_SOURCES = {
    "0.5": "fixed",
    "label_free": "quantile of scores inside the brain on healthy validation slices",
    "oracle": "best on the true masks of the test set; never a result",
}
POOLED_SOURCES = {
    "0.5": "fixed",
    "label_free": f"of each run, for its own patients: {THRESHOLD_SOURCES['label_free']}",
    "oracle": "one for all slices of all runs, best on their true masks; never a result",
}
# Keys of a row that name patients: what is published leaves them out.
BY_PATIENT = ("dice_by_patient", "average_precision_by_patient")
Row = dict[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """A system's label-free threshold, and the share of false-alarm voxels it was asked for.

    Without one (no healthy validation slices) the results have no `label_free` column.
    """

    label_free: float | None = None
    false_alarm_rate: float | None = None


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
            at the oracle threshold, and must give the same maps again: a generator is kept whole,
            an object whose `__iter__` reads stored maps is not.
        seconds, peak_mib: what the system cost, as the caller measured it.
        weights: "trained", "stand-in" or a repo id.
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
    runs = [replace(r, patients=list(r.patients)) if _once(r.patients) else r for r in runs]
    columns = _columns(runs)
    tallies = [
        (run.seed, tally_patient(patient, thresholds))
        for run, thresholds in zip(runs, columns, strict=True)
        for patient in run.patients
    ]
    merged = [mean_over_seeds(found) for found in _by_patient(tallies)]
    shared = {name: value for name, value in columns[0].items() if _same(columns, name)}
    oracles = {view: _oracle(merged, view, shared) for view in VIEWS}
    _add_oracles(merged, runs, oracles)
    threshold_free = _threshold_free(merged, seed)
    rate, sources = runs[0].thresholds.false_alarm_rate, THRESHOLD_SOURCES
    return [
        {"system": system, "modality": modality, "view": view, "threshold": column}
        | {"threshold_value": (shared | {"oracle": oracles[view]}).get(column)}
        | {"threshold_source": (sources if len(runs) == 1 else POOLED_SOURCES)[column]}
        | {"false_alarm_rate": rate if column == "label_free" else None}
        | _scores(merged, view, column, seed)
        | threshold_free[view]
        for view in VIEWS
        for column in (*columns[0], "oracle")
    ]


def compare_rows(row: Row, reference: Row, seed: int = 0) -> Row:
    """Paired differences, `row` minus `reference`, each with its 95 % interval over patients.

    Of Dice, and in the paper view of average precision, None where one row has none.

    Raises ValueError unless both rows show one view of the same patients and slices.
    """
    counts = [{name: n for name, (_, n) in r["dice_by_patient"].items()} for r in (row, reference)]
    if row["view"] != reference["view"] or counts[0] != counts[1] or not counts[0]:
        raise ValueError(
            f"rows of {row['system']} and {reference['system']} must show one view of the same "
            "patients and slices; evaluate both systems on one test set."
        )
    kept = {key: row[key] for key in ("system", "modality", "view", "threshold", "patients")}
    kept["reference"] = reference["system"]
    for measure in ("dice", "average_precision"):
        kept |= _paired_difference(row, reference, measure, seed)
    return kept


def _paired_difference(row: Row, reference: Row, measure: str, seed: int) -> Row:
    scored, against = (r.get(f"{measure}_by_patient") for r in (row, reference))
    found: tuple[float | None, ...] = (None, None, None)
    if scored and against:
        values = [np.full(n, mean) for mean, n in scored.values()]
        others = [np.full(n, against[name][0]) for name, (_, n) in scored.items()]
        found = paired_bootstrap(values, others, seed)
    name = f"{measure}_difference"
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def write_results(path: str | Path, meta: Mapping[str, Any], rows: list[Row]) -> Path:
    """Path of the JSON `{"meta": ..., "rows": ...}` it writes, whole or not at all; NaN is null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, _plain({"meta": meta, "rows": rows}))


def _once(patients: Iterable[PatientScores]) -> bool:
    """Whether they can be read only once, as those of a generator."""
    return isinstance(patients, Iterator)


def _columns(runs: Sequence[ScoredRun]) -> list[dict[str, float]]:
    """Each run's thresholds by name; the same names for all."""
    free = [run.thresholds.label_free for run in runs]
    found = [{"0.5": 0.5} if value is None else {"0.5": 0.5, "label_free": value} for value in free]
    return [{"0.5": 0.5} for _ in runs] if None in free else found


def _same(columns: Sequence[Mapping[str, float]], name: str) -> bool:
    return len({thresholds[name] for thresholds in columns}) == 1


def _by_patient(tallies: Sequence[tuple[int, Tally]]) -> list[list[Tally]]:
    """Tallies of each patient, one per seed and in the order of seeds, for tallies with a seed."""
    if not tallies:
        raise ValueError("patients is empty; give the scores of at least one test patient.")
    found: dict[str, list[Tally]] = defaultdict(list)
    seeds = sorted({seed for seed, _ in tallies})
    for seed in seeds:
        same = [tally for its_seed, tally in tallies if its_seed == seed]
        check_disjoint({"test": [tally.patient_id for tally in same]})
        for tally in same:
            found[tally.patient_id].append(tally)
    for patient_id, of_patient in found.items():
        if len(of_patient) < len(seeds):
            raise ValueError(
                f"every patient must be scored at each of the seeds {seeds}, but {patient_id} is "
                f"at {len(of_patient)} of them; add the runs that are missing."
            )
    return list(found.values())


def _add_oracles(
    merged: Sequence[Tally], runs: Sequence[ScoredRun], oracles: Mapping[str, float]
) -> None:
    """Add what all runs' patients are at the oracle thresholds, by view, to their tallies."""
    found: dict[tuple[str, str], list[Values]] = defaultdict(list)
    for run in runs:
        for patient in run.patients:
            for view, threshold in oracles.items():
                found[patient.patient_id, view].append(outcome_of(patient, view, threshold))
    for tally in merged:
        for view in oracles:
            tally.outcomes[view, "oracle"] = mean_values(found[tally.patient_id, view])


def _oracle(tallies: list[Tally], view: str, tried: Mapping[str, float]) -> float:
    """Threshold of the highest mean Dice: of the curve's grid, or tried, which may lie between."""
    dices = {name: [tally.outcomes[view, name]["dice"] for tally in tallies] for name in tried}
    count = max(sum(values.size for values in dices["0.5"]), 1)
    threshold, best = best_threshold(np.sum([t.curves[view] for t in tallies], axis=0) / count)
    means = [(np.concatenate(dices[name]).sum() / count, value) for name, value in tried.items()]
    return max([(best, threshold), *means])[1]


def _scores(tallies: list[Tally], view: str, threshold: str, seed: int) -> Row:
    outcomes = [tally.outcomes[view, threshold] for tally in tallies]
    dices = {tally.patient_id: o["dice"] for tally, o in zip(tallies, outcomes, strict=True)}
    row: Row = {
        "patients": sum(tally.slices[view] > 0 for tally in tallies),
        "slices": sum(tally.slices[view] for tally in tallies),
        **_means([{n: v for n, v in o.items() if n != HEALTHY_BRAIN} for o in outcomes], seed),
    }
    if view == "paper":
        row |= _by_lesion_size(tallies, list(dices.values()), seed)
        row["false_alarms_per_healthy_slice"] = None
    else:
        row["healthy_slices"] = sum(o["ml_per_healthy_slice"].size for o in outcomes)
        row["healthy_scans"] = sum(o["ml_per_healthy_scan"].size for o in outcomes)
        # What a label-free threshold was asked for, observed.
        counts = np.stack([o[HEALTHY_BRAIN] for o in outcomes])[:, None]  # (patients, 1, 2)
        row |= _pooled("healthy_brain_marked", counts, _share, seed)
    row["dice_by_patient"] = _patient_means(dices)
    return row


def _patient_means(values: Mapping[str, np.ndarray]) -> Row:
    """Mean and number of each patient's values, of those who have any."""
    return {name: [float(found.mean()), found.size] for name, found in values.items() if found.size}


def _by_lesion_size(tallies: list[Tally], dices: list[np.ndarray], seed: int) -> Row:
    """Mean Dice by quartile of lesion area in a slice, smallest lesions first."""
    areas = np.concatenate([tally.areas for tally in tallies])
    edges = np.quantile(areas, [0.25, 0.5, 0.75]) if areas.size else np.zeros(3)
    patients = []
    for tally, values in zip(tallies, dices, strict=True):
        quartile = np.searchsorted(edges, tally.areas)
        patients.append({f"dice_quartile_{q + 1}": values[quartile == q] for q in range(4)})
    shown_edges = edges.tolist() if areas.size else None
    return {"lesion_area_quartiles_mm2": shown_edges} | _means(patients, seed)


def _threshold_free(tallies: list[Tally], seed: int) -> dict[str, Row]:
    """Rankings by view, and the calibration of the pooled voxels."""
    paper = _means([tally.rankings for tally in tallies], seed)
    paper["average_precision_by_patient"] = _patient_means(
        {tally.patient_id: tally.rankings["average_precision"] for tally in tallies}
    )
    histograms = np.stack([tally.histograms for tally in tallies])
    occupied = np.flatnonzero(histograms.any(axis=(0, 1, 2, 3)))
    histograms = histograms[..., occupied]  # empty bins would only cost time
    volume: Row = {}
    for region, ending in enumerate(("", "_brain")):
        counts = histograms[:, :, region]
        volume |= _pooled(f"average_precision{ending}", counts, pooled_average_precision, seed)
        volume |= _pooled(f"auroc{ending}", counts, pooled_auroc, seed)
    if occupied.tolist() == [0, BINS - 1]:  # scores 0 and 1: masks have no average precision
        paper, volume = dict.fromkeys(paper), dict.fromkeys(volume)
    tables = np.stack([tally.calibration for tally in tallies])
    volume |= _pooled("expected_calibration_error", tables, expected_calibration_error, seed)
    volume |= _pooled("brier", tables, brier, seed)
    return {"paper": paper, "volume": volume}


def _means(patients: list[Values], seed: int) -> Row:
    """Mean over all values of each score, with its interval over patients."""
    row: Row = {}
    for name in patients[0]:
        values = [patient[name] for patient in patients]
        pooled = np.concatenate(values)
        pooled = pooled[~np.isnan(pooled)]
        low, high = bootstrap_interval(values, seed)
        mean = float(pooled.mean()) if pooled.size else None
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return row


def _pooled(
    name: str, tables: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> Row:
    """A statistic of tables (patients, seeds, ...), summed over patients; its mean over seeds."""

    def over_seeds(summed: np.ndarray) -> np.ndarray:
        return np.asarray(statistic(summed).mean(-1))

    low, high = pooled_interval(tables, over_seeds, seed)
    return {name: _plain(over_seeds(tables.sum(0))), f"{name}_low": low, f"{name}_high": high}


def _share(counts: np.ndarray) -> np.ndarray:
    """First of two counts (..., 2) as a share of the second; NaN of nothing."""
    with np.errstate(invalid="ignore"):
        return np.asarray(counts[..., 0] / counts[..., 1])


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy scalars become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
