"""Label slices in the browser: `rasalore label`."""

from functools import partial
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import printable, some
from .saying import one_line_errors

if TYPE_CHECKING:
    from ..labelling.session import LabelSession
    from ..labelling.suggestion import Adviser

NOT_RANDOM = "Scans chosen so are no random sample: judge a model on others."


def label(
    paths: Annotated[
        list[Path], typer.Argument(metavar="SCANS", help="folder of scans; two tables with --check")
    ],
    modality: Annotated[
        str | None, typer.Option(help="sequence whose slices are labelled: t1, t1ce, t2, flair")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="table to write; SCANS/slice_labels.csv if not given")
    ] = None,
    labeller: Annotated[
        str | None, typer.Option(help="who labels, for the journal; the user of this machine")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="folder or repo id of the model that suggests; the package's own"),
    ] = None,
    next_scans: Annotated[
        int, typer.Option("--next", min=0, help="label the scans the model is least sure of")
    ] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="compare the tables of two labellers, and end")
    ] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="of the page")] = None,
    browser: Annotated[bool, typer.Option(help="open the page in the browser")] = True,
) -> None:
    """Label slices of scans as healthy or unhealthy, by keyboard, on a page of this machine.

    Every key press is written at once to slice_labels.csv and a journal beside it; the same command
    goes on where it was.
    """
    with one_line_errors("all marks are in the table"):
        if check:
            if len(paths) != 2:
                raise ValueError(f"--check compares two tables, got {len(paths)} paths.")
            from ..labelling.agreement import describe_agreement

            print(describe_agreement(*paths))
            return
        if len(paths) != 1:
            raise ValueError(f"label takes one folder of scans, got {len(paths)} paths.")
        label_folder(paths[0], modality, out, labeller, model, next_scans, port, browser)


def label_folder(
    folder: Path,
    modality: str | None,
    out: Path | None,
    labeller: str | None,
    model: str | None,
    next_scans: int,
    port: int | None,
    browser: bool,
) -> None:
    """Serve the page for a folder of scans until the user interrupts; see `label`."""
    from ..data.labels import LABELS_FILE
    from ..data.layouts import find_scanned_patients
    from ..files import require_writable
    from ..labelling.desk import LabelDesk
    from ..labelling.page import build_page, serve
    from ..labelling.session import LabelSession, labelling
    from ..scans.naming import MODALITIES

    if modality not in (None, *MODALITIES):
        raise ValueError(f"--modality must be one of {', '.join(MODALITIES)}, got {modality}.")
    build_page()  # says what is not installed before anything else is done
    patients = find_scanned_patients(folder)
    if modality and not any(modality in patient.images for patient in patients):
        shown = sorted({name for patient in patients for name in patient.images})
        raise ValueError(f"no scan in {folder} is of {modality}, only of {', '.join(shown)}.")
    table = out or folder / LABELS_FILE
    require_writable(table.parent)
    with labelling(table, patients, labeller or getuser()) as book:
        for note in book.notes:
            print(printable(note))
        session = LabelSession(book, patients)
        if next_scans:
            session = choose_next(session, open_adviser(model), modality, next_scans)
        serve(LabelDesk(session, modality, partial(open_adviser, model)), port, browser)
    conclude(session)


def choose_next(
    session: "LabelSession", adviser: "Adviser", modality: str | None, count: int
) -> "LabelSession":
    """Return a session of the unlabelled scans that a model is least sure of; says why."""
    from ..labelling.session import LabelSession
    from ..labelling.suggestion import rank_by_doubt

    left = [p for n, p in enumerate(session.patients) if not session.is_finished(n)]
    doubts, unread = rank_by_doubt(adviser, left, modality)
    for patient, reason in unread:
        print(f"not ranked: {printable(f'{patient.patient_id}: {reason}')}")
    if not doubts:
        raise ValueError("no scan is left that can be read and has no labels; there is no next.")
    for rank, doubt in enumerate(doubts[:count], 1):
        print(f"{rank}. {printable(doubt.patient.patient_id)}: {doubt.reason}")
    print(NOT_RANDOM)
    reasons = {doubt.patient.patient_id: doubt.reason for doubt in doubts}
    return LabelSession(session.book, [doubt.patient for doubt in doubts[:count]], reasons)


def conclude(session: "LabelSession") -> None:
    """Say what is labelled, what could not be shown, and where the labels are."""
    finished = sum(map(session.is_finished, range(len(session.patients))))
    where = f"; they are in {session.book.path}" if session.book.path.is_file() else ""
    print(f"{finished} of {len(session.patients)} scans labelled{where}")
    for name, reason in session.skipped.items():
        print(f"not labelled: {printable(f'{name}: {reason}')}")
    if helped := sorted(session.book.history.helped):
        print(f"labelled after the model's suggestion was shown: {some(helped)}")


def open_adviser(model: str | None) -> "Adviser":
    """Return what suggests labels: a model by folder or repo id; None: the package's own."""
    from ..labelling.suggestion import Adviser
    from ..prediction.loading import load_model

    return Adviser(*load_model(model))
