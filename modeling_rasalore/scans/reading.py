"""Read a scan through one door: NIfTI, a DICOM series, or a file of another program."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ..formats.endings import open_voxels, other_ending
from ..formats.stored_voxels import FormatError
from .dicom import open_series
from .naming import channels_of, sequence_of
from .series_files import is_dicom
from .volumes import ScanFacts, ScanFile, Volume, VolumeError, open_nifti, scan_from_voxels


def read_scan(
    path: Path,
    channel: int | None = None,
    modality: str | None = None,
    series: str | None = None,
) -> Volume:
    """Return the scan at `path` in the slice frame.

    Args:
        path: a .nii or .nii.gz file, one of another format that `formats.endings` lists, or a
            folder, zip or file with a DICOM series.
        channel: which volume of a 4-D file, counted from 0.
        modality: the scan's sequence, where its name and header do not tell it; chooses the volume
            of MSD Task01, or the DICOM series whose description fits.
        series: which DICOM series of several, by its number or text of its description.

    Raises:
        VolumeError: as `read_volume` and `open_series`.
    """
    with open_scan(path, modality, series) as scan:
        return scan.read(pick_channel(scan, channel, modality))


def read_scan_facts(path: Path, modality: str | None = None) -> ScanFacts:
    """As `read_scan`, of what headers say; no voxel is decoded."""
    with open_scan(path, modality) as scan:
        return scan.facts


@contextmanager
def open_scan(
    path: Path, modality: str | None = None, series: str | None = None
) -> Iterator[ScanFile]:
    """Give the scan at `path`, opened once; its sequence is `modality` where that is given."""
    named = modality or sequence_of(path.name)
    if is_dicom(path):
        with open_series(path, modality, sequence_of, series) as slices:
            scan = scan_from_voxels(slices, slices.affine, path, slices.warnings)
            named = named or slices.sequence
            yield replace(
                scan, sequence=named, slice_files=slices.slice_files, left_out=slices.left_out
            )
    elif other_ending(path):
        yield replace(_open_other(path), sequence=named)
    else:
        with open_nifti(path) as scan:
            description = scan.header["descrip"].item().decode("latin-1")
            yield replace(scan, sequence=named or sequence_of(description))


def _open_other(path: Path) -> ScanFile:
    """Return a scan in a format of another program, as if it had come as NIfTI."""
    try:
        voxels = open_voxels(path)
    except FormatError as error:
        raise VolumeError(f"{path}: {error}.") from error
    return scan_from_voxels(voxels, voxels.affine, path, voxels.warnings)


def pick_channel(scan: ScanFile, channel: int | None, modality: str | None) -> int | None:
    """Return which volume of a file to read, None for a 3-D file.

    `channel` decides where it is given. The 4-D scans of MSD Task01 hold one modality per volume,
    so `modality` is enough for them.
    """
    count = scan.facts.channels
    if channel is not None or modality is None or count == 1:
        return channel
    channels = channels_of(scan.path)
    return channels.get(modality) if len(channels) == count else None


# Arrays of one volume held at once at the peak: float32 slices, a copy with zero background and
# scores, the mask, what lies around them, and the slices of the next scan, which is read ahead.
PEAK_BYTES_PER_VOXEL = 19


def inspect_scan(
    path: Path, channel: int | None, modality: str | None, series: str | None = None
) -> dict[str, Any]:
    """Return what is known of a scan, as JSON can hold it; `reason` says why it would fail."""
    try:
        with open_scan(path, modality, series) as scan:
            facts, channel = scan.facts, pick_channel(scan, channel, modality)
            reason = scan.channel_problem(channel)
    except VolumeError as error:
        return {"input": str(path), "reason": str(error)}
    slices, rows, columns = facts.geometry.shape
    return {
        "input": str(path),
        "reason": reason,
        "slices": slices,
        "rows": rows,
        "columns": columns,
        "spacing_mm": list(facts.geometry.spacing),
        "voxel_order": facts.geometry.axis_codes,
        "volumes": facts.channels,
        "volume_used": channel,
        "dtype": facts.dtype,
        "memory_mib": round(prod(facts.geometry.shape) * PEAK_BYTES_PER_VOXEL / 2**20),
        "warnings": list(facts.warnings),
    }


def describe_facts(facts: dict[str, Any]) -> str:
    """Return one line for people about the result of `inspect_scan`."""
    spacing = " x ".join(f"{size:.3g}" for size in facts["spacing_mm"])
    line = (
        f"{facts['input']}: {facts['slices']} slices of {facts['rows']} x {facts['columns']}, "
        f"{spacing} mm, stored {facts['voxel_order']} as {facts['dtype']}; about "
        f"{facts['memory_mib']} MiB besides the model"
    )
    return "; ".join([line, *facts["warnings"]])
