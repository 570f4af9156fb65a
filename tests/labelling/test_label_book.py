"""Table and journal on disk: complete after every key, whatever happens in between."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelled_scans import SHOWN, make_patients

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.labelling import table as table_module
from modeling_rasalore.labelling.journal import journal_of, read_history
from modeling_rasalore.labelling.session import LabelSession, labelling
from modeling_rasalore.labelling.table import LabelBook, open_book

LESION = {k: int(4 <= k <= 6) for k in range(SHOWN[0], SHOWN[1] + 1)}


@pytest.fixture
def patients(tmp_path: Path) -> list[Patient]:
    return make_patients(tmp_path / "scans")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scans" / "slice_labels.csv"


def begin(path: Path, patients: list[Patient]) -> LabelSession:
    session = LabelSession(open_book(path, patients, "kim"), patients)
    for number in range(len(patients)):
        session.show(number, SHOWN)
    return session


def mark_lesion(session: LabelSession, number: int = 0) -> None:
    for action, index in (("begin", 4), ("end", 6), ("finish", 6)):
        session.press(number, action, index)


def read(path: Path) -> dict[str, dict[int, int]]:
    """Patient -> labels as training reads them."""
    return {p.patient_id: p.slice_labels or {} for p in find_patients(path.parent)}


def test_the_table_is_what_training_reads(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    session.press(1, "healthy", 2)
    session.press(1, "unsure", 3)
    assert read(path) == {"ann": LESION, "bob": dict.fromkeys([2, *range(4, 12)], 0), "cid": {}}
    first = path.read_text().splitlines()[:4]
    assert first == [
        "volume,slice_index,label",
        "ann,2,healthy",
        "ann,3,healthy",
        "ann,4,unhealthy",
    ]


def test_every_key_is_on_disk_before_it_is_answered(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    for action, index, expected in (
        ("begin", 4, {4: 1}),
        ("end", 6, {4: 1, 5: 1, 6: 1}),
        ("finish", 6, LESION),
    ):
        session.press(0, action, index)
        assert read(path)["ann"] == expected


def test_the_journal_says_who_when_and_what(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    session.press(0, "begin", 4)
    session.help(0)
    session.press(0, "end", 6)
    lines = [json.loads(line) for line in journal_of(path).read_text().splitlines()]
    assert [(line["labeller"], line["action"], line["slice"]) for line in lines] == [
        ("kim", "begin", 4),
        ("kim", "end", 6),
    ]
    assert [line["suggestion"] for line in lines] == [False, True]
    assert lines[0]["time"] <= lines[1]["time"] and lines[0]["time"].endswith("+00:00")
    assert read_history(journal_of(path)).helped == {"ann"}


def test_what_was_seen_counts_in_the_next_session_too(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    session.help(0)
    session.press(0, "begin", 4)
    begin(path, patients).press(0, "end", 6)
    assert json.loads(journal_of(path).read_text().splitlines()[-1])["suggestion"] is True


def test_labelling_goes_on_where_it_was(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    session.press(1, "begin", 7)
    again = begin(path, patients)
    assert again.book.notes == []
    assert [again.marks_of(number) for number in range(3)] == [
        session.marks_of(number) for number in range(3)
    ]
    assert again.undo() == 1 and again.undo() == 0
    assert read(path)["ann"] == {4: 1, 5: 1, 6: 1}


def test_a_table_that_a_kill_left_behind_the_journal_is_written_anew(
    path: Path, patients: list[Patient]
) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    before = path.read_bytes()
    session.press(1, "healthy", 2)
    path.write_bytes(before)
    again = begin(path, patients)
    assert again.book.notes == [] and again.marks_of(1).finished
    assert set(read(path)["bob"].values()) == {0}


def test_an_undo_that_a_kill_kept_from_the_table_counts(
    path: Path, patients: list[Patient]
) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    session.press(1, "healthy", 2)
    before = path.read_bytes()
    session.undo()
    path.write_bytes(before)
    assert begin(path, patients).marks_of(1).labels == {}
    assert read(path) == {"ann": LESION, "bob": {}, "cid": {}}


def test_half_a_line_of_the_journal_costs_that_line_alone(
    path: Path, patients: list[Patient]
) -> None:
    mark_lesion(begin(path, patients))
    with journal_of(path).open("a") as journal:
        journal.write('{"time": "2026-')
    begin(path, patients).press(1, "begin", 3)
    assert begin(path, patients).marks_of(1).begun == 3
    assert read(path)["ann"] == LESION


def test_a_missing_table_is_written_from_the_journal_and_that_is_said(
    path: Path, patients: list[Patient]
) -> None:
    mark_lesion(begin(path, patients))
    path.unlink()
    assert "was missing" in begin(path, patients).book.notes[0]
    assert read(path)["ann"] == LESION


def test_what_others_changed_in_the_table_counts_and_is_said(
    path: Path, patients: list[Patient]
) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    mark_lesion(session, 1)
    path.write_text(path.read_text().replace("ann,7,healthy", "ann,7,unhealthy"))
    again = begin(path, patients)
    assert "changed elsewhere: its labels of ann count" in again.book.notes[0]
    assert again.marks_of(0).labels == read(path)["ann"] == LESION | {7: 1}
    assert again.marks_of(1).labels == LESION
    assert begin(path, patients).book.notes == []


def test_a_table_of_others_is_taken_over_and_a_copy_stays(
    path: Path, patients: list[Patient]
) -> None:
    given = "volume;slice_index;label;remark\nann_flair.nii.gz;3;1;sure\nbob;5;healthy;\n"
    path.write_text(given)
    session = begin(path, patients)
    assert read(path) == {"ann": {3: 1}, "bob": {5: 0}, "cid": {}}
    assert path.with_name("slice_labels_before.csv").read_text() == given
    assert session.book.notes == [
        f"{path} was not written by this command: a copy stays as slice_labels_before.csv"
    ]
    session.press(0, "begin", 6)
    session.undo()
    assert begin(path, patients).marks_of(0).labels == {3: 1}


def test_a_volume_that_is_no_patient_is_refused(path: Path, patients: list[Patient]) -> None:
    path.write_text("volume,slice_index,label\nzoe,3,healthy\n")
    with pytest.raises(ValueError, match="'zoe' is no patient"):
        begin(path, patients)


def test_a_journal_of_other_scans_is_refused(path: Path, patients: list[Patient]) -> None:
    mark_lesion(begin(path, patients))
    with pytest.raises(ValueError, match="has marks of ann, not in this folder"):
        begin(path, patients[1:])


def test_taking_back_the_only_mark_leaves_no_table(path: Path, patients: list[Patient]) -> None:
    session = begin(path, patients)
    session.press(0, "begin", 4)
    session.undo()
    assert not path.exists()
    assert begin(path, patients).marks_of(0).labels == {}


# --- No room --------------------------------------------------------------------------------------
def no_room(*_: Any) -> Any:
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("where", ["write_rows", "append_line", "replace"])
def test_a_mark_that_finds_no_room_changes_nothing(
    path: Path, patients: list[Patient], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    files = {p: p.read_bytes() for p in (path, journal_of(path))}
    with monkeypatch.context() as patch:
        target: Any = os if where == "replace" else table_module
        patch.setattr(target, where, no_room)
        with pytest.raises(OSError, match="No space left"):
            session.press(1, "begin", 4)
    assert {p: p.read_bytes() for p in files} == files
    assert [p.name for p in path.parent.glob(".*csv")] == []  # no draft
    assert session.marks_of(1).labels == {}
    session.press(1, "begin", 5)
    assert begin(path, patients).marks_of(1).begun == 5


def test_half_a_line_that_found_no_room_is_taken_back(
    path: Path, patients: list[Patient], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(path, patients)
    mark_lesion(session)
    before = journal_of(path).read_bytes()
    sync: Callable[[int], None] = os.fsync
    calls: list[int] = []

    def sync_once(file: int) -> None:
        calls.append(file)
        no_room() if len(calls) == 2 else sync(file)  # the table, then the journal

    monkeypatch.setattr(os, "fsync", sync_once)
    with pytest.raises(OSError, match="No space left"):
        session.press(1, "begin", 4)
    assert journal_of(path).read_bytes() == before
    assert read(path) == {"ann": LESION, "bob": {}, "cid": {}}


# --- Two people -----------------------------------------------------------------------------------
def test_a_second_person_is_told_who_labels(path: Path, patients: list[Patient]) -> None:
    with labelling(path, patients, "kim") as book:
        assert isinstance(book, LabelBook)
        with (
            pytest.raises(ValueError, match="is being labelled by kim since 20"),
            labelling(path, patients, "lee"),
        ):
            pass
    with labelling(path, patients, "lee") as book:
        assert book.history.opened["labeller"] == "lee"
