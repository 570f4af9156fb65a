"""Find score thresholds for a false-alarm rate on healthy scans, and store them beside a model."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..evaluation.metrics import THRESHOLDS, false_alarm_threshold, score_histograms
from ..files import write_json
from ..remote_files import is_repo_id, without_waiting_for_hub
from ..scans.background import BrainSlices
from ..scans.volumes import Volume
from .options import DEFAULT_OPTIONS, PredictionOptions
from .volume import describe_model, predict_volume

CALIBRATION_FILE = "calibration.json"
UNITS = ("voxels", "slices", "ml")


@dataclass
class _HealthyScores:
    """Counts scores of healthy scans; no map is held.

    Attributes:
        voxels: brain voxels per bin of score.
        millilitres: their volume per bin of score.
        highest: the highest score of each slice with brain.
        smallest_ml: volume of the smallest voxel seen.
        scans: how many.
    """

    voxels: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    millilitres: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS)))
    highest: list[float] = field(default_factory=list)
    smallest_ml: float = np.inf
    scans: int = 0

    def add(self, scores: np.ndarray, brain: np.ndarray, voxel_ml: float) -> None:
        counts = np.zeros_like(self.voxels)
        for plane, inside in zip(scores, brain, strict=True):
            values = plane[inside]
            if values.size:
                counts += score_histograms(values[None], np.zeros((1, values.size), bool))[0, 0]
                self.highest.append(float(values.max()))
        self.voxels += counts
        self.millilitres += counts * voxel_ml
        self.smallest_ml = min(self.smallest_ml, voxel_ml)
        self.scans += 1

    @property
    def counts(self) -> dict[str, int]:
        """How much was seen, for people."""
        counts = {"scans": self.scans, "slices": len(self.highest)}
        return {**counts, "voxels": int(self.voxels.sum())}

    def smallest_rate(self, unit: str) -> float:
        """The rate that one single false alarm makes."""
        if unit == "ml":
            return self.smallest_ml / max(self.scans, 1)
        return 1 / max(self.counts[unit], 1)

    def threshold(self, rate: float, unit: str) -> tuple[float, float]:
        """Return the lowest threshold that keeps to the rate, and the rate it gives here."""
        if unit == "slices":
            highest = np.array(self.highest)
            threshold = false_alarm_threshold(highest, rate)
            return threshold, float(np.mean(highest > threshold))
        per_bin = self.voxels / self.voxels.sum() if unit == "voxels" else self.millilitres
        above = (per_bin[::-1].cumsum()[::-1] - per_bin) / (self.scans if unit == "ml" else 1)
        bin_ = int(np.argmax(above <= rate + 1e-12))
        return min(float(THRESHOLDS[bin_]), 1.0), max(float(above[bin_]), 0.0)

    def saturated(self, unit: str) -> float:
        """The rate of scores that are 1, which no threshold below 1 can go under."""
        if unit == "slices":
            return float(np.mean(np.array(self.highest) >= 1))
        per_bin = self.voxels / self.voxels.sum() if unit == "voxels" else self.millilitres
        return float(per_bin[THRESHOLDS >= 1].sum()) / (self.scans if unit == "ml" else 1)


def calibrate(
    model: Any,
    processor: Any,
    healthy: Iterable[Volume],
    rates: Sequence[float],
    unit: str = "voxels",
    options: PredictionOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """Return the thresholds that keep false alarms on healthy scans to the asked rates.

    The result names the model by the hash of its weights and holds the numbers each threshold was
    derived from. A slice raises a false alarm when any of its voxels is above the threshold.

    Args:
        model, processor: as for `predict_volume`.
        healthy: scans without anomaly that the model was not trained on.
        rates: shares in (0, 1), or mL above 0.
        unit: "voxels" (share of those inside the brain), "slices" (share of those with brain) or
            "ml" (mean volume per scan).
        options: as for `predict_volume`, which must be called with the same flips, smoothing
            and free map.

    Raises:
        ValueError: a rate or unit that does not exist, a scan without a brain, a rate so small that
            not even one voxel or slice of these scans may exceed it, or scores so often 1 that
            only an empty mask would keep to it.
    """
    highest = np.inf if unit == "ml" else 1
    if unit not in UNITS or not rates or not all(0 < rate < highest for rate in rates):
        raise ValueError(
            f"rates must lie in (0, 1) of voxels or slices, or be above 0 ml, got {rates} of "
            f"{unit}."
        )
    collected, facts = _HealthyScores(), describe_model(model)
    for scan in healthy:
        prediction = predict_volume(model, processor, scan, options, facts)
        brain = BrainSlices(scan.slices).foreground()
        collected.add(prediction.scores, brain, prediction.voxel_mm3 / 1000)
    if not collected.highest or min(rates) < collected.smallest_rate(unit):
        counted = ", ".join(f"{count} {name}" for name, count in collected.counts.items())
        raise ValueError(
            f"one false alarm must not exceed the rate of {min(rates):g} {unit}, but it makes "
            f"{collected.smallest_rate(unit):.3g} of {counted}; give more scans or a higher rate."
        )
    entries = [_entry(collected, rate, unit, options) for rate in rates]
    return {"weights_sha256": facts["weights_sha256"], "thresholds": entries}


def _entry(
    collected: _HealthyScores, rate: float, unit: str, options: PredictionOptions
) -> dict[str, Any]:
    """Return the threshold for a rate, and the numbers that it was derived from."""
    threshold, observed = collected.threshold(rate, unit)
    if threshold >= 1:
        raise ValueError(
            f"no threshold below 1 keeps to a rate of {rate:g} of {unit}: the healthy scores "
            f"are 1 in {collected.saturated(unit):.3g} of {unit}; ask for a higher rate, blur the "
            "scores with --smooth-mm, or calibrate --per another unit."
        )
    return {
        "rate": rate,
        "unit": unit,
        "flips": options.flips,
        "smooth_mm": options.smooth_mm,
        "free_map": options.free_map,
        "threshold": threshold,
        "observed": observed,
        **collected.counts,
    }


def save_calibration(folder: Path, calibration: dict[str, Any]) -> Path:
    """Return the file beside the model; thresholds for other rates of the same weights stay."""
    path = folder / CALIBRATION_FILE
    stored = _read(path)
    if stored.get("weights_sha256") == calibration["weights_sha256"]:
        new = [_key(entry) for entry in calibration["thresholds"]]
        old = [entry for entry in stored["thresholds"] if _key(entry) not in new]
        calibration = {**calibration, "thresholds": [*old, *calibration["thresholds"]]}
    return write_json(path, calibration)


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    made = entry.get("flips", False), entry.get("smooth_mm", 0.0), entry.get("free_map", 0.0)
    return entry["rate"], entry["unit"], *made


def find_calibration(source: str | Path, model: Any, revision: str = "main") -> dict[str, Any]:
    """Return what `rasalore calibrate` stored beside a model, {} where there is nothing.

    Args:
        source: folder or repo id that the model was loaded from.
        model: whose weights the thresholds must belong to.
        revision: of a repo id.

    Raises:
        ValueError: the file was made for other weights.
        OSError: the Hub cannot be asked, and the file is not in the cache.
    """
    path = Path(source) / CALIBRATION_FILE
    if not Path(source).is_dir() and is_repo_id(str(source)):
        try:
            with without_waiting_for_hub(str(source)):
                path = Path(hf_hub_download(str(source), CALIBRATION_FILE, revision=revision))
        except RemoteEntryNotFoundError:
            return {}
    stored = _read(path)
    if stored and stored["weights_sha256"] != describe_model(model)["weights_sha256"]:
        raise ValueError(f"{path} was made for other weights; calibrate this model anew.")
    return stored


def load_threshold(
    source: str | Path,
    model: Any,
    rate: float,
    unit: str = "voxels",
    options: PredictionOptions = DEFAULT_OPTIONS,
    revision: str = "main",
) -> float:
    """Return the threshold stored for a false-alarm rate of scores made in the same way.

    Args:
        source, model, revision: as for `find_calibration`.
        options: of the scores.

    Raises:
        ValueError: not calibrated, for other weights, not for this rate, or for scores with other
            flips, smoothing or free map.
    """
    stored = find_calibration(source, model, revision)
    if not stored:
        raise ValueError(
            f"--false-alarms needs a calibrated model, but {source} has no "
            f"{CALIBRATION_FILE}; run `rasalore calibrate` on healthy scans first."
        )
    same = (unit, options.flips, options.smooth_mm, options.free_map)
    thresholds = {e["rate"]: e["threshold"] for e in stored["thresholds"] if _key(e)[1:] == same}
    if rate not in thresholds:
        words = " --flips" * options.flips
        words += f" --smooth-mm {options.smooth_mm:g}" * bool(options.smooth_mm)
        words += f" --free-map {options.free_map:g}" * bool(options.free_map)
        raise ValueError(
            f"the model is calibrated for false alarms of {sorted(thresholds)} of {unit} with "
            f"these options, not {rate:g}; run `rasalore calibrate --false-alarms {rate:g} --per "
            f"{unit}{words}`."
        )
    return float(thresholds[rate])


def at_false_alarms(
    options: PredictionOptions,
    rate: float,
    unit: str,
    source: str | Path,
    model: Any,
    revision: str = "main",
) -> PredictionOptions:
    """Return the options with the threshold stored for a false-alarm rate.

    Args:
        source, model, revision: as for `find_calibration`.

    Raises:
        ValueError: as for `load_threshold`.
    """
    threshold = load_threshold(source, model, rate, unit, options, revision)
    words = f"calibrated for {rate:g} of healthy {unit}"
    return replace(options, threshold=threshold, threshold_source=words)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
