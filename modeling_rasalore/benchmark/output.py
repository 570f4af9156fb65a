"""Writes what a benchmark ends in: results.json, its tables and their picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.rows import VIEWS, Row, compare_rows, write_results
from ..evaluation.tables import (
    cost_table,
    overview_table,
    results_figure,
    results_table,
    sequence_table,
)
from ..files import replace_file
from .own import CONTROL


def failure_rows(name: str, title: str, modality: str, reason: str) -> list[Row]:
    """Return one row per view that says why a system has no scores."""
    empty = {"threshold": "0.5", "patients": 0, "slices": 0, "dice": None, "weights": "none"}
    row = {"system": name, "title": title, "modality": modality, **empty, "failure": reason}
    return [row | {"view": view} for view in VIEWS]


def compare(rows: Sequence[Row], seed: int, name: str = "threshold") -> list[Row]:
    """Return paired differences of every other system from one, the intensity threshold."""
    scored = [row for row in rows if "failure" not in row]
    reference = {(r["view"], r["threshold"]): r for r in scored if r["system"] == name}
    pairs = [
        (row, reference[row["view"], row["threshold"]])
        for row in scored
        if row["system"] != name and (row["view"], row["threshold"]) in reference
    ]
    return [
        compare_rows(row, other, seed) | {"title": row["title"], "reference_title": other["title"]}
        for row, other in pairs
    ]


def compare_controlled(rows: Sequence[Row], controlled: Sequence[str], seed: int) -> list[Row]:
    """Return paired differences of the rows that have a control from it."""
    chosen = [row for row in rows if row["system"] in (CONTROL, *controlled)]
    return compare(chosen, seed, CONTROL)


def write_tables(
    out: Path, meta: Mapping[str, Any], rows: list[Row], headline: str, *more: str
) -> None:
    """Write results.json, results.md and results.png, and print the tables.

    Args:
        more: further tables, after the overview; "" is left out.
    """
    write_results(out / "results.json", meta, rows)
    tables = [headline, view_line(meta), promise_line(rows), overview_table(rows), *more]
    tables += [sequence_table(rows), results_table(rows), cost_table(rows)]
    text = "\n".join(filter(None, tables))
    replace_file(out / "results.md", lambda draft: draft.write_text(text, encoding="utf-8"))
    replace_file(out / "results.png", lambda draft: results_figure(rows, draft))
    print(text)
    print(f"done: {out / 'results.json'}, results.md, results.png")


def view_line(meta: Mapping[str, Any]) -> str:
    """Return how competing systems see slices, as a line of its own; "" for each by itself."""
    sees_scan = meta["view"] == "scan"
    return "Competing systems see slices in the square around their scan's brain.\n" * sees_scan


def promise_line(rows: Sequence[Row]) -> str:
    """Return what the label-free thresholds promise, as the line under the headline; "" without."""
    promises = [promise["in_words"] for row in rows if (promise := row.get("promise"))]
    sentences = "; or ".join(dict.fromkeys(promises))
    return (
        f"Label-free thresholds: {sentences}, of scans like those that gave them. The healthy "
        "slices of a patient count as one scan.\n"
    ) * bool(promises)
