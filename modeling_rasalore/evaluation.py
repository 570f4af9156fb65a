"""Scores one system's anomaly maps against true masks: the rows of `results.json`.

Two views side by side. `paper`: slices with more than 200 mm2 of lesion, scored one by one, then
averaged over slices. `volume`: whole patients, healthy and barely affected slices included. Three
thresholds, never mixed: 0.5, a label-free one, and an oracle that no claim may rest on.
"""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from .files import write_json
from .metrics import (
    BINS,
    auroc,
    average_precision,
    best_threshold,
    bootstrap_interval,
    brier,
    calibration_table,
    dice,
    dice_curve,
    expected_calibration_error,
    lesion_scores,
    paired_bootstrap,
    pooled_auroc,
    pooled_average_precision,
    pooled_interval,
    score_histograms,
)

SMALLEST_PAPER_LESION = 200.0  # mm2 in a slice; the paper counts pixels of 1 mm2
THRESHOLD_SOURCES = {
    "0.5": "fixed",
    "label_free": "quantile of scores inside the brain on healthy validation slices",
    "oracle": "best on the true masks of the test set; never a result",
}
VIEWS = ("paper", "volume")
Row = dict[str, Any]
Values = dict[str, np.ndarray]  # by name of a score: its values for one patient


@dataclass(frozen=True)
class Thresholds:
    """A system's label-free threshold, and the share of false-alarm voxels it was asked for.

    Without one (no healthy validation slices) the results have no `label_free` column.
    """

    label_free: float | None = None
    false_alarm_rate: float | None = None


@dataclass(frozen=True, eq=False)
class PatientScores:
    """One system's map of one patient, with the truth on the same native grid.

    Attributes:
        scores: (S, H, W) float32 in [0, 1], continuous.
        truth: (S, H, W) bool, never resized: an interpolated mask is not boolean and is refused.
        brain: (S, H, W) bool.
        spacing: mm between slices, rows and columns.

    Raises TypeError for other data types, ValueError for other shapes or scores.
    """

    scores: np.ndarray
    truth: np.ndarray
    brain: np.ndarray
    spacing: tuple[float, float, float]
    patient_id: str

    def __post_init__(self) -> None:
        for name, dtype in (("scores", np.float32), ("truth", np.bool_), ("brain", np.bool_)):
            array = getattr(self, name)
            if array.dtype != dtype:
                raise TypeError(
                    f"{name} must be {np.dtype(dtype)}, got {array.dtype} for {self.patient_id}; "
                    "compare label maps with 0, convert scores with astype."
                )
            if array.ndim != 3 or array.shape != self.truth.shape:
                raise ValueError(
                    f"{name} must have the truth's shape (S, H, W) = {self.truth.shape}, got "
                    f"{array.shape} for {self.patient_id}; bring it to the scan's own grid."
                )
        low, high = self.scores.min(initial=0), self.scores.max(initial=0)
        if not (low >= 0 and high <= 1):  # NaN ends here too
            raise ValueError(
                f"scores must lie in [0, 1], got {low} to {high} for {self.patient_id}; divide "
                "them by a constant chosen on training data and clip."
            )

    @cached_property
    def lesion_areas(self) -> np.ndarray:
        """Lesion area of each slice in mm2, (S,)."""
        areas = np.count_nonzero(self.truth, axis=(1, 2)) * (self.spacing[1] * self.spacing[2])
        return np.round(areas, 2)  # a float32 spacing makes 200 mm2 slightly more or less

    @cached_property
    def in_paper_view(self) -> np.ndarray:
        """Slices with more lesion than `SMALLEST_PAPER_LESION`, (S,) bool."""
        return self.lesion_areas > SMALLEST_PAPER_LESION

    @cached_property
    def healthy(self) -> np.ndarray:
        """Slices that show brain and no lesion, (S,) bool."""
        return np.any(self.brain, axis=(1, 2)) & ~np.any(self.truth, axis=(1, 2))


@dataclass(frozen=True, eq=False)
class _Tally:
    """What one patient adds to the test set; voxels are counted, not kept."""

    patient_id: str
    slices: dict[str, int]  # by view
    areas: np.ndarray  # mm2, slices of the paper view, (P,)
    curves: dict[str, np.ndarray]  # by view: Dice curves summed over slices or patients, (BINS,)
    histograms: np.ndarray  # all voxels, voxels inside the brain: (2, 2, BINS)
    calibration: np.ndarray  # inside the brain
    rankings: Values  # per slice of the paper view
    outcomes: dict[tuple[str, float], Values]  # by view and threshold


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
    if isinstance(patients, Iterator):
        patients = list(patients)
    columns = {"0.5": 0.5}
    if thresholds.label_free is not None:
        columns["label_free"] = thresholds.label_free
    tallies = [_tally(patient, columns.values()) for patient in patients]
    if not tallies:
        raise ValueError("patients is empty; give the scores of at least one test patient.")
    check_disjoint({"test": [tally.patient_id for tally in tallies]})
    oracles = {view: _oracle(tallies, view) for view in VIEWS}
    for tally, patient in zip(tallies, patients, strict=True):
        for view, threshold in oracles.items():
            tally.outcomes[view, threshold] = _outcome(patient, view, threshold)
    threshold_free = _threshold_free(tallies, seed)
    return [
        {"system": system, "modality": modality, "view": view, "threshold": column}
        | {"threshold_value": threshold, "threshold_source": THRESHOLD_SOURCES[column]}
        | {"false_alarm_rate": thresholds.false_alarm_rate if column == "label_free" else None}
        | _scores(tallies, view, threshold, seed)
        | threshold_free[view]
        | {"seconds": seconds, "peak_mib": peak_mib, "weights": weights}
        for view in VIEWS
        for column, threshold in (columns | {"oracle": oracles[view]}).items()
    ]


