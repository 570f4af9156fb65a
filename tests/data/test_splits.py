"""Patients shared out once: by person, from a sorted list and a seed, and kept in a file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.splits import (
    read_split,
    refuse_other_split,
    split_hash,
    split_patients,
    write_split,
)


def people(*names: str) -> list[Patient]:
    return [Patient(name, {"t2": Path(f"{name}.nii.gz")}) for name in names]


def test_a_split_depends_on_the_seed_and_not_on_the_listing_order():
    patients = people(*(f"p{n:02d}" for n in range(20)))
    split = split_patients(patients, seed=3, validation=0.1, test=4)
    assert {name: len(members) for name, members in split.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert split == split_patients(patients[::-1], seed=3, validation=2, test=0.2)
    assert split_hash(split) != split_hash(split_patients(patients, seed=4))
    assert sorted(p.patient_id for members in split.values() for p in members) == [
        p.patient_id for p in patients
    ]


def test_a_fraction_takes_at_least_one_patient_and_0_takes_none():
    split = split_patients(people("a", "b", "c"), seed=0, validation=0.01, test=0.0)
    assert [len(split[name]) for name in ("train", "validation", "test")] == [2, 1, 0]


@pytest.mark.parametrize(("validation", "test"), [(1, 1), (0.5, 0.5), (2, 0)])
def test_a_split_without_training_patients_is_refused(validation, test):
    with pytest.raises(ValueError, match="at least one training patient, but 2 of 2"):
        split_patients(people("a", "b"), 0, validation, test)


@pytest.mark.parametrize("share", [-1, 1.0, -0.1])
def test_a_share_that_makes_no_sense_is_refused(share):
    with pytest.raises(ValueError, match="test must be a number of patients or a fraction"):
        split_patients(people("a", "b", "c"), seed=0, test=share)


@pytest.mark.parametrize("count", [4, 7, 8, 21])
@pytest.mark.parametrize("folds", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 5])
def test_over_all_folds_everyone_is_tested_once(count, folds, seed):
    names = [f"BraTS-GLI-{n // 2:05d}-{n % 2:03d}" for n in range(2 * count)]
    patients = [replace(patient, source="BraTS23") for patient in people(*names)]
    splits = [
        split_patients(patients, seed, validation=1, folds=folds, fold=fold)
        for fold in range(1, folds + 1)
    ]
    assert splits == [
        split_patients(patients[::-1], seed, validation=1, test=0.5, folds=folds, fold=fold)
        for fold in range(1, folds + 1)
    ]
    assert sorted(p.patient_id for split in splits for p in split["test"]) == names
    sizes = [len({p.person for p in split["test"]}) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    for split in splits:
        parts = [{p.person for p in members} for members in split.values()]
        assert len(parts[1]) == 1 and sum(map(len, parts)) == len(set.union(*parts)) == count


def test_persons_of_a_fold_depend_on_the_seed():
    patients = people(*(f"p{n:02d}" for n in range(20)))
    hashes = {split_hash(split_patients(patients, s, folds=4, fold=2)) for s in range(3)}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (4, 0, "split.fold must be 1 to 4, the number of folds, got 0"),
        (4, 5, "split.fold must be 1 to 4, the number of folds, got 5"),
        (1, 1, "split.folds must be 2 to the number of patients, 6, or 0 for none, got 1"),
        (7, 1, "split.folds must be 2 to the number of patients, 6, or 0 for none, got 7"),
        (0, 2, "or 0 for none, got 0 and split.fold=2"),
        (-2, 1, "or 0 for none, got -2 and split.fold=1"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(folds, fold, message):
    with pytest.raises(ValueError, match=message):
        split_patients(people(*"abcdef"), seed=0, validation=1, folds=folds, fold=fold)


def test_a_fold_leaves_someone_to_train_on():
    with pytest.raises(ValueError, match="at least one training patient, but 6 of 6"):
        split_patients(people(*"abcdef"), seed=0, validation=3, folds=2, fold=1)


def test_time_points_of_one_person_stay_together():
    names = [f"BraTS-GLI-{person:05d}-{visit:03d}" for person in range(9) for visit in range(2)]
    patients = [replace(patient, source="BraTS23") for patient in people(*names)]
    split = split_patients(patients, seed=0, validation=2, test=3)
    assert [len(members) for members in split.values()] == [8, 4, 6]
    assert len({p.person for p in split["test"]}) == 3


def test_a_written_split_is_read_back(tmp_path):
    patients = people(*"abcdef")
    split = split_patients(patients, seed=1)
    path = write_split(split, tmp_path / "split.json")
    assert read_split(path, patients[::-1]) == split
    assert json.loads(path.read_text())["sha256"] == split_hash(split)


def test_an_edited_split_is_refused(tmp_path):
    path = write_split(split_patients(people(*"abcdef"), seed=1), tmp_path / "split.json")
    content = json.loads(path.read_text())
    content["train"].append(content["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="it was edited"):
        read_split(path, people(*"abcdef"))


def test_a_patient_in_two_splits_or_unknown_here_is_refused(tmp_path):
    patients = people(*"abc")
    split = {"train": patients[:2], "validation": [], "test": patients[1:]}
    path = write_split(split, tmp_path / "split.json")
    with pytest.raises(ValueError, match="b is in train and in test"):
        read_split(path, patients)
    with pytest.raises(ValueError, match="c not found among the 2 patients"):
        read_split(path, patients[:2])


@pytest.mark.parametrize("text", ["", "[]", '{"train": []}'])
def test_a_file_that_is_no_split_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match="a split file is JSON with the keys train"):
        read_split(tmp_path / "split.json", [])


def test_a_split_that_is_not_there_is_told_with_who_leaves_one(tmp_path):
    with pytest.raises(ValueError, match=r"split.json: there is no such file; every run of train"):
        read_split(tmp_path / "split.json", [])


def test_a_model_may_come_from_this_split_or_from_strangers_only(tmp_path):
    patients = people(*"abcdef")
    split = split_patients(patients, seed=1)
    write_split(split, tmp_path / "split.json")
    refuse_other_split(tmp_path, split)
    refuse_other_split(tmp_path, split_patients(people(*"uvwxyz"), seed=1))
    turned = {"train": split["test"], "validation": [], "test": split["train"]}
    for others in (turned, split_patients(people(*"fuvwxyz"), seed=1)):
        with pytest.raises(ValueError, match="another split of the same patients"):
            refuse_other_split(tmp_path, others)


def test_what_a_model_started_from_is_remembered_however_long_ago(tmp_path):
    first, strangers = (split_patients(people(*names), seed=1) for names in ("abcdef", "uvwxyz"))
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    write_split(first, folders[0] / "split.json")
    write_split(strangers, folders[1] / "split.json", sources=[folders[0]])
    write_split(strangers, folders[2] / "split.json", sources=[folders[1], folders[1]])
    assert len(json.loads((folders[2] / "split.json").read_text())["earlier"]) == 1
    refuse_other_split(folders[2], strangers)
    refuse_other_split(folders[2], first)
    others = {"train": first["test"], "validation": [], "test": first["train"]}
    with pytest.raises(ValueError, match="or what it started from, was trained on another split"):
        refuse_other_split(folders[2], others)


def test_a_split_file_without_earlier_splits_is_read(tmp_path):
    patients = people(*"abcdef")
    split = split_patients(patients, seed=1)
    path = write_split(split, tmp_path / "split.json")
    content = json.loads(path.read_text())
    del content["earlier"]
    path.write_text(json.dumps(content))
    assert read_split(path, patients) == split


def test_a_file_of_a_split_takes_the_place_of_its_numbers(tmp_path):
    patients = people(*(f"p{n}" for n in range(6)))
    parts = {"train": patients[:2], "validation": patients[2:3], "test": patients[4:]}
    path = write_split(parts, tmp_path / "split.json")
    assert split_patients(patients, seed=9, validation=0.5, test=3, file=str(path)) == parts
