"""Persons of two data sets, by a table, never lie on both sides of training and test."""

import csv
import json
from pathlib import Path

import pytest
from small_study import benchmark, in_this_process, write_scans

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.persons import read_person_table, tell_persons
from modeling_rasalore.data.splits import (
    SPLITS,
    read_split,
    refuse_known_persons,
    refuse_other_split,
    split_patients,
    write_split,
)
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.studies import study
from modeling_rasalore.studies.recipe import StudyRecipe

SHARED = Path(__file__).parents[3] / "shared" / "data"
LINES = ("a1,b1,", "a3,,", "a4,b4,c4")  # two of them are also elsewhere, one under two names


def table(folder: Path, *lines: str, header: str = "patient,same_person_in_b,same_person") -> Path:
    path = folder / "persons.csv"
    path.write_text("\n".join([header, *lines]))
    return path


def people(*names: str) -> list[Patient]:
    return [Patient(name, {"t2": Path(f"{name}.nii.gz")}) for name in names]


HERE = people("a1", "a2", "a3", "a4", "a5", "a6")
THERE = people("b1", "b4", "b5")


# --- The table --------------------------------------------------------------------------------
def test_a_table_joins_all_names_of_a_person_over_lines_and_columns(tmp_path: Path) -> None:
    found = read_person_table(table(tmp_path, "a1,b1,", "a2,,", "a3,b3,c3", "d1,c3,"))
    assert found.names["a1"] == {"a1", "b1"}
    assert found.names["b3"] == {"a3", "b3", "c3", "d1"}
    assert "a2" not in found.names and found.owned == {"a1", "a3", "d1"}


