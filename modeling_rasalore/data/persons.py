"""Tell from names of files and folders, and from a table of persons, who was scanned and when."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..scans.naming import MODALITIES, NAMING_WORDS, ROLE_WORDS, file_stem

if TYPE_CHECKING:
    from .patient import Patient

logger = logging.getLogger(__name__)

PATIENT_COLUMNS = ("patient", "patient_id")  # of a table of persons
OTHER_COLUMN = "same_person"  # how the names of its further columns begin
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


# --- One person under several names ---------------------------------------------------------------
@dataclass(frozen=True)
class Identity:
    """Who a patient is, as a table of persons tells.

    Attributes:
        person: the person's name among the patients here.
        others: the person's names in other data sets.
        left_out: whether the patient has no part here, so that the other data set can be scored.
    """

    person: str
    others: tuple[str, ...] = ()
    left_out: bool = False


@dataclass(frozen=True)
class PersonTable:
    """Which names mean the same person.

    Attributes:
        names: person -> all names of that person, of all data sets.
        owned: persons whom the table's own data set holds; the other names are of others.
    """

    names: Mapping[str, frozenset[str]]
    owned: frozenset[str]


def read_person_table(path: str | Path) -> PersonTable:
    """Return who is whom by a CSV file, one line per patient of a data set.

    Its column `patient` (or `patient_id`) names the patient; each column whose name begins with
    `same_person`, such as same_person_in_brats2021, the same person's patient in another data set,
    or nobody. Further columns are passed over.

    Raises:
        ValueError: no such file or column, a line without a patient, or nobody with another name.
    """
    if not Path(path).is_file():
        raise ValueError(f"data.same_person must be a CSV file of persons, got {path}: not there.")
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        separator = max(",;\t", key=first.count)
        header = [name.strip().strip('"') for name in first.split(separator)]
        rows = list(csv.reader(file, delimiter=separator))
    own = [n for n, name in enumerate(header) if name in PATIENT_COLUMNS]
    other = [n for n, name in enumerate(header) if name.startswith(OTHER_COLUMN)]
    if len(own) != 1 or not other:
        raise ValueError(
            f"{path}: the first line must name one column patient and at least one that begins "
            f"with {OTHER_COLUMN}, such as {OTHER_COLUMN}_in_brats2021, got {', '.join(header)}."
        )
    names: dict[str, frozenset[str]] = {}
    owned: set[str] = set()
    for line, row in enumerate(rows, 2):
        others = {person_of(row[n].strip()) for n in other if n < len(row) and row[n].strip()}
        patient = row[own[0]].strip() if own[0] < len(row) else ""
        if others and not patient:
            raise ValueError(f"{path}, line {line}: {min(others)} is the same person as nobody.")
        if others:
            owned.add(person_of(patient))
            _join({person_of(patient), *others}, names)
    if not owned:
        raise ValueError(f"{path} gives no patient another name; leave data.same_person out.")
    return PersonTable(names, frozenset(owned))


def _join(group: set[str], names: dict[str, frozenset[str]]) -> None:
    """Make one person of a group of names and all that was known of them."""
    whole = frozenset().union(group, *(names[name] for name in group if name in names))
    names.update(dict.fromkeys(whole, whole))


def tell_persons(patients: Sequence["Patient"], path: str | Path) -> list["Patient"]:
    """Return the patients with their persons' other names, by the table at `path`.

    Patients here who are one person stay together in every split. A patient of the table's own
    data set whose other scan is not here has no part: a warning names them. Their other data set
    can then be scored with what is learned here, and this one with what is learned there.

    Raises:
        ValueError: as of `read_person_table`; or everybody is left out.
    """
    table = read_person_table(path)
    here = {person_of(patient.patient_id) for patient in patients}
    told = [
        replace(patient, identity=_identity(person_of(patient.patient_id), table, here))
        for patient in patients
    ]
    left_out = [patient for patient in told if patient.left_out]
    if len(left_out) == len(told):
        raise ValueError(
            f"{path} leaves nobody here: all {len(told)} patients are in another data set as well."
        )
    if left_out:
        listed = ", ".join(f"{p.patient_id} ({', '.join(p.other_names)})" for p in left_out)
        logger.warning(
            "%s: %d of %d patients left out, who are in another data set as well: %s",
            path,
            len(left_out),
            len(told),
            listed,
        )
    return told


def _identity(person: str, table: PersonTable, here: set[str]) -> Identity | None:
    """Return who a person is; None for somebody whom the table gives no other name."""
    names = table.names.get(person)
    if names is None:
        return None
    others = tuple(sorted(names - here))
    return Identity(min(names & here), others, bool(others) and bool(names & here & table.owned))
