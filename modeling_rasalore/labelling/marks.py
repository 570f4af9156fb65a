"""Say what a labeller has marked in one scan, and what each key changes of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..data.label_table import HEALTHY, UNHEALTHY


@dataclass(frozen=True)
class Marks:
    """What is known of the slices of one scan; changed copies are made, never itself.

    Attributes:
        shown: first and last slice that show brain, or that have a label already; only slices from
            the first to the last can be marked.
        lesion: slices within a range that was marked.
        unsure: slices that get no label, whatever range they lie in.
        begun: first slice of a range whose last slice is not marked yet.
        complete: whether all other slices are healthy.
    """

    shown: tuple[int, int]
    lesion: frozenset[int] = frozenset()
    unsure: frozenset[int] = frozenset()
    begun: int | None = None
    complete: bool = False

    @classmethod
    def of_labels(cls, shown: tuple[int, int], labels: Mapping[int, int]) -> "Marks":
        """Return the marks that give these labels, slice index -> 1 unhealthy or 0 healthy.

        Where some slices are healthy the scan is complete, and slices without label are unsure.
        """
        first, last = min([shown[0], *labels]), max([shown[1], *labels])
        lesion = frozenset(index for index, label in labels.items() if label == UNHEALTHY)
        complete = len(lesion) < len(labels)
        unsure = frozenset(range(first, last + 1)) - labels.keys() if complete else frozenset()
        return cls((first, last), lesion, unsure, complete=complete)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> "Marks":
        """Return the marks that `as_json` described."""
        return cls(
            (content["shown"][0], content["shown"][1]),
            _slices_in(content["lesion"]),
            _slices_in(content["unsure"]),
            content["begun"],
            content["complete"],
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it, slices as ranges [first, last]."""
        return {
            "shown": list(self.shown),
            "lesion": ranges_of(self.lesion),
            "unsure": ranges_of(self.unsure),
            "begun": self.begun,
            "complete": self.complete,
        }

    @property
    def labels(self) -> dict[int, int]:
        """Slice index -> 1 unhealthy or 0 healthy, ascending; other slices have no label."""
        unhealthy = self.lesion if self.begun is None else self.lesion | {self.begun}
        return {
            index: UNHEALTHY if index in unhealthy else HEALTHY
            for index in range(self.shown[0], self.shown[1] + 1)
            if index not in self.unsure and (self.complete or index in unhealthy)
        }

    @property
    def finished(self) -> bool:
        """Whether the labeller has said something of every slice."""
        return self.complete and self.begun is None

    def after(self, action: str, index: int) -> "Marks":
        """Return the marks after a key was pressed at a slice.

        Args:
            action: one of `ACTIONS`.
            index: of the slice that was looked at.

        Raises:
            ValueError: the key makes no sense here, or the slice cannot be marked.
        """
        first, last = self.shown
        if action not in ACTIONS:
            raise ValueError(f"a mark must be one of {', '.join(ACTIONS)}, got {action!r}.")
        if not first <= index <= last:
            raise ValueError(f"slices {first} to {last} can be marked here, got slice {index}.")
        return ACTIONS[action](self, index)


def ranges_of(slices: Iterable[int]) -> list[list[int]]:
    """Return slices as ranges [first, last] that do not touch, ascending."""
    ranges: list[list[int]] = []
    for index in sorted(slices):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ranges


def _slices_in(ranges: Iterable[Iterable[int]]) -> frozenset[int]:
    return frozenset(index for first, last in ranges for index in range(first, last + 1))


# --- What each key does ---------------------------------------------------------------------------
def _begin_lesion(marks: Marks, index: int) -> Marks:
    return replace(marks, begun=index)


def _end_lesion(marks: Marks, index: int) -> Marks:
    if marks.begun is None:
        raise ValueError("E marks the last slice of a lesion: mark its first slice with S before.")
    first, last = sorted((marks.begun, index))
    return replace(marks, lesion=marks.lesion | set(range(first, last + 1)), begun=None)


def _all_healthy(marks: Marks, index: int) -> Marks:
    """Take back all lesions; slices that one is unsure of stay so."""
    return replace(marks, lesion=frozenset(), begun=None, complete=True)


def _change_doubt(marks: Marks, index: int) -> Marks:
    return replace(marks, unsure=marks.unsure ^ {index})


def _clear(marks: Marks, index: int) -> Marks:
    """Take back the range and the doubt at a slice."""
    around = [{*range(a, b + 1)} for a, b in ranges_of(marks.lesion) if a <= index <= b]
    begun = None if marks.begun == index else marks.begun
    cleared = replace(
        marks, lesion=marks.lesion.difference(*around), unsure=marks.unsure - {index}, begun=begun
    )
    if cleared == marks:
        raise ValueError(f"X takes back what is marked at a slice; slice {index} has no mark.")
    return cleared


def _finish(marks: Marks, index: int) -> Marks:
    if marks.begun is not None:
        raise ValueError(
            f"the lesion that begins in slice {marks.begun} has no last slice: mark it with E, or "
            "take its first slice back with Z."
        )
    if not marks.lesion and not marks.complete:
        raise ValueError(
            "no lesion is marked: H says that the whole scan is healthy, N goes on without labels."
        )
    return replace(marks, complete=True)


ACTIONS: dict[str, Callable[[Marks, int], Marks]] = {
    "begin": _begin_lesion,
    "end": _end_lesion,
    "healthy": _all_healthy,
    "unsure": _change_doubt,
    "clear": _clear,
    "finish": _finish,
}
