"""Tell which scans of a BIDS data set are raw anatomy, and name results, there as BIDS does.

https://bids-specification.readthedocs.io, version 1.10: raw data, and the derivatives of masks.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..files import common_folder, write_json
from .naming import scan_stem, sequence_of

VERSION = "1.10.0"
NAME = b'"rasalore"'  # in descriptions of ours
DESCRIPTION = "dataset_description.json"
ENTITIES = re.compile(
    r"(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+)*)_[A-Za-z0-9]+\.nii(?:\.gz)?", re.I
)
# What our files end in, where it differs from the names of other results.
BIDS_ENDINGS = {"scores": "_probseg.nii.gz", "summary": "_mask.json"}


def is_bids_dataset(folder: Path) -> bool:
    """Whether a folder says of itself that it is a BIDS data set."""
    return (folder / DESCRIPTION).is_file()


def why_not_anatomy(path: Path, dataset: Path) -> str | None:
    """Return why a file is no raw anatomical scan, sub-*/[ses-*/]anat/sub-*_*.nii.gz, or None."""
    folders = path.relative_to(dataset).parts[:-1]
    stem = bids_stem(path)
    raw = stem is not None and folders == stem.parts[:-1]
    return None if raw else "no raw anatomical scan of this BIDS data set"


def why_no_magnitude(path: Path) -> str | None:
    """Return which part of the signal a file holds, where it is not the magnitude; else None."""
    part = re.search(r"_part-(phase|real|imag)(?=[_.])|_(ph)\.nii", path.name)
    return f"the {part[1] or 'phase'} of the signal, not its magnitude" if part else None


def bids_suffix(path: Path) -> str:
    """Return what the name of a raw scan says last, such as T2w; with "ce" after contrast agent."""
    suffix = re.sub(r"\..*$", "", path.name).rsplit("_", 1)[-1]
    return f"{suffix} ce" if "_ce-" in path.name else suffix


def told_by_name(path: Path) -> str | None:
    """Return the sequence that a scan's name tells; in a BIDS name its last word alone does."""
    if ENTITIES.fullmatch(path.name) and (suffix := bids_suffix(path)):
        return sequence_of(suffix) or suffix.split()[0].lower()
    return sequence_of(scan_stem(path))


def bids_stem(path: Path) -> Path | None:
    """Return where results of an anatomical scan belong, below a derivatives folder, or None.

    Such as sub-01/ses-1/anat/sub-01_ses-1_desc-anomaly, to which endings are added.
    """
    named = ENTITIES.fullmatch(path.name)
    folders = path.absolute().parent.parts
    start = -3 if len(folders) > 2 and folders[-2].startswith("ses-") else -2
    if not named or folders[-1] != "anat" or not folders[start].startswith("sub-"):
        return None
    entities = re.sub(r"_desc-[A-Za-z0-9+]+", "", named[1])
    return Path(*folders[start:], f"{entities}_desc-anomaly")


def write_description(folder: Path, version: str) -> Path:
    """Return the file that makes a folder of results a BIDS derivative; another one stays."""
    if (folder / DESCRIPTION).exists() and NAME not in (folder / DESCRIPTION).read_bytes():
        return folder / DESCRIPTION  # of the data set itself
    content = {
        "Name": "Anomaly masks",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "rasalore", "Version": version}],
    }
    return write_json(folder / DESCRIPTION, content)


def output_stems(scans: Sequence[Path], out: Path) -> list[Path]:
    """Return where each scan's results go, without ending.

    `out` mirrors the scans' folders; scans of a BIDS data set get the names of BIDS derivatives.
    Scans that would share them, such as a.nii and a.nii.gz, keep their whole names.

    Raises:
        ValueError: one scan twice.
    """
    parents = [scan.absolute().parent for scan in scans]
    common = common_folder(parents)
    places = [out / parent.relative_to(common) for parent in parents]
    stems = [
        out / stem if (stem := bids_stem(scan)) else place / scan_stem(scan)
        for scan, place in zip(scans, places, strict=True)
    ]
    counts = Counter(stems)
    for index, (scan, stem) in enumerate(zip(scans, stems, strict=True)):
        if counts[stem] > 1 and not _is_plain(scan):
            stems[index] = stem.with_name(scan.name)
    for stem, count in Counter(stems).items():
        if count > 1:
            raise ValueError(f"two scans would both be written to {stem}*; name each scan once.")
    return stems


def _is_plain(scan: Path) -> bool:
    """Whether a scan's results keep its name without ending, whatever is beside it."""
    return scan.name.endswith(".nii.gz") and "_desc-" not in scan.name
