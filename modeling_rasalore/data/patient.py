"""Name what data sets consist of: a patient before anything is opened, and a labelled slice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..scans.naming import MODALITIES, NAMING_WORDS, ROLE_WORDS, file_stem

ALL = "all"  # in place of a modality: all of them as channels, in this order
UNHEALTHY, HEALTHY, UNKNOWN = 1, 0, -1  # labels of slices
SEQUENCE_WORDS = set().union(*(ROLE_WORDS[modality] for modality in MODALITIES))
# How names say which visit of a person they show: as a session of BIDS, in words, or by its date.
VISIT = (
    r"(?:ses-[\w.+-]+|(?:session|ses|visit|time-?point|tp|week|month|fu|follow-?up)[-_ .]?\d[\w.-]*"
    r"|baseline|follow-?up|(?:pre|post)-?op)"
)
DATE = r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d"
# A patient_id of one visit -> the person; of dates and counts only where that leaves a number.
PERSON_RULES = (
    r"(BraTS-[A-Z]+(?:-RT)?-\d+)-\d+",  # BraTS 2023 and later: GLI, MET, PED, SSA, MEN, MEN-RT
    r"(UPENN-GBM-\d+)_\d+",
    rf"(sub-.+?|(?!sub-).+?)[-_ .]{VISIT}",  # the label of sub-tp01 is no visit
    rf"(.*\d.*?)[-_ .](?:{DATE}|v\d\d?)",
)
Skip = int | str  # lowest and highest slices that are left out: a number, or AUTO
AUTO = "auto"  # as many as 15 of BraTS's 155
AUTO_FEWEST = 50  # slices; scans of fewer have thick ones, all of which count


def used_slices(patient_id: str, count: int, skip: Skip) -> range:
    """Return the slices of a scan of `count` that are neither among its first nor its last ones.

    Raises:
        ValueError: `skip` is neither AUTO nor a number from 0 on, or leaves no slice.
    """
    if skip == AUTO:
        number = round(count * 15 / 155) if count >= AUTO_FEWEST else 0
    elif isinstance(skip, int) and skip >= 0:
        number = skip
    else:
        raise ValueError(f"skip_slices must be auto or a number from 0 on, got {skip!r}.")
    if 2 * number >= count:
        raise ValueError(
            f"skip_slices={skip} leaves none of the {count} slices of {patient_id}; give a smaller "
            "number, or skip_slices=auto, which leaves all slices of scans with few."
        )
    return range(number, count - number)


@dataclass(frozen=True)
class PreparedSlices:
    """Where the slices of one patient lie in a folder of train/prepare_slices.py.

    Attributes:
        root: the folder, web address or repo id.
        part: name of the Parquet file, below data/ and without ending.
        part_bytes: its length.
        row_group: which row group of it is this patient's.
        mask_bytes: length of the file of the same name below masks/; None where there is none.
        skip: how many of the first and of the last slices were left out.
    """

    root: str
    part: str
    part_bytes: int
    row_group: int
    mask_bytes: int | None = None
    skip: int = 0


@dataclass(frozen=True)
class Patient:
    """One patient folder (or file) of a data set; nothing is opened until slices are read.

    Attributes:
        patient_id: the folder's name, with that of the visit below it; or the file's name without
            sequence and ending.
        images: modality ("t1", "t1ce", "t2", "flair") -> scan.
        channels: modality -> channel, where one 4-D file holds all modalities; else empty.
        mask: label map, any value above 0 being lesion; None if there is none.
        brain_mask: 1 inside the brain; None where the scans' background is known otherwise.
        slice_labels: slice index (0 = most inferior) -> 1 unhealthy, 0 healthy; None without a
            labels file, and then the mask decides.
        source: name of the layout.
        prepared: where the slices are, for patients without scans; `images` and `mask` then only
            say what there is.
    """

    patient_id: str
    images: dict[str, Path]
    channels: dict[str, int] = field(default_factory=dict)
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: dict[int, int] | None = None
    source: str = "folder"
    prepared: PreparedSlices | None = None

    @property
    def person(self) -> str:
        """Who was scanned; one person may have been scanned at several visits."""
        return person_of(self.patient_id)


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One axial slice of a patient that shows brain.

    Attributes:
        image: (H, W) float32, or (4, H, W) with all sequences as channels; 0 in the background and
            above 0 elsewhere.
        label: 1 unhealthy, 0 healthy, -1 neither.
        mask: (H, W) uint8, 1 in the lesion; None where it was not asked for or is not there.
        patient_id: of whom.
        slice_index: 0 = most inferior, of the scan's `slice_count` slices.
        spacing: mm between slices, rows and columns.
        source: name of the data set's layout.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray | None
    patient_id: str
    slice_index: int
    slice_count: int
    spacing: tuple[float, float, float]
    source: str

    @property
    def lesion(self) -> np.ndarray:
        """(H, W) bool, True in the lesion; only of slices that were read with their masks."""
        assert self.mask is not None, f"{self.patient_id} was read without its mask"
        return self.mask > 0


def person_of(patient_id: str) -> str:
    """Return who was scanned: sub-01_ses-2 -> sub-01, BraTS-MET-00001-001 -> BraTS-MET-00001."""
    for rule in PERSON_RULES:
        if visit := re.fullmatch(rule, patient_id, re.IGNORECASE):
            return visit[1]
    return patient_id


def patient_id_of_path(parts: Sequence[str]) -> str:
    """Return whom a scan shows, by the folders below a data root and the file's name.

    One folder per patient, in it maybe one per visit: sub-01/ses-2/anat/x.nii -> sub-01_ses-2,
    anna/2019-01-31/x.nii -> anna_ses-2019-01-31; of a file alone as `patient_id_of_name`.
    """
    if len(parts) == 1:
        return patient_id_of_name(parts[0])
    patient, visit = parts[:2]
    if len(parts) > 2 and re.fullmatch(VISIT, visit, re.IGNORECASE):
        return f"{patient}_{visit}"
    if len(parts) > 2 and re.fullmatch(DATE, visit):
        return f"{patient}_ses-{visit}"
    return patient


def patient_id_of_name(name: str) -> str:
    """Return whom a file shows: case7_t2.nii.gz -> case7, brain_001_t2.nii -> 001, t2.nii -> "".

    That is what stands before the sequence (or the last word for a mask) and is no such word
    itself, up to the first number; else what stands behind.
    """
    stem = file_stem(Path(name))
    words = [word for word in re.finditer("[A-Za-z0-9]+", stem) if word[0].lower() in NAMING_WORDS]
    if not words:
        return stem
    edges = [0, *(edge for word in words for edge in word.span()), len(stem)]
    texts = [
        stem[start:end].strip("_-. ") for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    sequences = [n for n, word in enumerate(words, 1) if word[0].lower() in SEQUENCE_WORDS]
    border = sequences[0] if sequences else len(words)
    before, after = ([text for text in side if text] for side in (texts[:border], texts[border:]))
    if before and not re.search(r"\d", before[0]):  # MS-lesion_012_t2 is MS_012
        return "_".join([before[0], *[text for text in before[1:] if re.search(r"\d", text)][:1]])
    return (before or after or [""])[0]
