"""Keep the journal of a table of slice labels: who marked what and when, a line per key press.

Each line holds all marks of its scan, so the last one says what is known of it and the one before
what an undo returns to.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..prediction.journal import close_line, read_lines
from .marks import Marks

ENDING = ".journal.jsonl"
OPENED, UNDO = "opened", "undo"
# Marks that come from the table; None where the table was changed by others and counts.
TABLE = "table"


@dataclass
class History:
    """What a journal tells.

    Attributes:
        marks: patient_id -> its marks, of scans that were marked.
        before: patient_id and marks (None: none) before each key press that is not undone.
        last: patient_id and marks before the last line, which a kill may have kept from the table;
            None where the table is known to hold it.
        helped: patient_ids of marks that were made after a suggestion was shown.
        opened: the line that the last labeller began with; {} without any.
    """

    marks: dict[str, Marks] = field(default_factory=dict)
    before: list[tuple[str, Marks | None]] = field(default_factory=list)
    last: tuple[str, Marks | None] | None = None
    helped: set[str] = field(default_factory=set)
    opened: dict[str, Any] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take one line in."""
        if line["action"] == OPENED:
            self.opened, self.last = dict(line), None
            return
        patient_id, content = line["volume"], line["marks"]
        before = self.marks.get(patient_id)
        if line["action"] == UNDO:
            self.before.pop()
        elif line["action"] != TABLE:
            self.before.append((patient_id, before))
        elif content is None:  # what was marked before the table was changed is of no use
            self.before = [entry for entry in self.before if entry[0] != patient_id]
        if content is None:
            self.marks.pop(patient_id, None)
        else:
            self.marks[patient_id] = Marks.of_json(content)
        self.last = None if line["action"] == TABLE else (patient_id, before)
        if line.get("suggestion"):
            self.helped.add(patient_id)


def journal_of(table: Path) -> Path:
    """Return the path of the journal beside a table of slice labels."""
    return table.with_name(f"{table.stem}{ENDING}")


def read_history(path: Path) -> History:
    """Return what the journal at `path` tells; nothing where there is none."""
    history = History()
    for line in read_lines(path) if path.exists() else ():
        history.add(line)
    return history


def make_line(labeller: str, action: str, **content: Any) -> dict[str, Any]:
    """Return a line of now."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"time": time, "labeller": labeller, "action": action, **content}


def append_line(path: Path, line: Mapping[str, Any]) -> int:
    """Append a line to the journal, on disk; returns its length before, for `cut_journal`."""
    close_line(path)
    length = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
    except OSError:
        cut_journal(path, length)
        raise
    return length


def cut_journal(path: Path, length: int) -> None:
    """Take back what was appended after a length in bytes."""
    if path.exists():
        os.truncate(path, length)
