"""Find the scans that a command line means, and where the results of each go."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..formats.endings import FOUND, other_ending
from .bids import bids_stem, is_bids_dataset, is_raw_anatomy
from .naming import MODALITIES, channels_of, role_by_words
from .series_files import is_dicom


def nifti_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of scans that match, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.glob(pattern))
        if path.name.endswith((".nii", ".nii.gz", *FOUND))
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


NOT_SCANS = ("mask", "brain_mask")


def find_scans(inputs: Sequence[Path], modality: str | None = None) -> list[Path]:
    """Return the scans that files and folders stand for, folders searched through, sorted.

    Args:
        inputs: files, taken whatever they are called, and folders. Of a BIDS data set, raw
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
    for path in inputs:
        scans += _scans_in(path, modality) if path.is_dir() else [path]
    return scans


def _scans_in(folder: Path, modality: str | None) -> list[Path]:
    paths = nifti_files(folder, "**/*")
    if is_bids_dataset(folder):
        paths = [path for path in paths if is_raw_anatomy(path, folder)]
    else:
        paths += _series_in(folder)
    roles = {path: role_by_words(path) for path in paths}
    scans = {path: role for path, role in roles.items() if role not in NOT_SCANS}
    if modality is not None:
        scans = {path: role for path, role in scans.items() if _may_show(modality, path, role)}
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


def _may_show(modality: str, path: Path, role: str | None) -> bool:
    """Whether a scan may show a sequence; a DICOM series may name it in its files only."""
    return modality == role or modality in channels_of(path) or (role is None and is_dicom(path))


def _series_in(folder: Path) -> list[Path]:
    """Return the folders and zips with DICOM files, sorted, without hidden ones."""
    below = [path for path in folder.rglob("*") if path.is_dir() or path.suffix.lower() == ".zip"]
    return [
        path
        for path in sorted([folder, *below])
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and is_dicom(path)
    ]


def output_stems(scans: Sequence[Path], out: Path) -> list[Path]:
    """Return where each scan's results go, without ending.

    `out` mirrors the scans' folders; scans of a BIDS data set get the names of BIDS derivatives.

    Raises:
        ValueError: two scans would share their results.
    """
    parents = [scan.absolute().parent for scan in scans]
    common = os.path.commonpath(parents)
    stems = [
        out / (bids_stem(scan) or parent.relative_to(common) / scan_stem(scan))
        for scan, parent in zip(scans, parents, strict=True)
    ]
    counts = Counter(stems)
    for index, (scan, stem) in enumerate(zip(scans, stems, strict=True)):
        if counts[stem] > 1 and other_ending(scan):  # one scan in several formats
            stems[index] = stem.with_name(scan.name)
    for stem, count in Counter(stems).items():
        if count > 1:
            raise ValueError(f"two scans would both be written to {stem}*; name each scan once.")
    return stems


def scan_stem(scan: Path) -> str:
    """Return the name of a file or folder without the ending of a scan."""
    if ending := other_ending(scan):
        return scan.name[: -len(ending)]
    return re.sub(r"\.(nii(\.gz)?|zip|dcm)$", "", scan.absolute().name, flags=re.IGNORECASE)
