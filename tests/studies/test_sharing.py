"""Who is learned from, who chooses and who is tested, where not everyone has labels and a mask."""

from dataclasses import replace
from pathlib import Path

import pytest

from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.splits import read_split, split_patients
from modeling_rasalore.recipes import SplitRecipe
from modeling_rasalore.studies.recipe import StudyRecipe
from modeling_rasalore.studies.sharing import (
    Parts,
    settle_split,
    share_out,
    splits_of,
    store_split,
    words_of,
)


def patient(name: str, labels: dict[int, int] | None = None, mask: bool = True) -> Patient:
    images = {"t2": Path(f"{name}_t2.nii.gz")}
    return Patient(name, images, slice_labels=labels, mask=Path("m.nii.gz") if mask else None)


def ids(parts: Parts) -> dict[str, set[str]]:
    return {name: {patient.patient_id for patient in part} for name, part in parts.items()}


COMPLETE = [patient(f"p{number:02d}") for number in range(20)]
LABELLED = [patient(f"p{number:02d}", {3: 1, 9: 0}, mask=number < 6) for number in range(20)]


@pytest.mark.parametrize("split", splits_of(StudyRecipe(folds=4, seed=3), 20))
def test_with_labels_and_masks_of_all_it_is_the_split_of_every_script(split: SplitRecipe) -> None:
    by_numbers = split_patients(COMPLETE, split.seed, **split.amounts())
    assert share_out(COMPLETE, split) == by_numbers
    parts, said = settle_split(COMPLETE, StudyRecipe(), split, Path("split.json"))
    assert (parts, said) == (by_numbers, split)
    assert not any(word.startswith("split.file") for word in words_of(split))


def test_where_some_have_masks_only_they_are_tested() -> None:
    parts = ids(share_out(LABELLED, SplitRecipe(2, 0.25, 0)))
    assert len(parts["test"]) == 5 and parts["test"] < {f"p{number:02d}" for number in range(6)}
    assert [len(parts[name]) for name in ("train", "validation")] == [13, 2]
    folds = [ids(share_out(LABELLED, split)) for split in splits_of(StudyRecipe(folds=3), 20)]
    assert sorted(name for fold in folds for name in fold["test"]) == sorted(
        f"p{number:02d}" for number in range(6)
    )


def test_more_folds_than_patients_with_a_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="got folds=7 and 6 patients with a mask"):
        share_out(LABELLED, SplitRecipe(1, folds=7, fold=1))


def test_whom_the_labels_file_does_not_name_is_tested_at_most() -> None:
    unnamed = [replace(p, slice_labels={}) for p in LABELLED[:10]]
    parts = ids(share_out([*unnamed, *LABELLED[10:]], SplitRecipe(1, 0.25, 0)))
    named = {patient.patient_id for patient in LABELLED[10:]}
    assert parts["train"] | parts["validation"] == named
    assert parts["test"] < {patient.patient_id for patient in unnamed}


def test_fewer_patients_to_learn_from_are_among_more_and_the_others_stay() -> None:
    split = SplitRecipe(2, 0.25, 1)
    few, more, every = (ids(share_out(COMPLETE, split, number)) for number in (3, 8, 0))
    assert [len(parts["train"]) for parts in (few, more, every)] == [3, 8, 13]
    assert few["train"] < more["train"] < every["train"]
    assert few["test"] == more["test"] == every["test"]
    assert few["validation"] == every["validation"]
    with pytest.raises(ValueError, match=r"there are 13 patients to learn from .* got 14"):
        share_out(COMPLETE, split, 14)


def test_scans_of_one_person_stay_together() -> None:
    visits = [patient(f"sub-{n:02d}_ses-{v}", mask=v == 1) for n in range(8) for v in (1, 2)]
    parts = ids(share_out(visits, SplitRecipe(1, 0.25, 0)))
    persons = [{name[:6] for name in part} for part in parts.values()]
    assert not (persons[0] & persons[1] or persons[0] & persons[2] or persons[1] & persons[2])
    assert all(name.endswith("ses-1") for name in parts["test"])


def test_who_takes_no_part_is_in_no_part_and_a_file_says_so(tmp_path: Path) -> None:
    study, split = StudyRecipe(without=["p03"]), SplitRecipe(2, 0.25, 0)
    parts, said = settle_split(COMPLETE, study, split, tmp_path / "deep" / "split.json")
    assert said.file == str(store_split(parts, tmp_path / "deep" / "split.json"))
    assert "p03" not in set.union(*ids(parts).values())
    assert split_patients(COMPLETE, said.seed, **said.amounts()) == parts
    assert read_split(said.file, COMPLETE) == parts
    assert f"split.file={said.file}" in words_of(said)


def test_nobody_to_learn_from_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"a patient to learn from .* got 2 with labels"):
        share_out(COMPLETE[:2], SplitRecipe(1, 0.25, 0))
