"""A scan through one door, whether it is a NIfTI file or a DICOM series."""

from dataclasses import replace
from pathlib import Path

from .dicom_series import is_dicom, read_series
from .layouts import role_by_words
from .scan_list import pick_volume
from .volumes import (
    ScanFacts,
    Volume,
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


def sequence_of(words: str) -> str | None:
    """Return the MRI sequence that a description names, such as "t2"; None if none."""
    role = role_by_words(Path(words.replace("/", " ")))
    return None if role in ("mask", "brain_mask") else role