def compare_rows(row: Row, reference: Row, seed: int = 0) -> Row:
    """Paired difference of Dice, `row` minus `reference`, with its 95 % interval over patients.

    Raises ValueError unless both rows show one view of the same patients and slices.
    """
    scored, against = row["dice_by_patient"], reference["dice_by_patient"]
    counts = [{name: n for name, (_, n) in dices.items()} for dices in (scored, against)]
    if row["view"] != reference["view"] or counts[0] != counts[1] or not scored:
        raise ValueError(
            f"rows of {row['system']} and {reference['system']} must show one view of the same "
            "patients and slices; evaluate both systems on one test set."
        )
    values = [np.full(n, mean) for mean, n in scored.values()]
    others = [np.full(n, against[name][0]) for name, (_, n) in scored.items()]
    difference, low, high = paired_bootstrap(values, others, seed)
    kept = {key: row[key] for key in ("system", "modality", "view", "threshold", "patients")}
    interval = {"dice_difference_low": low, "dice_difference_high": high}
    return kept | {"reference": reference["system"], "dice_difference": difference} | interval


def check_disjoint(split: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError when a patient id is in two parts ("train", "test") or twice in one."""
    places = defaultdict(list)
    for part, patient_ids in split.items():
        for patient_id in patient_ids:
            places[patient_id].append(part)
    for patient_id, parts in sorted(places.items()):
        if len(parts) > 1:
            raise ValueError(
                f"a patient belongs to one split once, got {patient_id} in {' and '.join(parts)}; "
                "split again by patient."
            )


def image_fingerprint(slices: np.ndarray) -> str:
    """Hexadecimal hash of what a scan shows, slices (S, H, W): the same for copies of one image.

    Data type, a factor on the intensities and margins without signal (0 or below) change nothing.
    """
    shown = np.asarray(slices, np.float64).clip(min=0)
    sides = [np.flatnonzero(shown.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    shown = shown[np.ix_(*sides)]
    # Not rounded at one half: ratios of whole numbers lie on it, where a copy's last bit decides.
    levels = np.floor(shown / shown.max(initial=1e-30) * 255 + 0.382).astype(np.uint8)
    return hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest()


def duplicated_images(fingerprints: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Groups of "data set/patient" that show one image; a UserWarning goes with them.

    Fingerprints are given by data set, then by patient id, all of one modality.
    """
    holders = defaultdict(list)
    for source, patients in sorted(fingerprints.items()):
        for patient_id, fingerprint in sorted(patients.items()):
            holders[fingerprint].append(f"{source}/{patient_id}")
    groups = [group for group in holders.values() if len(group) > 1]
    if groups:
        warnings.warn(
            f"{len(groups)} image(s) occur more than once, the first as {', '.join(groups[0])}; "
            "keep the copies in one split.",
            stacklevel=2,
        )
    return groups


def write_results(path: str | Path, meta: Mapping[str, Any], rows: list[Row]) -> Path:
    """Path of the JSON `{"meta": ..., "rows": ...}` it writes, whole or not at all; NaN is null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, _plain({"meta": meta, "rows": rows}))


def _tally(patient: PatientScores, thresholds: Iterable[float]) -> _Tally:
    shown = patient.in_paper_view
    histograms = score_histograms(patient.scores, patient.truth)
    inside = patient.scores[patient.brain], patient.truth[patient.brain]
    maps = [(patient.scores[s], patient.truth[s], patient.brain[s]) for s in np.flatnonzero(shown)]
    in_brain = [average_precision(scores[brain], truth[brain]) for scores, truth, brain in maps]
    return _Tally(
        patient_id=patient.patient_id,
        slices={"paper": int(shown.sum()), "volume": len(shown)},
        areas=patient.lesion_areas[shown],
        curves={
            "paper": dice_curve(histograms[shown]).sum(0),
            "volume": dice_curve(histograms.sum(0)) * patient.truth.any(),
        },
        histograms=np.stack([histograms.sum(0), *score_histograms(*(x[None] for x in inside))]),
        calibration=calibration_table(*inside),
        rankings={
            "average_precision": np.array([average_precision(*pair) for *pair, _ in maps]),
            "average_precision_brain": np.array(in_brain),
            "auroc": np.array([auroc(*pair) for *pair, _ in maps]),
        },
        outcomes={(v, t): _outcome(patient, v, t) for t in thresholds for v in VIEWS},
    )


def _outcome(patient: PatientScores, view: str, threshold: float) -> Values:
    """Values of one patient at one threshold: per slice (P,), per healthy slice (K,) or one."""
    if view == "paper":
        shown = np.flatnonzero(patient.in_paper_view)
        dices = [dice(patient.scores[s] > threshold, patient.truth[s]) for s in shown]
        return {"dice": np.array(dices)}
    prediction = patient.scores > threshold
    lesions = lesion_scores(prediction, patient.truth, patient.spacing)
    false = prediction[patient.healthy]
    false_ml = np.count_nonzero(false, axis=(1, 2)) * np.prod(patient.spacing) / 1000
    # A healthy scan has no Dice (1 if nothing is found, else 0: with enough of them, finding
    # nothing anywhere would be the oracle); what is found in it counts as false alarms instead.
    volume_dice = [dice(prediction, patient.truth)] if patient.truth.any() else []
    return {
        "dice": np.array(volume_dice),
        "lesion_dice": np.array([lesions.dice]),
        "lesion_hd95": np.array([lesions.hd95]),
        "lesions_per_patient": np.array([lesions.lesions]),
        "missed_lesions_per_patient": np.array([lesions.missed]),
        "invented_lesions_per_patient": np.array([lesions.invented]),
        "false_alarms_per_healthy_slice": np.array(
            [ndimage.label(image, np.ones((3, 3)))[1] for image in false]
        ),
        "ml_per_healthy_slice": false_ml,
        "ml_per_healthy_scan": np.array([] if patient.truth.any() else [false_ml.sum()]),
    }


def _oracle(tallies: list[_Tally], view: str) -> float:
    """Threshold of the highest mean Dice: of the curve's grid, or tried, which may lie between."""
    dices: dict[float, list[np.ndarray]] = defaultdict(list)
    for tally in tallies:
        for (tried_view, threshold), values in tally.outcomes.items():
            if tried_view == view:
                dices[threshold].append(values["dice"])
    tried = {threshold: np.concatenate(values) for threshold, values in dices.items()}
    count = max(tried[0.5].size, 1)
    curve = np.sum([tally.curves[view] for tally in tallies], axis=0) / count
    threshold, best = best_threshold(curve)
    return max([(best, threshold), *((d.sum() / count, other) for other, d in tried.items())])[1]


def _scores(tallies: list[_Tally], view: str, threshold: float, seed: int) -> Row:
    outcomes = [tally.outcomes[view, threshold] for tally in tallies]
    dices = {tally.patient_id: o["dice"] for tally, o in zip(tallies, outcomes, strict=True)}
    row: Row = {
        "patients": sum(tally.slices[view] > 0 for tally in tallies),
        "slices": sum(tally.slices[view] for tally in tallies),
        **_means(outcomes, seed),
    }
    if view == "paper":
        row |= _by_lesion_size(tallies, list(dices.values()), seed)
        row["false_alarms_per_healthy_slice"] = None
    else:
        row["healthy_slices"] = sum(o["ml_per_healthy_slice"].size for o in outcomes)
        row["healthy_scans"] = sum(o["ml_per_healthy_scan"].size for o in outcomes)
    row["dice_by_patient"] = {n: [float(d.mean()), d.size] for n, d in dices.items() if d.size}
    return row


def _by_lesion_size(tallies: list[_Tally], dices: list[np.ndarray], seed: int) -> Row:
    """Mean Dice by quartile of lesion area in a slice, smallest lesions first."""
    areas = np.concatenate([tally.areas for tally in tallies])
    edges = np.quantile(areas, [0.25, 0.5, 0.75]) if areas.size else np.zeros(3)
    patients = []
    for tally, values in zip(tallies, dices, strict=True):
        quartile = np.searchsorted(edges, tally.areas)
        patients.append({f"dice_quartile_{q + 1}": values[quartile == q] for q in range(4)})
    shown_edges = edges.tolist() if areas.size else None
    return {"lesion_area_quartiles_mm2": shown_edges} | _means(patients, seed)


def _threshold_free(tallies: list[_Tally], seed: int) -> dict[str, Row]:
    """Rankings by view, and the calibration of the pooled voxels."""
    paper = _means([tally.rankings for tally in tallies], seed)
    histograms = np.stack([tally.histograms for tally in tallies])
    occupied = np.flatnonzero(histograms.any(axis=(0, 1, 2)))
    histograms = histograms[..., occupied]  # empty bins would only cost time
    volume: Row = {}
    for region, ending in enumerate(("", "_brain")):
        counts = histograms[:, region]
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
    low, high = pooled_interval(tables, statistic, seed)
    return {name: _plain(statistic(tables.sum(0))), f"{name}_low": low, f"{name}_high": high}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy scalars become Python's, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
