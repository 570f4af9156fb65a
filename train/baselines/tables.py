"""What a benchmark writes: rows of failures, paired differences, and its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_rasalore.evaluation.rows import VIEWS, Row, compare_rows, write_results
from modeling_rasalore.evaluation.tables import (
    cost_table,
    overview_table,
    results_figure,
    results_table,
    sequence_table,
)


def failure_rows(name: str, modality: str, reason: str) -> list[Row]:
    """One row per view that says why a system has no scores."""
    empty = {"threshold": "0.5", "patients": 0, "slices": 0, "dice": None, "weights": "none"}
    row = {"system": name, "modality": modality, **empty, "failure": reason}
    return [row | {"view": view} for view in VIEWS]


def compare(rows: Sequence[Row], seed: int, name: str = "threshold") -> list[Row]:
    """Paired differences of every other system from one, the intensity threshold."""
    scored = [row for row in rows if "failure" not in row]
    reference = {(r["view"], r["threshold"]): r for r in scored if r["system"] == name}
    return [
        compare_rows(row, reference[row["view"], row["threshold"]], seed)
        for row in scored
        if row["system"] != name and (row["view"], row["threshold"]) in reference
    ]


def write_tables(
    out: Path, meta: Mapping[str, Any], rows: list[Row], headline: str, *more: str
) -> None:
    """Write results.json, results.md and results.png, and print the tables.

    Args:
        more: further tables, after the overview; "" is left out.
    """
    write_results(out / "results.json", meta, rows)
    tables = [headline, overview_table(rows), *more, sequence_table(rows)]
    tables += [results_table(rows), cost_table(rows)]
    text = "\n".join(filter(None, tables))
    (out / "results.md").write_text(text)
    results_figure(rows, out / "results.png")
    print(text)
    print(f"done: {out / 'results.json'}, results.md, results.png")
