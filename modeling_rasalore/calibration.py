"""Score thresholds for an asked false-alarm rate, from healthy scans alone, kept beside a model."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from .files import write_json
from .metrics import THRESHOLDS, false_alarm_threshold, score_histograms
from .prediction import describe_model, predict_slices
from .volumes import Volume, zero_background

CALIBRATION_FILE = "calibration.json"
UNITS = ("voxels", "slices")


def calibrate(
    model: Any,
    processor: Any,
    healthy: Iterable[Volume],
    rates: Sequence[float],
    unit: str = "voxels",
    batch_size: int = 8,
) -> dict[str, Any]:
    """Return thresholds that at most the asked shares of healthy voxels or slices exceed.

    The result names the model by the hash of its weights and holds the numbers each threshold was
    derived from. A slice raises a false alarm when any of its voxels is above the threshold.

    Args:
        model, processor: as for `predict_volume`.
        healthy: scans without anomaly that the model was not trained on.
        rates: shares in (0, 1).
        unit: "voxels" (inside the brain) or "slices" (with brain).

    Raises:
        ValueError: a rate or unit that does not exist, no brain in any scan, or a rate so small
            that not even one voxel or slice of these scans may exceed it.
    """
    if unit not in UNITS or not rates or not all(0 < rate < 1 for rate in rates):
        raise ValueError(
            f"rates must lie in (0, 1) of {' or '.join(UNITS)}, got {rates} of {unit}."
        )
    histogram, highest, scans = np.zeros(len(THRESHOLDS), np.int64), [], 0
    for scan in healthy:
        images = list(zero_background(scan.slices))
        scores = predict_slices(model, processor, images, batch_size)
        inside = [score[image > 0] for score, image in zip(scores, images, strict=True)]
        inside = [values for values in inside if values.size]
        highest += [float(values.max()) for values in inside]
        for values in inside:
            histogram += score_histograms(values[None], np.zeros((1, values.size), bool))[0, 0]
        scans += 1
    counts = {"scans": scans, "slices": len(highest), "voxels": int(histogram.sum())}
    if counts[unit] * min(rates) < 1:
        raise ValueError(
            f"a rate of {min(rates):g} needs at least {1 / min(rates):.0f} healthy {unit}, got "
            f"{counts[unit]}; give more scans or a higher rate."
        )
    entries = []
    for rate in rates:
        if unit == "slices":
            threshold = false_alarm_threshold(np.array(highest), rate)
            observed = float(np.mean(np.array(highest) > threshold))
        else:
            threshold, observed = _voxel_threshold(histogram, rate)
        entries.append(
            {"rate": rate, "unit": unit, "threshold": threshold, "observed": observed, **counts}
        )
    return {"weights_sha256": describe_model(model)["weights_sha256"], "thresholds": entries}


def _voxel_threshold(histogram: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the lowest edge of a bin that at most `rate` of the voxels exceed, and their share."""
    above = 1 - np.cumsum(histogram) / histogram.sum()
    bin_ = int(np.argmax(above <= rate + 1e-12))
    return min(float(THRESHOLDS[bin_]), 1.0), max(float(above[bin_]), 0.0)


def save_calibration(folder: Path, calibration: dict[str, Any]) -> Path:
    """Return the file beside the model; thresholds for other rates of the same weights stay."""
    path = folder / CALIBRATION_FILE
    kept = _read(path)
    if kept.get("weights_sha256") == calibration["weights_sha256"]:
        new = {(entry["rate"], entry["unit"]) for entry in calibration["thresholds"]}
        old = [e for e in kept["thresholds"] if (e["rate"], e["unit"]) not in new]
        calibration = {**calibration, "thresholds": [*old, *calibration["thresholds"]]}
    return write_json(path, calibration)


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
    if not Path(source).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        try:
            path = Path(hf_hub_download(str(source), CALIBRATION_FILE, revision=revision))
        except RemoteEntryNotFoundError:
            return {}
    stored = _read(path)
    if stored and stored["weights_sha256"] != describe_model(model)["weights_sha256"]:
        raise ValueError(f"{path} was made for other weights; calibrate this model anew.")
    return stored


def load_threshold(
    source: str | Path, model: Any, rate: float, unit: str = "voxels", revision: str = "main"
) -> float:
    """Return the threshold stored for a false-alarm rate; arguments as for `find_calibration`.

    Raises:
        ValueError: not calibrated, for other weights, or not for this rate.
    """
    stored = find_calibration(source, model, revision)
    if not stored:
        raise ValueError(
            f"--false-alarms needs a calibrated model, but {source} has no "
            f"{CALIBRATION_FILE}; run `rasalore calibrate` on healthy scans first."
        )
    found = {e["rate"]: e["threshold"] for e in stored["thresholds"] if e["unit"] == unit}
    if rate not in found:
        raise ValueError(
            f"the model is calibrated for false alarms of {sorted(found)} of {unit}, not {rate:g}; "
            f"run `rasalore calibrate --false-alarms {rate:g}`."
        )
    return float(found[rate])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
