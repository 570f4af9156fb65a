"""What a prediction would do with a scan, from its header alone: no voxel, no model."""

from math import prod
from pathlib import Path
from typing import Any

from .scan_list import pick_volume
from .scan_source import read_scan_facts
from .volumes import VolumeError

# Arrays of one volume held at once at the peak: float32 slices, a copy with zero background and
# scores, the mask, and what lies around them.
PEAK_BYTES_PER_VOXEL = 15


def inspect_scan(path: Path, volume: int | None, modality: str | None) -> dict[str, Any]:
    """Return what is known of a scan, as JSON can hold it; `reason` says why it would fail."""
    try:
        facts = read_scan_facts(path, modality)
    except VolumeError as error:
        return {"input": str(path), "reason": str(error)}
    channel = pick_volume(path, facts.volumes, volume, modality)
    reason = None
    if facts.volumes > 1 and (channel is None or channel >= facts.volumes):
        reason = (
            f"{path}: a 4-D scan needs --volume 0 to {facts.volumes - 1}, or --modality for the "
            f"scans of MSD Task01, got {channel}."
        )
    return {
        "input": str(path),
        "reason": reason,
        "slices": facts.shape[0],
        "rows": facts.shape[1],
        "columns": facts.shape[2],
        "spacing_mm": list(facts.spacing),
        "voxel_order": facts.axis_codes,
        "volumes": facts.volumes,
        "volume_used": channel,
        "dtype": facts.dtype,
        "memory_mib": round(prod(facts.shape) * PEAK_BYTES_PER_VOXEL / 2**20),
        "warnings": list(facts.warnings),
    }


def describe_facts(facts: dict[str, Any]) -> str:
    """One line for people about the result of `inspect_scan`."""
    spacing = " x ".join(f"{size:.3g}" for size in facts["spacing_mm"])
    line = (
        f"{facts['input']}: {facts['slices']} slices of {facts['rows']} x {facts['columns']}, "
        f"{spacing} mm, stored {facts['voxel_order']} as {facts['dtype']}; about "
        f"{facts['memory_mib']} MiB besides the model"
    )
    return "; ".join([line, *facts["warnings"]])
