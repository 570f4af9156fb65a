"""What the page is answered: scans, skipped ones, windows, sentences instead of errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_scans import SHOWN, SLICES, make_patients

from modeling_rasalore.labelling.desk import LabelDesk
from modeling_rasalore.labelling.journal import journal_of
from modeling_rasalore.labelling.session import LabelSession, labelling
from modeling_rasalore.labelling.suggestion import Adviser


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LabelDesk]:
    patients = make_patients(tmp_path / "scans")
    with labelling(tmp_path / "slice_labels.csv", patients, "kim") as book:
        yield LabelDesk(LabelSession(book, patients))


def press(
    desk: LabelDesk, action: str, number: int, index: int, window: str | None = None
) -> dict[str, Any]:
    """The answer to a key on the page with this word; None: on that which was opened last."""
    window = desk._window if window is None else window
    answer = desk.press({"window": window, "action": action, "number": number, "slice": index})
    json.dumps(answer)
    return answer


def test_a_scan_comes_with_all_that_the_page_shows(desk: LabelDesk) -> None:
    assert desk.open_page()["number"] == 0
    answer = desk.show_scan(0)
    assert (answer["volume"], answer["count"], answer["sequences"]) == ("ann", SLICES, ["flair"])
    assert (answer["first"], answer["last"]) == SHOWN
    assert answer["progress"] == {"finished": 0, "total": 3, "next": 1, "skipped": []}
    assert desk.draw(0, "flair").startswith(b"\x89PNG")
    json.dumps(answer)


def test_labelling_leads_through_all_scans_and_ends(desk: LabelDesk) -> None:
    desk.open_page()
    following = []
    for number in range(3):
        desk.show_scan(number)
        press(desk, "healthy", number, 4)
        following.append(press(desk, "finish", number, 4)["progress"]["next"])
    assert following == [1, 2, None]


def test_a_scan_that_cannot_be_read_is_listed_and_the_next_one_comes(
    desk: LabelDesk, tmp_path: Path
) -> None:
    next((tmp_path / "scans").glob("bob/*")).write_bytes(b"no scan")
    desk.open_page()
    desk.show_scan(0)
    answer = desk.show_scan(1)
    assert "the content is plain data" in answer["error"]
    assert answer["progress"]["next"] == 2
    assert [entry["volume"] for entry in answer["progress"]["skipped"]] == ["bob"]


def test_labels_beyond_a_scan_are_said_and_stay(tmp_path: Path) -> None:
    patients = make_patients(tmp_path / "scans")
    table = tmp_path / "slice_labels.csv"
    table.write_text("volume,slice_index,label\nann,0,healthy\nann,99,unhealthy\n")
    before = table.read_text()
    with labelling(table, patients, "kim") as book:
        answer = LabelDesk(LabelSession(book, patients)).show_scan(0)
    assert "labels slice 99 of ann, whose scan has slices 0 to 13" in answer["error"]
    assert table.read_text() == before


def test_a_scan_of_which_a_table_names_lesions_alone_is_left_to_label(tmp_path: Path) -> None:
    patients = make_patients(tmp_path / "scans")
    table = tmp_path / "slice_labels.csv"
    table.write_text("volume,slice_index,label\nann,4,healthy\nann,5,unhealthy\nbob,5,unhealthy\n")
    with labelling(table, patients, "kim") as book:
        session = LabelSession(book, patients)
        assert [session.is_finished(number) for number in range(3)] == [True, False, False]


def test_a_key_that_makes_no_sense_is_answered_with_a_sentence(desk: LabelDesk) -> None:
    desk.open_page()
    desk.show_scan(0)
    assert press(desk, "end", 0, 4)["error"].startswith("E marks the last slice")
    assert press(desk, "begin", 0, 99)["error"].startswith("slices 2 to 11 can be marked")
    assert press(desk, "begin", 7, 4)["error"].startswith("scans have numbers below 3")
    assert "was not" in press(desk, "begin", 2, 4)["error"]  # not shown yet
    assert "error" in desk.press({"window": desk._window, "action": "begin"})
    undone = desk.press({"window": desk._window, "action": "undo"})
    assert undone["error"].startswith("Z takes back")


def test_only_the_page_that_was_opened_last_marks(desk: LabelDesk) -> None:
    first = desk.open_page()["window"]
    desk.show_scan(0)
    second = desk.open_page()["window"]
    assert "opened again elsewhere" in press(desk, "begin", 0, 4, window=first)["error"]
    assert press(desk, "begin", 0, 4, window=second)["marks"]["begun"] == 4


def test_a_page_of_an_earlier_start_marks_nothing(desk: LabelDesk) -> None:
    left_open = desk.open_page()["window"]
    session = desk.session
    again = LabelDesk(session)
    again.show_scan(0)
    for opened in (False, True):  # before and after a page of this start
        assert "opened again elsewhere" in press(again, "begin", 0, 4, window=left_open)["error"]
        assert "opened again elsewhere" in press(again, "begin", 0, 4, window="")["error"]
        if not opened:
            again.open_page()


def test_a_full_disk_is_said_and_the_mark_can_be_made_again(
    desk: LabelDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    desk.open_page()
    desk.show_scan(0)
    with monkeypatch.context() as patch:
        patch.setattr("modeling_rasalore.labelling.table.write_rows", no_room)
        told = press(desk, "begin", 0, 4)["error"]
    assert told.startswith("this mark was not written, all before it are: ")
    assert told.endswith("slice_labels.csv: no space left on device.")
    assert press(desk, "begin", 0, 4)["marks"]["begun"] == 4


def test_undo_leads_back_to_the_scan_of_the_last_mark(desk: LabelDesk) -> None:
    desk.open_page()
    desk.show_scan(0)
    press(desk, "healthy", 0, 4)
    desk.show_scan(1)
    assert desk.press({"window": desk._window, "action": "undo"}) == {"number": 0}
    assert desk.show_scan(0)["marks"]["complete"] is False


def test_without_a_model_a_suggestion_is_a_sentence(desk: LabelDesk) -> None:
    with pytest.raises(ValueError, match="give one with --model"):
        desk.suggest(0)


class Adviser7(Adviser):
    """Says 0.7 everywhere."""

    def __init__(self) -> None:
        self.modality = "flair"

    def predict(self, patient: Any, labelled: str | None) -> Any:
        prediction = type("Prediction", (), {"scores": np.full((SLICES, 28, 24), 0.7, np.float32)})
        return prediction, None


def test_a_suggestion_is_recorded_with_the_marks_that_follow(
    desk: LabelDesk, tmp_path: Path
) -> None:
    desk = LabelDesk(desk.session, None, Adviser7)
    desk.open_page()
    desk.show_scan(0)
    desk.show_scan(1)
    press(desk, "begin", 0, 4)
    assert desk.suggest(0).startswith(b"\x89PNG")
    press(desk, "end", 0, 5)
    press(desk, "begin", 1, 5)
    journal = journal_of(tmp_path / "slice_labels.csv").read_text().splitlines()
    assert [json.loads(line).get("suggestion") for line in journal] == [None, False, True, False]
