"""Lead one labeller through the scans of a folder: marks, undo, what is left, and the lock."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.label_table import HEALTHY
from ..data.patient import Patient
from .journal import OPENED, TABLE, UNDO, append_line, journal_of, make_line, read_history
from .marks import Marks
from .table import LabelBook, open_book


class LabelSession:
    """Scans in the order they are shown, and what is known of their slices.

    Attributes:
        patients: whose scans are shown, by number from 0.
        reasons: patient_id -> why the scan was chosen, in words.
        skipped: patient_id -> why its scan cannot be shown.
    """

    def __init__(
        self, book: LabelBook, patients: Sequence[Patient], reasons: Mapping[str, str] | None = None
    ) -> None:
        self.book, self.patients, self.reasons = book, patients, reasons or {}
        self.skipped: dict[str, str] = {}
        self._shown: dict[str, tuple[int, int]] = {}
        self._helped: set[str] = set()
        self._lock = threading.Lock()  # the server answers in several threads

    def show(self, number: int, shown: tuple[int, int]) -> Marks:
        """Return the marks of a scan, whose first and last slice with brain are `shown`."""
        self._shown[self._name(number)] = shown
        return self.marks_of(number)

    def marks_of(self, number: int) -> Marks:
        """Return the marks of a scan that was shown."""
        name = self._name(number)
        if name not in self._shown:
            raise ValueError(f"a scan is shown before it is marked, and {name} was not.")
        known = self.book.history.marks.get(name)
        return known or Marks.of_labels(self._shown[name], self.book.given.get(name, {}))

    def skip(self, number: int, reason: str) -> None:
        """Note that a scan cannot be shown."""
        self.skipped[self._name(number)] = reason

    def help(self, number: int) -> None:
        """Note that the labeller is shown a suggestion for a scan.

        It counts for all later marks of the scan: what was seen cannot be unseen.
        """
        self._helped.add(self._name(number))

    def press(self, number: int, action: str, index: int) -> Marks:
        """Return the marks of a scan after a key, which are on disk then.

        Args:
            number: of the scan.
            action: one of `marks.ACTIONS`.
            index: of the slice that was looked at.

        Raises:
            ValueError: the key makes no sense here.
            OSError: nothing could be written, and nothing has changed.
        """
        with self._lock:
            name, before = self._name(number), self.marks_of(number)
            after = before.after(action, index)
            if name in self.book.given and name not in self.book.history.marks:
                self.book.record(TABLE, name, before)  # what an undo returns to
            helped = name in self._helped or name in self.book.history.helped
            self.book.record(action, name, after, slice=index, suggestion=helped)
            return after

    def undo(self) -> int:
        """Return the number of the scan whose last key press was taken back.

        Raises:
            ValueError: nothing to take back, or only in a scan that is not shown now.
            OSError: as for `press`.
        """
        with self._lock:
            if not self.book.history.before:
                raise ValueError("Z takes back the last mark, and there is none.")
            name, before = self.book.history.before[-1]
            numbers = [number for number, p in enumerate(self.patients) if p.patient_id == name]
            if not numbers:
                raise ValueError(f"the last mark was made in {name}, which is not shown now.")
            self.book.record(UNDO, name, before)
            return numbers[0]

    def is_finished(self, number: int) -> bool:
        """Whether something was said of every slice of a scan."""
        name = self._name(number)
        marks = self.book.history.marks.get(name)
        # A table of others need not name every slice, but healthy ones tell that it was complete.
        return marks.finished if marks else HEALTHY in self.book.given.get(name, {}).values()

    def next_after(self, number: int) -> int | None:
        """Return the next scan that is neither finished nor skipped, from the first one again."""
        total = len(self.patients)
        order = [(number + step) % total for step in range(1, total + 1)]
        left = (n for n in order if not self.is_finished(n) and self._name(n) not in self.skipped)
        return next(left, None)

    def progress(self, number: int) -> dict[str, Any]:
        """Return how far the labeller is, when scan `number` is shown."""
        finished = sum(map(self.is_finished, range(len(self.patients))))
        return {
            "finished": finished,
            "total": len(self.patients),
            "next": self.next_after(number),
            "skipped": [{"volume": name, "reason": text} for name, text in self.skipped.items()],
        }

    def _name(self, number: int) -> str:
        if not 0 <= number < len(self.patients):
            raise ValueError(f"scans have numbers below {len(self.patients)}, got {number}.")
        return self.patients[number].patient_id


@contextmanager
def labelling(path: Path, patients: Sequence[Patient], labeller: str) -> Iterator[LabelBook]:
    """Give the table of slice labels at `path`, which nobody else can mark meanwhile.

    The lock is the system's: it ends with this process, however that ends.

    Raises:
        ValueError: somebody else is labelling into the table, or as `open_book`.
    """
    from filelock import FileLock, Timeout  # comes with huggingface_hub and torch

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        other = read_history(journal_of(path)).opened
        raise ValueError(
            f"{path} is being labelled by {other.get('labeller', 'somebody')} since "
            f"{other.get('time', 'a moment ago')}; wait until that ends, or give --out another "
            "file and compare both with --check."
        ) from error
    try:
        book = open_book(path, patients, labeller)
        opened = make_line(labeller, OPENED)
        append_line(book.journal, opened)
        book.history.add(opened)
        yield book
    finally:
        lock.release()
