"""The command `rasalore label`: what it asks for, compares, and says at the end."""

import sys
from pathlib import Path
from typing import Any

import pytest
from labelled_scans import SHOWN, make_patients
from space import save_model

from modeling_rasalore.cli import main
from modeling_rasalore.labelling import page
from modeling_rasalore.labelling.desk import LabelDesk
from modeling_rasalore.labelling.session import labelling

TABLE = "volume,slice_index,label\nann,2,healthy\nann,3,unhealthy\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[LabelDesk]:
    """Desks that were served, instead of a server that waits for an interrupt."""
    pytest.importorskip("gradio")
    desks: list[LabelDesk] = []

    def serve(desk: LabelDesk, port: int | None, browser: bool) -> None:
        desks.append(desk)
        if desk.show_scan(0).get("marks"):
            desk.session.press(0, "healthy", SHOWN[0])

    monkeypatch.setattr(page, "serve", serve)
    return desks


def test_check_prints_agreement_and_kappa(tmp_path: Path, capsys: Any) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(TABLE)
    assert main(["label", "--check", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0
    printed = capsys.readouterr().out
    assert "agreement on 100.0% of 2 slices" in printed and "Cohen's kappa 1.00" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--check", "a.csv"], "--check compares two tables, got 1 paths."),
        (["a", "b"], "label takes one folder of scans, got 2 paths."),
        (["scans", "--modality", "pet"], "--modality must be one of t1, t1ce, t2, flair, got pet."),
        (["nowhere"], "the data root must be a folder, got nowhere, which is not there."),
    ],
)
def test_words_that_make_no_sense_are_one_line(
    words: list[str], sentence: str, capsys: Any
) -> None:
    assert main(["label", *words]) == 1
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_sequence_that_no_scan_shows_and_ports_that_are_none_are_refused(
    tmp_path: Path, capsys: Any
) -> None:
    make_patients(tmp_path)
    assert main(["label", str(tmp_path), "--modality", "t1"]) == 1
    assert "is of t1, only of flair" in capsys.readouterr().err
    assert main(["label", str(tmp_path), "--port", "99999"]) == 2


def test_without_gradio_one_line_says_what_to_install(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["label", str(tmp_path)]) == 1
    assert "pip install 'rasalore[demo]'" in capsys.readouterr().err


def test_the_table_lies_with_the_scans_and_the_end_says_how_far(
    tmp_path: Path, capsys: Any, served: list[LabelDesk]
) -> None:
    make_patients(tmp_path)
    (tmp_path / "slice_labels.csv").write_text("volume,slice_index,label\nbob,5,healthy\n")
    assert main(["label", str(tmp_path), "--labeller", "kim"]) == 0
    assert f"2 of 3 scans labelled; they are in {tmp_path / 'slice_labels.csv'}" in (
        capsys.readouterr().out
    )
    assert served[0].session.book.labeller == "kim"
    assert "ann,2,healthy" in (tmp_path / "slice_labels.csv").read_text()


def test_scans_that_could_not_be_shown_are_listed_at_the_end(
    tmp_path: Path, capsys: Any, served: list[LabelDesk]
) -> None:
    make_patients(tmp_path)
    next(tmp_path.glob("ann/*")).write_bytes(b"no scan")
    main(["label", str(tmp_path), "--out", str(tmp_path / "kim.csv")])
    assert "not labelled: ann: " in capsys.readouterr().out
    assert not (tmp_path / "kim.csv").exists() and served


def test_next_orders_unlabelled_scans_and_says_why(
    tmp_path: Path, capsys: Any, served: list[LabelDesk]
) -> None:
    make_patients(tmp_path / "scans")
    model = save_model(tmp_path / "model")
    (tmp_path / "scans" / "slice_labels.csv").write_text(TABLE)
    main(["label", str(tmp_path / "scans"), "--next", "1", "--model", str(model)])
    printed = capsys.readouterr().out
    assert "1. bob: mean entropy" in printed or "1. cid: mean entropy" in printed
    assert "2. " not in printed
    assert "no random sample" in printed
    session = served[0].session
    chosen = [patient.patient_id for patient in session.patients]
    assert len(chosen) == 1 and session.reasons[chosen[0]].startswith("mean entropy")


def test_somebody_else_who_labels_is_one_line(
    tmp_path: Path, capsys: Any, served: list[LabelDesk]
) -> None:
    patients = make_patients(tmp_path)
    with labelling(tmp_path / "slice_labels.csv", patients, "lee"):
        assert main(["label", str(tmp_path)]) == 1
    assert "is being labelled by lee since" in capsys.readouterr().err
    assert served == []
