"""Answer the page: scans and their pictures, key presses, suggestions; errors as sentences."""

import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..files import SCAN_ERRORS, first_line
from .journal import UNDO
from .pictures import ScanPictures, draw_patient
from .session import LabelSession
from .suggestion import Adviser

THUMBNAILS = "thumbnails"
REMEMBERED = 4  # scans whose pictures are held
MOVED = (
    "This page was opened again elsewhere, and labelling goes on there; load it anew to go on here."
)
NO_MODEL = "there is no model to suggest anything; give one with --model."
Answer = dict[str, Any]


class LabelDesk:
    """What the page can ask for; called from several threads.

    Attributes:
        session: of the labeller.
        modality: sequence to label; None: chosen per patient.
    """

    def __init__(
        self,
        session: LabelSession,
        modality: str | None = None,
        open_adviser: Callable[[], Adviser] | None = None,
    ) -> None:
        self.session, self.modality = session, modality
        self._open_adviser = open_adviser
        self._adviser: Adviser | None = None
        self._window = ""  # of the page that was opened last; only it may mark
        self._painter = ThreadPoolExecutor(1)
        self._drawn: dict[int, Future[ScanPictures]] = {}
        self._lock = threading.Lock()

    def open_page(self) -> Answer:
        """Return where a page begins, and the word that its key presses carry.

        No other page has it, those of earlier starts included, whose scans may be others.
        """
        self._window = secrets.token_hex(8)
        first = self.session.next_after(len(self.session.patients) - 1)
        return {
            "window": self._window,
            "number": first or 0,
            "notes": self.session.book.notes,
            "labeller": self.session.book.labeller,
            "table": self.session.book.path.name,
            "suggestions": self._open_adviser is not None,
        }

    def show_scan(self, number: int) -> Answer:
        """Return all about a scan but its pictures; one that cannot be shown is skipped.

        The next scan is drawn meanwhile.
        """
        session = self.session
        volume = session.patients[number].patient_id
        try:
            pictures = self._pictures(number).result()
            marks = session.show(number, pictures.shown)
            if marks.shown[1] >= pictures.count:
                raise ValueError(
                    f"{session.book.path} labels slice {marks.shown[1]} of {volume}, whose scan "
                    f"has slices 0 to {pictures.count - 1}."
                )
        except SCAN_ERRORS as error:
            session.skip(number, first_line(error))
            progress = session.progress(number)
            return {"error": first_line(error), "volume": volume, "progress": progress}
        progress = session.progress(number)
        if progress["next"] is not None:
            self._pictures(progress["next"])
        return {
            "number": number,
            "volume": volume,
            "reason": session.reasons.get(volume, ""),
            "labelled": pictures.labelled,
            "sequences": list(pictures.sequences),
            "count": pictures.count,
            "first": pictures.shown[0],
            "last": pictures.shown[1],
            "columns": pictures.columns,
            "size": pictures.view.size,
            "notes": pictures.notes,
            "marks": marks.as_json(),
            "progress": progress,
        }

    def draw(self, number: int, name: str) -> bytes:
        """Return the picture of a sequence, or of the thumbnails, as PNG.

        Raises:
            KeyError: no such picture.
        """
        pictures = self._pictures(number).result()
        return pictures.thumbnails if name == THUMBNAILS else pictures.sequences[name]

    def suggest(self, number: int) -> bytes:
        """Return the model's scores of a scan as a transparent picture, PNG; it counts as seen.

        Raises:
            ValueError: no model, or one that does not fit the scan.
        """
        with self._lock:
            if self._open_adviser is None:
                raise ValueError(NO_MODEL)
            if self._adviser is None:
                self._adviser = self._open_adviser()
            adviser = self._adviser
        pictures = self._pictures(number).result()
        tint = adviser.tint(self.session.patients[number], pictures)
        self.session.help(number)
        return tint

    def press(self, content: Mapping[str, Any]) -> Answer:
        """Return what a key press changed, which is on disk then.

        Args:
            content: `window`, and `action`; for a mark also `number` and `slice`.
        """
        if not self._window or content.get("window") != self._window:
            return {"error": MOVED}
        try:
            if content.get("action") == UNDO:
                return {"number": self.session.undo()}
            number = int(content["number"])
            marks = self.session.press(number, str(content["action"]), int(content["slice"]))
        except OSError as error:
            reason = (error.strerror or first_line(error)).lower()
            path = self.session.book.path
            return {"error": f"this mark was not written, all before it are: {path}: {reason}."}
        except (ValueError, KeyError, TypeError) as error:
            return {"error": first_line(error)}
        return {"marks": marks.as_json(), "progress": self.session.progress(number)}

    def _pictures(self, number: int) -> "Future[ScanPictures]":
        """Return the pictures of a scan, which a thread draws; those asked for last are held."""
        with self._lock:
            future = self._drawn.pop(number, None)
            if future is None:
                patient = self.session.patients[number]
                future = self._painter.submit(draw_patient, patient, self.modality)
            self._drawn[number] = future
            for oldest in list(self._drawn)[:-REMEMBERED]:
                del self._drawn[oldest]
            return future
