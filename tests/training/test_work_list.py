"""The list of slices that a run learns from."""

import logging
from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore.data.patient import Patient
from modeling_rasalore.training.work_list import WorkList


def make_list(labels_file: bool = False) -> WorkList:
    """Two patients: two healthy slices and an unnamed one; an unhealthy slice."""
    named = {0: 0, 1: 0} if labels_file else None
    patients = [
        Patient("a", {"t2": Path("a")}, slice_labels=named),
        Patient("b", {"t2": Path("b")}, slice_labels={4: 1} if labels_file else None),
    ]
    return WorkList.from_facts(patients, [[(0, 0, 9.0), (1, 0, 8.0), (2, -1, 7.0)], [(4, 1, 6.0)]])


def test_rows_are_chosen_by_label_and_by_patient() -> None:
    work = make_list()
    assert [work.key(row) for row in range(4)] == [("a", 0), ("a", 1), ("a", 2), ("b", 4)]
    assert work.select_labels({0, 1}).brain_area.tolist() == [9, 8, 6]
    assert work.of_patients(work.patients[1:]).key(0) == ("b", 4)
    assert work.select_rows([3, 0]).slice_index.tolist() == [0, 4]
    assert work.count_labels() == {-1: 1, 0: 2, 1: 1}


def test_slices_without_a_label_in_the_file_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_list(labels_file=False).check_labels()
        assert caplog.text == ""
        make_list(labels_file=True).check_labels()
    assert "1 slices are not named in slice_labels.csv" in caplog.text


def test_one_label_alone_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="got 2 and 0 in 1 patients"):
        make_list().select_labels({0, -1}).check_labels()


def test_a_run_keeps_to_the_list_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_list()
    monkeypatch.setattr(WorkList, "of", lambda *_: work)
    stored = WorkList.stored(tmp_path / "list.parquet", work.patients, "t2", 0)
    assert stored.fingerprint() == work.fingerprint()
    monkeypatch.setattr(WorkList, "of", lambda *_: pytest.fail("the scans were read again"))
    again = WorkList.stored(tmp_path / "list.parquet", work.patients, "t2", 0)
    np.testing.assert_array_equal(again.brain_area, work.brain_area)
    assert again.fingerprint() == work.fingerprint()


def test_the_fingerprint_sees_every_fact() -> None:
    work = make_list()
    changed = make_list()
    changed.label[0] = 1
    assert work.fingerprint() != changed.fingerprint()
    assert work.fingerprint() != work.select_rows([0, 1, 2]).fingerprint()
