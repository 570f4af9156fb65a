"""Tell from a name what a file shows: its sequence, a lesion mask, a brain mask."""

import re
from pathlib import Path

MODALITIES = ("t1", "t1ce", "t2", "flair")
MSD_FOLDER = "imagesTr"  # of MSD Task01, whose 4-D scans hold one sequence per volume
MSD_CHANNELS = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
# Words in the file names of any other folder; the first row that fits decides, so that T2_FLAIR is
# a FLAIR and flair_seg a mask.
MASK_WORDS = {"mask", "seg", "segm", "segmentation", "dseg", "label", "labels", "lesion", "lesions"}
MASK_WORDS |= {"tumor", "tumour", "gold", "truth", "otmulticlass"}
CONTRAST_WORDS = {"ce", "gd", "gadolinium", "post", "contrast"}
ROLE_WORDS = {
    "brain_mask": {"brainmask"},
    "mask": MASK_WORDS,
    "flair": {"flair", "t2f", "tirm"},  # scanners call a FLAIR t2_tirm_dark-fluid, too
    "t1ce": {"t1ce", "t1c", "t1gd", "t1post"},
    "t2": {"t2", "t2w"},
    "t1": {"t1", "t1n", "t1w"},
}
NAMING_WORDS = set().union(CONTRAST_WORDS, {"brain"}, *ROLE_WORDS.values())


def channels_of(path: Path) -> dict[str, int]:
    """Return modality -> volume of a 4-D scan in a known layout, else nothing."""
    return MSD_CHANNELS if path.parent.name == MSD_FOLDER else {}


def file_stem(path: Path) -> str:
    """Return a file's name without .nii or .nii.gz."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def role_by_words(path: Path) -> str | None:
    """Return what words in a file's name say it is: a modality, "mask", "brain_mask" or None."""
    words = set(re.findall(r"[a-z0-9]+", file_stem(path).lower()))
    if {"brain", "mask"} <= words:
        return "brain_mask"
    role = next((role for role, names in ROLE_WORDS.items() if words & names), None)
    return "t1ce" if role == "t1" and words & CONTRAST_WORDS else role


def sequence_of(words: str) -> str | None:
    """Return the MRI sequence that a description names, such as "t2"; None if none."""
    role = role_by_words(Path(words.replace("/", " ")))
    return None if role in ("mask", "brain_mask") else role
