"""Find score thresholds that keep false alarms down in new scans, from healthy ones."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluation.scan_thresholds import (
    UNITS,
    USUAL_SHARE,
    attainable_share,
    promised_threshold,
    scan_threshold,
)
from ..scans.background import BrainSlices
from ..scans.volumes import Volume
from .loading import describe_model
from .options import DEFAULT_OPTIONS, PredictionOptions
from .volume import predict_volume

BY_SLICES = ", as far as healthy slices of scans with lesions tell"


@dataclass
class _HealthyScans:
    """The thresholds that healthy scans need; no score is held.

    Attributes:
        rates, unit: as for `calibrate`.
        thresholds: by rate, one per scan.
        slices: with brain.
        voxels: of brain.
        in_part: whether only some slices of a scan counted.
    """

    rates: Sequence[float]
    unit: str
    thresholds: dict[float, list[float]] = field(init=False)
    slices: int = 0
    voxels: int = 0
    in_part: bool = False

    def __post_init__(self) -> None:
        self.thresholds = {rate: [] for rate in self.rates}

    def add(self, scores: np.ndarray, brain: np.ndarray, voxel_ml: float) -> None:
        for rate, thresholds in self.thresholds.items():
            thresholds.append(scan_threshold(scores, brain, rate, self.unit, voxel_ml))
        self.slices += int(brain.any(axis=(1, 2)).sum())
        self.voxels += int(brain.sum())


def calibrate(
    model: Any,
    processor: Any,
    healthy: Iterable[Volume],
    rates: Sequence[float],
    unit: str = "voxels",
    options: PredictionOptions = DEFAULT_OPTIONS,
    scans_above: float | None = None,
) -> dict[str, Any]:
    """Return the thresholds at which few new scans have more false alarms than the asked rates.

    Each healthy scan has one threshold per rate, the lowest that keeps to it there. Of n scans'
    the k-th strictest is taken: in at most k of n + 1 scans like them is more marked. The result
    says so in one sentence per rate, and names the model by the hash of its weights.

    Args:
        model, processor: as for `predict_volume`.
        healthy: scans without anomaly that the model was not trained on, of the same scanner,
            protocol and kind of people as the scans that the threshold will serve.
        rates: the most that may be marked in a scan: shares in (0, 1), or mL above 0.
        unit: "voxels" (share of those inside the brain), "slices" (share of those with brain in
            which any voxel is marked) or "ml".
        options: as for `predict_volume`, which must be called with the same flips, smoothing
            and free map.
        scans_above: share of new scans in which more may be marked; None: a tenth, or 1 of n + 1
            where n scans cannot promise so little.

    Raises:
        ValueError: a rate or unit that does not exist, no scan or one without a brain, a share of
            scans that needs more of them, or scores so often 1 that only an empty mask would keep
            to a rate.
    """
    whole = ((scan, None) for scan in healthy)
    return calibrate_on_slices(model, processor, whole, rates, unit, options, scans_above)


def calibrate_on_slices(
    model: Any,
    processor: Any,
    scans: Iterable[tuple[Volume, Collection[int] | None]],
    rates: Sequence[float],
    unit: str = "voxels",
    options: PredictionOptions = DEFAULT_OPTIONS,
    scans_above: float | None = None,
) -> dict[str, Any]:
    """Return what `calibrate` does, of scans whose healthy slices alone count.

    Args:
        scans: each with the indices of its healthy slices, None for all of them.
    """
    highest = np.inf if unit == "ml" else 1
    if unit not in UNITS or not rates or not all(0 < rate < highest for rate in rates):
        raise ValueError(
            f"rates must lie in (0, 1) of voxels or slices, or be above 0 ml, got {rates} of "
            f"{unit}."
        )
    collected, facts = _HealthyScans(rates, unit), describe_model(model)
    for scan, healthy_slices in scans:
        prediction = predict_volume(model, processor, scan, options, facts)
        brain = BrainSlices(scan.slices).foreground()
        if healthy_slices is not None:
            brain[np.isin(np.arange(len(brain)), list(healthy_slices), invert=True)] = False
            collected.in_part = True
        collected.add(prediction.scores, brain, prediction.voxel_mm3 / 1000)
    if scans_above is None:
        scans_above = attainable_share(USUAL_SHARE, len(collected.thresholds[rates[0]]))
    entries = [_entry(collected, rate, options, scans_above) for rate in rates]
    return {"weights_sha256": facts["weights_sha256"], "thresholds": entries}


def _entry(
    collected: _HealthyScans, rate: float, options: PredictionOptions, scans_above: float
) -> dict[str, Any]:
    """Return the threshold for a rate, what it promises, and the numbers it was derived from."""
    unit, by_scan = collected.unit, collected.thresholds[rate]
    promise = promised_threshold(by_scan, scans_above)
    if promise.threshold >= 1:
        raise ValueError(
            f"no threshold below 1 keeps to a rate of {rate:g} of {unit} in all but "
            f"{promise.rank - 1} of {promise.scans} healthy scans, whose scores are 1 more often; "
            "ask for a higher rate or share of scans, blur the scores with --smooth-mm, or "
            "calibrate --per another unit."
        )
    return {
        "rate": rate,
        "unit": unit,
        "flips": options.flips,
        "smooth_mm": options.smooth_mm,
        "free_map": options.free_map,
        "precision": options.precision,
        "threshold": promise.threshold,
        "promise": promise.in_words(rate, unit) + BY_SLICES * collected.in_part,
        "rank": promise.rank,
        "scans": promise.scans,
        "slices": collected.slices,
        "voxels": collected.voxels,
        "thresholds_of_scans": sorted(by_scan, reverse=True),
    }
