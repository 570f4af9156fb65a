"""Write the views of a run: manifest.json, results.csv, results.parquet and the page."""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..files import printable, replace_file, write_json
from ..provenance import VIEWS
from .page import ODD_NAMES, write_page

MANIFEST, TABLE, PAGE, PARQUET = VIEWS
COLUMNS = (
    *("status", "modality", "millilitres", "interval_ml", "findings_above_1_ml"),
    *("largest_component_ml", "quality_score"),
    *("bounding_box_mm", "slices", "slices_with_anomaly", "threshold", "seconds"),
    *("warnings", "reason"),
)
PARQUET_COLUMNS = {
    "scan": "string",  # its name in the results
    "status": "string",  # done | failed
    "reason": "string",  # of a failure
    "millilitres": "float64",
    "findings_above_1_ml": "int32",
    "largest_component_ml": "float64",
    "quality_score": "float64",  # where noise was drawn
    "slices": "int32",
    "slices_with_anomaly": "int32",
    "threshold": "float64",
    "input_sha256": "string",
    "warnings": "string",  # one per line
}


def write_views(out: Path, manifest: Mapping[str, Any], parquet: bool) -> None:
    """Write manifest.json, results.csv and report.html of a run, and with `parquet` its table.

    Scans that only earlier runs had come last in each.
    """
    scans = all_scans(manifest)
    write_json(out / MANIFEST, manifest)
    write_table(out / TABLE, scans)
    write_page(out / PAGE, manifest, scans)
    if parquet:
        write_parquet(out / PARQUET, scans)


def all_scans(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a run's scans, then those of earlier runs into the same folder."""
    return {**manifest["scans"], **manifest.get("earlier", {})}


def clear_views(out: Path) -> None:
    """Delete the views of an earlier run."""
    for name in VIEWS:
        (out / name).unlink(missing_ok=True)


def require_pyarrow() -> None:
    """Raise ValueError where Parquet cannot be written."""
    if find_spec("pyarrow") is None:
        raise ValueError("--parquet needs pyarrow; run pip install 'rasalore[train]'.")


def write_parquet(path: Path, scans: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return `path`, a table with one row per scan of a run's manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(k)) for name, k in PARQUET_COLUMNS.items()])
    rows = [
        {**entry, "scan": printable(name), "warnings": "\n".join(entry.get("warnings", []))}
        for name, entry in scans.items()
    ]
    table = pa.Table.from_pylist(rows, schema)
    return replace_file(path, lambda draft: pq.write_table(table, draft))


def write_table(path: Path, scans: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return `path`, a CSV with one line per scan of a run's manifest."""

    def write(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8", errors=ODD_NAMES) as file:
            table = csv.writer(file)
            table.writerow(("scan", *COLUMNS))
            for name, entry in scans.items():
                table.writerow((name, *(_text(entry.get(column)) for column in COLUMNS)))

    return replace_file(path, write)


def _text(value: Any) -> str:
    if isinstance(value, list):  # of sentences, or a box in mm: least and greatest x, y, z
        return " ".join(_text(part) for part in value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
