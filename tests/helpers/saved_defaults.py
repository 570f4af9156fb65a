"""What is saved beside a model: how its masks are made, and its thresholds."""

from pathlib import Path
from typing import Any

from modeling_rasalore.files import write_json
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS, SAVED_NAMES, PredictionOptions
from modeling_rasalore.prediction.saved_options import DEFAULTS_FILE, at_false_alarms


def save_defaults(folder: Path, options: PredictionOptions, chosen_on: str) -> Path:
    """Return that file of some options, chosen on scans that are said in words."""
    saved = {name: getattr(options, name) for name in SAVED_NAMES}
    return write_json(folder / DEFAULTS_FILE, {**saved, "chosen_on": chosen_on})


def stored_threshold(
    source: str | Path,
    model: Any,
    rate: float,
    options: PredictionOptions = DEFAULT_OPTIONS,
    revision: str = "main",
) -> float:
    """Return the threshold stored for a share of healthy voxels."""
    return at_false_alarms(options, rate, "voxels", source, model, revision).threshold
