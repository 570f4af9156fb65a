"""A scan through one door, whether it is a NIfTI file or a DICOM series."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from .dicom import is_dicom, read_series
from .naming import channels_of, sequence_of
from .volumes import (
    ScanFacts,
    Volume,
    VolumeError,
    facts_from_voxels,
    read_facts,
    read_volume,
    volume_from_voxels,
)


def read_scan(path: Path, volume: int | None = None, modality: str | None = None) -> Volume:
    """Return the scan at `path` in the slice frame.

    Args:
        path: a .nii or .nii.gz file, or a folder or zip with a DICOM series.
        volume: which volume of a 4-D file, counted from 0.
        modality: the scan's sequence, where its name and header do not tell it; chooses the volume
            of MSD Task01, or the DICOM series whose description fits.

    Raises:
        VolumeError: as `read_volume` and `read_series`.
    """
    if is_dicom(path):
        stored, affine, notes = read_series(path, modality, sequence_of)
        scan = volume_from_voxels(stored, affine, path, notes)
        in_header = stored.sequence
    else:
        scan = read_volume(path, pick_volume(path, read_facts(path).volumes, volume, modality))
        in_header = sequence_of(scan.header["descrip"].item().decode("latin-1"))
    return replace(scan, sequence=modality or sequence_of(path.name) or in_header)


def read_scan_facts(path: Path, modality: str | None = None) -> ScanFacts:
    """As `read_scan`, of what headers say; no voxel is decoded."""
    if is_dicom(path):
        stored, affine, notes = read_series(path, modality, sequence_of)
        return facts_from_voxels(stored, affine, path, notes)
    return read_facts(path)


def pick_volume(path: Path, volumes: int, volume: int | None, modality: str | None) -> int | None:
    """Return which volume of a file with `volumes` volumes to read, None for a 3-D file.

    `volume` decides where it is given. The 4-D scans of MSD Task01 hold one modality per volume,
    so `modality` is enough for them.
    """
    if volume is not None or modality is None or volumes == 1:
        return volume
    channels = channels_of(path)
    return channels.get(modality) if len(channels) == volumes else None


# Arrays of one volume held at once at the peak: float32 slices, a copy with zero background and
# scores, the mask, what lies around them, and the slices of the next scan, which is read ahead.
PEAK_BYTES_PER_VOXEL = 19


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
