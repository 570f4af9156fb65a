"""Share a study's patients out: whom it learns from, who chooses weights, and who is tested."""

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..data.patient import Patient
from ..data.splits import count_persons, split_patients, write_split
from ..recipes import SplitRecipe
from .recipe import StudyRecipe

MANY_PATIENTS = 20  # of whom a tenth can be spared to choose
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.25
Parts = dict[str, list[Patient]]


def splits_of(study: StudyRecipe, patients: int) -> list[SplitRecipe]:
    """Return who is held out: a quarter of the patients, or each fold in turn.

    A tenth of them choose weights and thresholds; of few patients one does.
    """
    chosen = 1 if patients < MANY_PATIENTS else VALIDATION_SHARE
    if not study.folds:
        return [SplitRecipe(chosen, TEST_SHARE, study.seed)]
    return [SplitRecipe(chosen, folds=study.folds, fold=fold) for fold in range(1, study.folds + 1)]


def share_out(patients: Sequence[Patient], split: SplitRecipe, learn_from: int = 0) -> Parts:
    """Return {"train": ..., "validation": ..., "test": ...}, no person in two of them.

    Where all patients have labels and masks, this is `split_patients`. Where some have masks, only
    these are tested; whom the labels file does not name is not learned from.

    Args:
        patients: who takes part.
        split: how many are tested and choose weights.
        learn_from: as of `StudyRecipe`.

    Raises:
        ValueError: nobody to learn from, or fewer patients than `learn_from`.
    """
    masked = {patient.person for patient in patients if has_mask(patient)}
    labelled = {patient.person for patient in patients if has_labels(patient)}
    persons = sorted({patient.person for patient in patients})
    random.Random(split.seed).shuffle(persons)
    testable = [person for person in persons if person in (masked or labelled)]
    if split.folds > len(testable):
        raise ValueError(
            f"every fold needs a patient to test, got folds={split.folds} and {len(testable)} "
            "patients with a mask; ask for fewer folds."
        )
    amounts = split.amounts()
    number = max(1, count_persons(amounts["test"], len(persons), "test"))
    tested = set(testable[split.fold - 1 :: split.folds] if split.folds else testable[:number])
    others = [person for person in persons if person in labelled - tested]
    validators = max(1, count_persons(amounts["validation"], len(persons), "validation"))
    checked, learned = set(others[:validators]), others[validators:]
    _check_number(learned, learn_from, len(labelled))
    taught = set(learned[: learn_from or None])
    ordered = sorted(patients, key=lambda patient: patient.patient_id)
    scored = has_mask if masked else has_labels
    return {
        "train": [p for p in ordered if p.person in taught and has_labels(p)],
        "validation": [p for p in ordered if p.person in checked and has_labels(p)],
        "test": [p for p in ordered if p.person in tested and scored(p)],
    }


def has_mask(patient: Patient) -> bool:
    """Return whether there is a true mask to score with."""
    return patient.mask is not None


def has_labels(patient: Patient) -> bool:
    """Return whether slices can be learned from: by masks, or named in the labels file."""
    return patient.slice_labels != {}


def _check_number(learned: Sequence[str], learn_from: int, labelled: int) -> None:
    """Raise ValueError unless there are as many patients to learn from as asked for."""
    if not learned:
        raise ValueError(
            "training needs a patient to learn from beside those who choose weights and are "
            f"tested, got {labelled} with labels; label more scans."
        )
    if not 0 <= learn_from <= len(learned):
        raise ValueError(
            f"there are {len(learned)} patients to learn from beside those who are held out, got "
            f"{learn_from}; ask for fewer, or label more scans."
        )


def settle_split(
    everyone: Sequence[Patient], study: StudyRecipe, split: SplitRecipe, path: Path
) -> tuple[Parts, SplitRecipe]:
    """Return who is in which part, and the split that says so in every recipe.

    Its numbers alone say it where all of a folder's patients take part; else a file does.

    Args:
        everyone: all patients of the folder.
        path: of that file, which is not written here.

    Raises:
        ValueError: as `split_patients` and `share_out`.
    """
    by_numbers = split_patients(everyone, split.seed, **split.amounts())
    parts = share_out(taking_part(everyone, study), split, study.learn_from)
    return parts, split if parts == by_numbers else replace(split, file=str(path))


def taking_part(everyone: Sequence[Patient], study: StudyRecipe) -> list[Patient]:
    """Return the patients of a folder whom neither a table of persons nor the study leaves out."""
    return [p for p in everyone if not p.left_out and p.patient_id not in study.without]


def store_split(parts: Parts, path: Path) -> Path:
    """Return `path` after writing who is in which part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_split(parts, path)


def words_of(split: SplitRecipe) -> list[str]:
    """Return a split as words of a recipe."""
    return [f"split.{key}={value}" for key, value in asdict(split).items() if value != ""]
