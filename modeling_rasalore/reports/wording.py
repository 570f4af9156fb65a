"""Say in sentences what a volume, its interval and a threshold mean."""

from collections.abc import Mapping
from typing import Any

from .findings import LARGE_ML


def headline(entry: Mapping[str, Any]) -> str:
    """Return what was marked in a scan, such as `2 findings of 1 mL or more, 43.1 mL in all`."""
    if not entry["millilitres"]:
        return "No anomaly found. This does not exclude disease."
    count = entry["findings_above_1_ml"]
    findings = f"{count or 'No'} finding{'s' * (count != 1)} of {LARGE_ML:g} mL or more"
    return f"{findings}; {entry['millilitres']:.1f} mL marked in all{interval_words(entry)}."


def interval_words(entry: Mapping[str, Any]) -> str:
    """Return the interval of a volume, as words that follow it; "" where there is none."""
    interval = entry.get("interval_ml")
    return f" (interval {interval[0]:.1f} to {interval[1]:.1f} mL)" if interval else ""


def explain_interval(entry: Mapping[str, Any]) -> str:
    """Return what the ends of an interval are: masks at other thresholds, draws of noise."""
    volumes = entry.get("millilitres_at_rates", {})
    parts = [
        f"{volume:.1f} mL if {100 * float(rate):g} % of healthy brain may be marked"
        for rate, volume in volumes.items()
    ]
    if draws := entry.get("noise_draws"):
        parts.append(f"what {draws} draws of the model's noise give")
    if not parts:
        return (
            "The volume has no interval: the model is not calibrated for 1 % and 5 % of healthy "
            "brain, and no noise was drawn (--noise-samples 8)."
        )
    return f"The interval holds {', '.join(parts)}. It is no confidence interval of the truth."


def explain_threshold(settings: Mapping[str, Any]) -> list[str]:
    """Return sentences on what a score above the threshold means."""
    threshold, source = settings["threshold"], settings["threshold_source"]
    sentences = [f"A voxel is marked when its score is above {threshold:.3g}. Why: {source}."]
    rates: Mapping[str, float] = settings.get("thresholds_at_rates", {})
    for rate, value in rates.items():
        voxels = f"{100 * float(rate):g} of 100 healthy voxels"
        if value == threshold:
            sentences.append(f"Of brains like the healthy ones, most have at most {voxels} marked.")
        else:
            sentences.append(f"At {value:.3g} it would be at most {voxels}.")
    if "calibrated:" not in source:
        sentences.append(
            "Healthy scans did not set this threshold, so nothing is known of how much healthy "
            "brain it marks; rasalore calibrate sets one that says so."
        )
    return sentences
