"""Offer the thresholds that a model was calibrated for, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import at_false_alarms

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


def usual_preset(options: PredictionOptions) -> Preset:
    """Return the threshold of the options, whatever it comes from."""
    doubt = ", not calibrated" * ("calibrated:" not in options.threshold_source)
    words = f"score {options.threshold:.2g}{doubt}"
    return Preset(words, options.threshold, options.threshold_source)


def offer_presets(
    options: PredictionOptions, name: str, model: Any, revision: str = "main"
) -> list[Preset]:
    """Return the thresholds for rates of false alarms in healthy brain, the lowest rate first.

    Where the usual threshold is none of them, it comes first.

    Args:
        options: completed with what is saved with the model.
        name: folder or repo id of the model.
        model: as it was loaded.
        revision: of a repo id.
    """
    presets = []
    for rate in sorted(options.thresholds_at_rates, key=float):
        chosen = at_false_alarms(options, float(rate), "voxels", name, model, revision)
        words = f"marks {100 * float(rate):g} in 100 healthy voxels"
        presets.append(Preset(words, chosen.threshold, chosen.threshold_source))
    if options.threshold in [preset.threshold for preset in presets]:
        return presets
    return [usual_preset(options), *presets]


def source_of(threshold: float, presets: Sequence[Preset]) -> str:
    """Return where a threshold comes from."""
    return next((p.source for p in presets if p.threshold == threshold), OWN)


def settle_threshold(
    options: PredictionOptions, presets: Sequence[Preset], words: str | None, number: float | None
) -> float:
    """Return the threshold for a scan, whose model may be another one than that of the scan before.

    Args:
        options: of its model.
        presets: of its model.
        words: of the preset that is chosen; None: a number is.
        number: that is chosen; None: its field was emptied, or a program gave none.

    Raises:
        ValueError: the number is none, or lies outside [0, 1].
    """
    if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
        raise ValueError(f"threshold must be a number in [0, 1], got {number!r}.")
    if words is not None:
        same = (preset.threshold for preset in presets if preset.words == words)
        return next(same, options.threshold)
    return options.threshold if number is None else replace(options, threshold=number).threshold