def test_a_table_may_name_visits_and_have_other_separators(tmp_path: Path) -> None:
    header = "age;patient_id;same_person_in_b"
    path = table(tmp_path, "7;TCGA_CS_4942_19970222;sub-01_ses-2", header="\ufeff" + header)
    assert read_person_table(path).names["TCGA_CS_4942"] == {"TCGA_CS_4942", "sub-01"}


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("patient,age", "a1,7", "must name one column patient and at least one that begins with"),
        ("name,same_person", "a1,b1", "must name one column patient"),
        ("patient,same_person", ",b1", "line 2: b1 is the same person as nobody"),
        ("patient,same_person", "a1,", "gives no patient another name"),
    ],
)
def test_a_table_that_tells_nothing_is_refused(
    tmp_path: Path, header: str, line: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_person_table(table(tmp_path, line, header=header))


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a CSV file of persons, got .*: not there"):
        read_person_table(tmp_path / "persons.csv")


# --- Who has a part ---------------------------------------------------------------------------
def test_patients_whose_other_scan_is_elsewhere_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = tell_persons(HERE, table(tmp_path, *LINES))
    assert [p.patient_id for p in told if p.left_out] == ["a1", "a4"]
    words = "2 of 6 patients left out, who are in another data set as well: a1 (b1), a4 (b4, c4)"
    assert words in caplog.text


def test_the_other_data_set_keeps_its_patients_and_knows_their_names(tmp_path: Path) -> None:
    told = tell_persons(THERE, table(tmp_path, *LINES))
    assert not any(p.left_out for p in told)
    assert [p.other_names for p in told] == [("a1",), ("a4", "c4"), ()]
    assert [p.person for p in told] == ["b1", "b4", "b5"]


def test_a_split_is_that_of_the_patients_who_are_left(tmp_path: Path) -> None:
    told = tell_persons(HERE, table(tmp_path, *LINES))
    rest = people("a2", "a3", "a5", "a6")
    for seed in range(5):
        split, expected = (split_patients(p, seed, 1, folds=2, fold=1) for p in (told, rest))
        ids = [
            [[p.patient_id for p in made[name]] for name in SPLITS] for made in (split, expected)
        ]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("seed", range(6))
def test_both_scans_of_a_person_in_one_folder_stay_together(tmp_path: Path, seed: int) -> None:
    told = tell_persons([*HERE, *THERE], table(tmp_path, "a1,b1,", "a4,b4,"))
    assert not any(p.left_out for p in told)
    for fold in (1, 2, 3):
        split = split_patients(told, seed, validation=1, folds=3, fold=fold)
        parts = {p.patient_id: name for name in SPLITS for p in split[name]}
        assert parts["a1"] == parts["b1"] and parts["a4"] == parts["b4"]
        assert len(parts) == 9


def test_a_table_that_leaves_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves nobody here: all 2 patients are in another"):
        tell_persons(people("a1", "a4"), table(tmp_path, *LINES))


# --- Stored splits, and networks --------------------------------------------------------------
def test_a_stored_split_with_somebody_left_out_is_refused_by_name(tmp_path: Path) -> None:
    path = write_split(split_patients(HERE, 0, validation=1, test=2), tmp_path / "split.json")
    told = tell_persons(HERE, table(tmp_path, *LINES))
    with pytest.raises(ValueError, match=r"leaves out.* a. \(b.*make a new split") as caught:
        read_split(path, told)
    assert "a1 (b1)" in str(caught.value) and "a4 (b4, c4)" in str(caught.value)
    path = write_split(split_patients(told, 0, validation=1, test=2), tmp_path / "split.json")
    assert sum(map(len, read_split(path, told).values())) == 4


def test_a_stored_split_with_both_scans_of_a_person_apart_is_refused(tmp_path: Path) -> None:
    first, second = people("a1", "b1")
    split = {"train": [first], "validation": [], "test": [second]}
    path = write_split(split, tmp_path / "split.json")
    assert read_split(path, [first, second])  # nothing tells that they are one person
    told = tell_persons([first, second], table(tmp_path, "a1,b1,"))
    with pytest.raises(ValueError, match=r"a1 \(the same person as b1\) is in train and in test"):
        read_split(path, told)


def test_a_start_that_knows_a_person_by_another_name_is_refused(tmp_path: Path) -> None:
    for name, sources in (("first", []), ("second", ["first"])):
        (tmp_path / name).mkdir()
        learned = split_patients(HERE if name == "first" else people("x", "y", "z"), 0)
        folders = [tmp_path / source for source in sources]
        write_split(learned, tmp_path / name / "split.json", folders)
    told = tell_persons(THERE, table(tmp_path, *LINES))
    split = split_patients(told, 0, validation=1, test=1)
    for folder in (tmp_path / "first", tmp_path / "second"):  # itself, and what it started from
        refuse_other_split(folder, split_patients(THERE, 0, validation=1, test=1))  # untold
        for refuse in (refuse_other_split, refuse_known_persons):
            with pytest.raises(
                ValueError, match=r"scans of the same persons: b1 \(a1\), b4 \(a4\)"
            ):
                refuse(folder, split if refuse is refuse_other_split else told)
    (tmp_path / "third").mkdir()
    left = tell_persons(HERE, table(tmp_path, *LINES))
    write_split(split_patients(left, 0, validation=1, test=1), tmp_path / "third" / "split.json")
    refuse_other_split(tmp_path / "third", split)
    refuse_known_persons(tmp_path / "third", told)


# --- The benchmark on another data set --------------------------------------------------------
@pytest.fixture
def two_sets(tmp_path: Path) -> tuple[Path, Path]:
    """Six patients, and three of another data set, one of whom is the table's same person."""
    ours = write_scans(tmp_path / "ours", 6)
    theirs = write_scans(tmp_path / "theirs", 3, seed=1)
    for path in sorted(theirs.rglob("BraTS2021_*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("2021_0", "2021_1")))
    table(tmp_path, "BraTS2021_00002,BraTS2021_10001", header="patient,same_person")
    return ours, theirs


def score(trained: Path, scored: Path, *told: str) -> list[str]:
    """Return who is scored of a data set after a split of another one, its chance level."""
    folder = trained.parent / f"of_{trained.name}{len(told)}"
    folder.mkdir(exist_ok=True)
    persons = str(trained.parent / "persons.csv") if told else ""
    split = split_patients(find_patients(trained, persons), 0, validation=1, test=1)
    write_split(split, folder / "split.json")
    words = [f"data.root={trained}", f"cross.root={scored}", "data.skip_slices=1",
             f"stage1={folder}", f"out={folder / 'out'}", "systems=chance"]  # fmt: skip
    out = benchmark([*words, f"data.same_person={trained.parent / 'persons.csv'}"])
    return list(json.loads((out / "results.json").read_text())["meta"]["test_patients"])


def test_transfer_between_two_sets_never_meets_a_person_twice(
    two_sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    ours, theirs = two_sets
    assert score(ours, theirs, "told") == [f"BraTS2021_1000{n}" for n in range(3)]
    assert score(theirs, ours, "told") == [f"BraTS2021_0000{n}" for n in (0, 1, 3, 4, 5)]
    with pytest.raises(ValueError, match=r"BraTS2021_00002 \(BraTS2021_10001\); make a new split"):
        score(ours, theirs)


def test_a_study_says_who_is_left_out(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    words = [f"data.root={two_sets[0]}", f"data.same_person={tmp_path / 'persons.csv'}",
             f"out={tmp_path / 'out'}", f"cross=[{two_sets[1]}]"]  # fmt: skip
    plan = study.plan_study(load_recipe(StudyRecipe, words))
    assert "1 patients, BraTS2021_00002" in plan.left_out


# --- The real table ---------------------------------------------------------------------------
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real scans of ../shared/data")
def test_the_eight_people_of_both_real_sets_are_left_out_of_one_and_known_in_the_other() -> None:
    persons = SHARED / "tcga_lgg" / "patients.csv"
    with persons.open() as file:
        twins = {row["patient"]: row["same_person_in_brats2021"] for row in csv.DictReader(file)}
    twins = {own: other for own, other in twins.items() if other}
    assert len(twins) == 8
    tcga = find_patients(SHARED / "tcga_lgg", persons)
    assert {p.patient_id for p in tcga if p.left_out} == twins.keys()
    split = split_patients(tcga, 0, validation=3, folds=5, fold=1)
    assert sum(map(len, split.values())) == 82
    brats = find_patients(SHARED / "brats2021", persons)
    assert {p.patient_id for p in brats} == set(twins.values())
    assert not any(p.left_out for p in brats)
    assert all(len(p.other_names) == 1 for p in brats)
