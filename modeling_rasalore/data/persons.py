"""Tell from the names of files and folders who was scanned, and at which visit."""

import re
from collections.abc import Sequence
from pathlib import Path

from ..scans.naming import MODALITIES, NAMING_WORDS, ROLE_WORDS, file_stem

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
