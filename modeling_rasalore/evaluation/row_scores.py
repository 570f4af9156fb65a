"""Average the tallies of a test set's patients into the scores of a row of results."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import Estimate, bootstrap_interval, pooled_interval
from .metrics import (
    BINS,
    brier,
    expected_calibration_error,
    pooled_auroc,
    pooled_average_precision,
)
from .patient_scores import HEALTHY_BRAIN, Tally, Values

Row = dict[str, Any]  # of results.json


def threshold_scores(tallies: Sequence[Tally], view: str, threshold: str, seed: int) -> Row:
    """Scores of one view at one threshold, each with its interval, and what they are made of."""
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
        # The false-alarm rate that a label-free threshold promises, as observed.
        counts = np.stack([o[HEALTHY_BRAIN] for o in outcomes])[:, None]  # (patients, 1, 2)
        row |= _pooled("healthy_brain_marked", counts, marked_share, seed)
    row["dice_by_patient"] = _patient_means(dices)
    return row


def _patient_means(values: Mapping[str, np.ndarray]) -> Row:
    """Mean and number of each patient's values, of those who have any."""
    return {name: [float(some.mean()), some.size] for name, some in values.items() if some.size}


def _by_lesion_size(tallies: Sequence[Tally], dices: Sequence[np.ndarray], seed: int) -> Row:
    """Mean Dice by quartile of lesion area in a slice, smallest lesions first."""
    areas = np.concatenate([tally.areas for tally in tallies])
    edges = np.quantile(areas, [0.25, 0.5, 0.75]) if areas.size else np.zeros(3)
    patients = []
    for tally, values in zip(tallies, dices, strict=True):
        quartile = np.searchsorted(edges, tally.areas)
        patients.append({f"dice_quartile_{q + 1}": values[quartile == q] for q in range(4)})
    shown_edges = edges.tolist() if areas.size else None
    return {"lesion_area_quartiles_mm2": shown_edges} | _means(patients, seed)


def ranking_scores(tallies: Sequence[Tally], seed: int) -> dict[str, Row]:
    """Scores that need no threshold, by view: rankings, and the calibration of pooled voxels.

    A mask, whose scores are 0 and 1, ranks nothing: its rankings are None.
    """
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
    if occupied.tolist() == [0, BINS - 1]:  # scores 0 and 1
        paper, volume = dict.fromkeys(paper), dict.fromkeys(volume)
    tables = np.stack([tally.calibration for tally in tallies])
    volume |= _pooled("expected_calibration_error", tables, expected_calibration_error, seed)
    volume |= _pooled("brier", tables, brier, seed)
    return {"paper": paper, "volume": volume}


def _means(patients: Sequence[Values], seed: int) -> Row:
    """Mean over all values of each score, with its interval over patients."""
    row: Row = {}
    for name in patients[0]:
        values = [patient[name] for patient in patients]
        pooled = np.concatenate(values)
        pooled = pooled[~np.isnan(pooled)]
        mean = float(pooled.mean()) if pooled.size else None
        row |= Estimate(mean, *bootstrap_interval(values, seed)).columns(name)
    return row


def _pooled(
    name: str, tables: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> Row:
    """A statistic of tables (patients, seeds, ...), summed over patients; its mean over seeds."""

    def over_seeds(summed: np.ndarray) -> np.ndarray:
        return np.asarray(statistic(summed).mean(-1))

    value = float(over_seeds(tables.sum(0)))
    mean = value if np.isfinite(value) else None
    return Estimate(mean, *pooled_interval(tables, over_seeds, seed)).columns(name)


def marked_share(counts: np.ndarray) -> np.ndarray:
    """First of two counts (..., 2) as a share of the second; NaN of nothing."""
    with np.errstate(invalid="ignore"):
        return np.asarray(counts[..., 0] / counts[..., 1])
