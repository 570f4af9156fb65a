"""Which scans a command line means, and where the results of each go."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .bids import bids_place, is_bids_dataset, is_raw_anatomy
from .dicom import is_dicom
from .naming import MODALITIES, channels_of, role_by_words


def nifti_files(folder: Path, pattern: str) -> list[Path]:
    """Return the .nii and .nii.gz files that match, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.glob(pattern))
        if path.name.endswith((".nii", ".nii.gz"))
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


NOT_SCANS = ("mask", "brain_mask")


def find_scans(inputs: Sequence[Path], modality: str | None = None) -> list[Path]:
    """Return the scans that files and folders stand for, folders searched through, sorted.

    Args:
        inputs: files, kept whatever they are called, and folders. Of a BIDS data set, raw
            anatomical scans are taken; of other folders NIfTI files without masks, and DICOM
            series in folders and zips.
        modality: which files of folders to take, such as "t2"; None takes all of them.

    Raises:
        ValueError: an unknown modality, a folder without such a scan, or with several modalities
            and none chosen.
    """
    if modality not in (None, *MODALITIES):
        raise ValueError(f"--modality must be one of {', '.join(MODALITIES)}, got {modality}.")
    scans: list[Path] = []
    for given in inputs:
        scans += _scans_in(given, modality) if given.is_dir() else [given]
    return scans


def _scans_in(folder: Path, modality: str | None) -> list[Path]:
    found = nifti_files(folder, "**/*")
    if is_bids_dataset(folder):
        found = [path for path in found if is_raw_anatomy(path, folder)]
    else:
        found += _series_in(folder)
    roles = {path: role_by_words(path) for path in found}
    scans = {path: role for path, role in roles.items() if role not in NOT_SCANS}
    if modality is not None:
        # What a DICOM series shows may stand in its files only.
        open_ones = {p for p, role in scans.items() if role is None and is_dicom(p)}
        fits = {p: {r, *channels_of(p)} for p, r in scans.items()}
        scans = {p: r for p, r in scans.items() if modality in fits[p] or p in open_ones}
    known = sorted({role for role in scans.values() if role is not None})
    if not scans:
        wanted = f"{modality} scan" if modality else "scan"
        raise ValueError(
            f"{folder} holds no {wanted} as .nii, .nii.gz or DICOM; found {len(roles)} files."
        )
    if modality is None and len(known) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(known)}; a model fits one of them, so choose it with "
            "--modality."
        )
    return list(scans)


def _series_in(folder: Path) -> list[Path]:
    """Return the folders and zips with DICOM files, sorted, without hidden ones."""
    below = [path for path in folder.rglob("*") if path.is_dir() or path.suffix.lower() == ".zip"]
    return [
        path
        for path in sorted([folder, *below])
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and is_dicom(path)
    ]


def output_places(scans: Sequence[Path], out: Path) -> list[Path]:
    """Return where each scan's results go, without ending.

    `out` mirrors the scans' folders; scans of a BIDS data set get the names of BIDS derivatives.

    Raises:
        ValueError: two scans would share a place.
    """
    parents = [scan.absolute().parent for scan in scans]
    common = os.path.commonpath(parents)
    places = [
        out / (bids_place(scan) or parent.relative_to(common) / scan_stem(scan))
        for scan, parent in zip(scans, parents, strict=True)
    ]
    for place, count in Counter(places).items():
        if count > 1:
            raise ValueError(f"two scans would both be written to {place}*; name each scan once.")
    return places


def scan_stem(scan: Path) -> str:
    """Return the name of a file or folder without the ending of a scan."""
    return re.sub(r"\.(nii(\.gz)?|zip)$", "", scan.absolute().name, flags=re.IGNORECASE)
