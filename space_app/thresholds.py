"""Offer the thresholds that a model was calibrated for, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modeling_rasalore.prediction.calibration import find_calibration, promise_of
from modeling_rasalore.prediction.options import PredictionOptions

USUAL = 0.5
OWN = "chosen on the slider"


@dataclass(frozen=True)
class Preset:
    """A threshold to choose.

    Attributes:
        words: on its button.
        threshold: in [0, 1].
        source: where it comes from, as reports state it.
    """

    words: str
    threshold: float
    source: str


UNCALIBRATED = Preset("score 0.5, not calibrated", USUAL, "default; the model was not calibrated")


def read_presets(
    source: str, model: Any, revision: str, options: PredictionOptions
) -> list[Preset]:
    """Return the presets of a model, the strictest first; one of score 0.5 without a calibration.

    Args:
        source, model, revision: as for `find_calibration`.
        options: that scores are made with here.

    Raises:
        ValueError, OSError: as `find_calibration`.
    """
    stored = find_calibration(source, model, revision).get("thresholds", [])
    entries = [entry for entry in stored if entry["unit"] == "voxels" and fits(entry, options)]
    presets = [
        Preset(
            f"{entry['rate'] * 100:g} in 100 healthy voxels",
            float(entry["threshold"]),
            f"calibrated: {promise_of(entry)}",
        )
        for entry in sorted(entries, key=lambda entry: entry["rate"])
    ]
    return presets or [UNCALIBRATED]


def fits(entry: dict[str, Any], options: PredictionOptions) -> bool:
    """Whether a threshold is for scores that are made with these options."""
    made = {"flips": options.flips, "smooth_mm": options.smooth_mm, "free_map": options.free_map}
    return all(entry.get(name, 0) == value for name, value in made.items())


def source_of(threshold: float, presets: Sequence[Preset]) -> str:
    """Return where a threshold comes from."""
    return next((p.source for p in presets if p.threshold == threshold), OWN)
