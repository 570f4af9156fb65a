"""Write slice_labels.csv and its journal together, so that neither tells what the other does not.

A key press is on disk in both before it is answered. A kill in between leaves the journal one line
ahead, and the table is written anew when it is opened.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ..data.label_table import COLUMNS
from ..data.labels import LABEL_NAMES, SliceLabels, read_slice_labels
from ..data.patient import Patient
from ..files import replace_file, some
from .journal import (
    TABLE,
    History,
    append_line,
    cut_journal,
    journal_of,
    make_line,
    read_history,
)
from .marks import Marks


@dataclass
class LabelBook:
    """A table of slice labels and its journal.

    Attributes:
        path: of the table.
        patients: patient_ids of the folder, in the table's order.
        labeller: who marks now.
        given: labels that the table has of scans without marks.
        history: what the journal tells.
        notes: what was to be said when it was opened, one sentence each.
    """

    path: Path
    patients: Sequence[str]
    labeller: str
    given: SliceLabels = field(default_factory=dict)
    history: History = field(default_factory=History)
    notes: list[str] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        """The journal beside the table."""
        return journal_of(self.path)

    def labels_of(self, patient_id: str) -> dict[int, int]:
        """Return slice index -> 1 unhealthy or 0 healthy, of slices that have a label."""
        marks = self.history.marks.get(patient_id)
        return self.given.get(patient_id, {}) if marks is None else marks.labels

    def record(self, action: str, patient_id: str, marks: Marks | None, **more: Any) -> None:
        """Put marks of a scan, None for none, into journal and table.

        Args:
            more: what else the line says.

        Raises:
            OSError: no room, or no permission; journal, table and marks are as before.
        """
        labels = {name: self.labels_of(name) for name in self.patients}
        labels[patient_id] = marks.labels if marks else self.given.get(patient_id, {})
        content = marks and marks.as_json()
        line = make_line(self.labeller, action, volume=patient_id, **more, marks=content)
        self._write(labels, line)
        self.history.add(line)

    def _write(self, labels: SliceLabels, line: Mapping[str, Any]) -> None:
        """Append a line to the journal, just before the table with these labels appears."""
        length: int | None = None

        def write(draft: Path) -> None:
            nonlocal length
            write_rows(draft, labels)
            length = append_line(self.journal, line)

        try:
            if any(labels.values()):
                replace_file(self.path, write)
            else:  # a table without rows says nothing, and readers refuse it
                length = append_line(self.journal, line)
                self.path.unlink(missing_ok=True)
        except OSError:
            if length is not None:
                cut_journal(self.journal, length)
            raise


def write_rows(path: Path, labels: SliceLabels) -> None:
    """Write a table of slice labels, and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(compose_rows(labels))
        file.flush()
        os.fsync(file.fileno())


def compose_rows(labels: SliceLabels) -> bytes:
    """Return a table of slice labels: a line per labelled slice."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for patient_id, slices in labels.items():
        rows.writerows((patient_id, index, LABEL_NAMES[slices[index]]) for index in sorted(slices))
    return text.getvalue().encode()


# --- Opening what is there ------------------------------------------------------------------------
def open_book(path: Path, patients: Sequence[Patient], labeller: str) -> LabelBook:
    """Return the table at `path` and its journal, made to agree; neither may be there yet.

    What others changed in the table counts. A table that is missing, or that lacks the journal's
    last line, is written anew. One that was not written here is copied before its first change.

    Raises:
        ValueError: a table that cannot be read for certain, or an unknown volume in table or
            journal.
    """
    book = LabelBook(path, [patient.patient_id for patient in patients], labeller)
    book.history = read_history(book.journal)
    if unknown := sorted(book.history.marks.keys() - set(book.patients)):
        raise ValueError(
            f"{book.journal} has marks of {some(unknown)}, not in this folder of scans; give the "
            "folder that was labelled, or --out another file."
        )
    if path.is_file():
        labels = read_slice_labels(patients, path)
        table = {name: labels.get(name, {}) for name in book.patients}
        _copy_foreign(book, table)
        _take_table(book, table)
    labels = {name: book.labels_of(name) for name in book.patients}
    if any(labels.values()) and not path.is_file():
        book.notes.append(f"{path} was missing: it is written anew from the journal beside it.")
    if any(labels.values()) and (not path.is_file() or path.read_bytes() != compose_rows(labels)):
        replace_file(path, lambda draft: write_rows(draft, labels))
    return book


def _take_table(book: LabelBook, table: SliceLabels) -> None:
    """Let the labels of the table count where they are not those of the journal."""
    changed = []
    for patient_id, labels in table.items():
        marks = book.history.marks.get(patient_id)
        if labels == _labels(marks) or _is_behind(book.history, patient_id, labels):
            continue
        book.given[patient_id] = labels
        if marks is not None:
            changed.append(patient_id)
    for patient_id in changed:
        line = make_line(book.labeller, TABLE, volume=patient_id, marks=None)
        append_line(book.journal, line)
        book.history.add(line)
    if changed:
        book.notes.append(f"{book.path} was changed elsewhere: its labels of {some(changed)} count")


def _is_behind(history: History, patient_id: str, labels: dict[int, int]) -> bool:
    """Whether a table lacks just the last line of the journal, as a kill leaves it."""
    return (
        history.last is not None
        and history.last[0] == patient_id
        and labels == _labels(history.last[1])
    )


def _labels(marks: Marks | None) -> dict[int, int]:
    return marks.labels if marks else {}


def _copy_foreign(book: LabelBook, table: SliceLabels) -> None:
    """Copy a table that is not as this module writes it, with further columns for instance."""
    content = book.path.read_bytes()
    if content == compose_rows({name: table[name] for name in book.patients}):
        return
    names = (f"{book.path.stem}_before{number or ''}.csv" for number in count())
    copy = next(path for path in map(book.path.with_name, names) if not path.exists())
    replace_file(copy, lambda draft: draft.write_bytes(content))
    book.notes.append(f"{book.path} was not written by this command: a copy stays as {copy.name}")
