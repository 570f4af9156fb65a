"""Compare the slice labels of two people: how often they agree, and how far beyond chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.label_table import HEALTHY, UNHEALTHY, read_label_table
from ..data.labels import SliceLabels, labels_by_patient
from ..evaluation.intervals import Interval, pooled_interval
from ..evaluation.tables import DASH, markdown_table
from .journal import journal_of, read_history

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Agreement:
    """How two people labelled the same slices.

    Attributes:
        counts: (2, 2), slices by the first one's label (row) and the second one's (column).
        only_one: slices that just one of them labelled, which are not compared.
    """

    counts: Counts
    only_one: int

    @property
    def slices(self) -> int:
        """Slices that both labelled."""
        return int(self.counts.sum())

    @property
    def share(self) -> float:
        """Share of the compared slices with the same label; NaN without slices."""
        return float(np.trace(self.counts) / self.slices) if self.slices else float("nan")

    @property
    def kappa(self) -> float:
        """Cohen's kappa in [-1, 1]; NaN where both gave every slice one and the same label."""
        return float(cohens_kappa(self.counts[None].astype(float))[0])


def cohens_kappa(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cohen's kappa of tables of counts (n, 2, 2), (n,); NaN where chance alone agrees."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / counts.sum((1, 2), keepdims=True)
        observed = shares[:, 0, 0] + shares[:, 1, 1]
        expected = (shares.sum(1) * shares.sum(2)).sum(1)
        kappa: NDArray[np.float64] = (observed - expected) / (1 - expected)
    return np.where(np.isclose(expected, 1), np.nan, kappa)


def compare_tables(first: Path, second: Path) -> dict[str, Agreement]:
    """Return volume -> how the tables of two labellers agree on its slices, sorted.

    Raises:
        ValueError: a table that cannot be read for certain, or not one slice that both labelled.
    """
    ours, theirs = _read(first), _read(second)
    volumes = sorted(ours.keys() | theirs.keys())
    result = {name: _compare(ours.get(name, {}), theirs.get(name, {})) for name in volumes}
    if not any(agreement.slices for agreement in result.values()):
        raise ValueError(
            f"{first} and {second} label no slice in common; give two tables of one folder of "
            "scans."
        )
    return result


def _read(path: Path) -> SliceLabels:
    table = read_label_table(path)
    return labels_by_patient(table, {row.volume: row.volume for row in table.rows})


def _compare(ours: Mapping[int, int], theirs: Mapping[int, int]) -> Agreement:
    counts = np.zeros((2, 2), np.int64)
    for index in ours.keys() & theirs.keys():
        counts[ours[index], theirs[index]] += 1
    return Agreement(counts, len(ours.keys() ^ theirs.keys()))


def describe_agreement(first: Path, second: Path) -> str:
    """Return what people read about two tables: a line per scan, all slices together, remarks."""
    by_volume = compare_tables(first, second)
    tables = np.stack([agreement.counts for agreement in by_volume.values()])
    both = Agreement(tables.sum(0), sum(a.only_one for a in by_volume.values()))
    compared = tables[tables.sum((1, 2)) > 0]
    interval = pooled_interval(compared, cohens_kappa, seed=0)
    lines = [_line(name, agreement) for name, agreement in by_volume.items()]
    header = ("scan", "slices", "by one only", "agreement", "kappa")
    only = {
        name: int(both.counts[cell])
        for name, cell in (
            (first.name, (UNHEALTHY, HEALTHY)),
            (second.name, (HEALTHY, UNHEALTHY)),
        )
    }
    sentences = [
        f"agreement on {both.share:.1%} of {both.slices} slices that both labelled",
        f"Cohen's kappa {_number(both.kappa)}{_range(interval)}",
        *(f"unhealthy in {name} only: {number} slices" for name, number in only.items()),
        *_remarks(first, second),
    ]
    return markdown_table(header, [*lines, _line("all", both)]) + "\n".join(sentences)


def _line(name: str, agreement: Agreement) -> tuple[str, ...]:
    share = f"{agreement.share:.1%}" if agreement.slices else DASH
    numbers = (str(agreement.slices), str(agreement.only_one), share)
    return name, *numbers, _number(agreement.kappa)


def _number(value: float) -> str:
    return DASH if np.isnan(value) else f"{value:.2f}"


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" [{interval.low:.2f}, {interval.high:.2f}], 95 % over scans"


def _remarks(first: Path, second: Path) -> list[str]:
    """Return how many scans each labelled with a suggestion in sight, which makes them alike."""
    helped = {path: len(read_history(journal_of(path)).helped) for path in (first, second)}
    return [
        f"{path.name}: {number} scans were labelled after the model's suggestion was shown"
        for path, number in helped.items()
        if number
    ]
