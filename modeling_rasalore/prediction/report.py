"""Write the views of a run: manifest.json, results.csv, report.html and results.parquet."""

import csv
import os
from collections.abc import Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import printable, replace_file, write_json
from ..provenance import DISCLAIMER, VIEWS
from ..scans.finding import describe_counts

MANIFEST, TABLE, PAGE, PARQUET = VIEWS
ODD_NAMES = "backslashreplace"  # for bytes of file names that are no UTF-8
COLUMNS = (
    *("status", "modality", "millilitres", "largest_component_ml", "quality_score"),
    *("bounding_box_mm", "slices", "slices_with_anomaly", "threshold", "seconds"),
    *("warnings", "reason"),
)
PAGE_COLUMNS = (
    *("status", "millilitres", "largest_component_ml", "quality_score", "bounding_box_mm"),
    *("slices_with_anomaly", "slices", "seconds"),
)
PARQUET_COLUMNS = {
    "scan": "string",  # its name in the results
    "status": "string",  # done | failed
    "reason": "string",  # of a failure
    "millilitres": "float64",
    "largest_component_ml": "float64",
    "quality_score": "float64",  # where noise was drawn
    "slices": "int32",
    "slices_with_anomaly": "int32",
    "threshold": "float64",
    "input_sha256": "string",
    "warnings": "string",  # one per line
}
LIMITS = (
    DISCLAIMER,
    "Trained on brain tumours in adults or on synthetic brains; other findings may go unseen.",
    "Skull-stripped scans of the sequence that the model was trained on are expected.",
    "The left of a picture is the patient's right; slices are counted from below.",
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;"
    "border-bottom:1px solid #ccc}img{max-width:100%}.wide{overflow-x:auto}"
    ".limits{background:#fff3cd;padding:.5rem 1rem .5rem 2rem}.failed{color:#a40000}"
)


def write_views(out: Path, manifest: Mapping[str, Any], parquet: bool) -> None:
    """Write manifest.json, results.csv and report.html of a run, and with `parquet` its table.

    Scans that only earlier runs had come last in each.
    """
    scans = all_scans(manifest)
    write_json(out / MANIFEST, manifest)
    write_table(out / TABLE, scans)
    write_html(out / PAGE, manifest)
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


def write_html(path: Path, manifest: Mapping[str, Any]) -> Path:
    """Return `path`, one page about a run; its pictures are the overlay files beside it."""
    scans = all_scans(manifest)
    rows = "".join(_row(name, entry) for name, entry in scans.items())
    head = "".join(f"<th>{escape(_title(column))}</th>" for column in ("scan", *PAGE_COLUMNS))
    notes = "".join(_notes(name, entry) for name, entry in scans.items())
    pictures = "".join(_picture(name, entry) for name, entry in scans.items())
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in LIMITS)
    model, settings = manifest["model"], manifest["settings"]
    facts = (
        f"Model {model['name']}, weights {str(model['weights_sha256'])[:12]}, on "
        f"{manifest['device']} ({settings['precision']}). Threshold {settings['threshold']:g}: "
        f"{settings['threshold_source']}. {manifest.get('seconds', 0)} s, "
        f"{manifest.get('peak_memory_mib', 0)} MiB at most."
    )
    if earlier := len(manifest.get("earlier", {})):
        facts += f" The last {earlier} of the scans are of earlier runs into this folder."
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>rasalore</title>'
        f"<style>{STYLE}</style><h1>Anomaly maps</h1>"
        f'<ul class="limits">{limits}</ul><p>{escape(facts)}</p>'
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
        f"<ul>{notes}</ul>{_left_out(manifest)}{pictures}</html>\n"
    )
    return replace_file(
        path, lambda draft: draft.write_text(page, encoding="utf-8", errors=ODD_NAMES)
    )


def _row(name: str, entry: Mapping[str, Any]) -> str:
    cells = (name, *(_short(entry.get(column)) for column in PAGE_COLUMNS))
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="{escape(entry["status"])}">{row}</tr>'


def _notes(name: str, entry: Mapping[str, Any]) -> str:
    """Why a scan failed, or what may make its result worth less, one line each."""
    reasons = [entry["reason"]] if "reason" in entry else []
    reasons += entry.get("warnings", [])
    return "".join(
        f'<li class="{escape(entry["status"])}">{escape(f"{name}: {reason}")}</li>'
        for reason in reasons
    )


def _left_out(manifest: Mapping[str, Any]) -> str:
    """How many files were used, and what was left out, one line each."""
    counts = describe_counts(manifest["file_counts"])
    items = (f"{entry['path']}: {entry['reason']}" for entry in manifest["left_out"])
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h2>Files</h2><p>{escape(counts)}.</p><ul>{lines}</ul>"


def _title(column: str) -> str:
    return column.replace("_", " ").replace(" ml", " (mL)").replace(" mm", " (mm)")


def _short(value: Any) -> str:
    """A table's cell for people: three decimals; a box as ranges of x, y and z."""
    if isinstance(value, list):
        ranges = [f"{low:g} to {high:g}" for low, high in zip(*value, strict=True)]
        return ", ".join(ranges)
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else _text(value)


def _picture(name: str, entry: Mapping[str, Any]) -> str:
    overlay = entry.get("outputs", {}).get("overlay")
    if overlay is None:
        return ""
    address = quote(os.fsencode(overlay))
    return f'<h2>{escape(name)}</h2><img src="{address}" alt="slices of {escape(name)}">'


def _text(value: Any) -> str:
    if isinstance(value, list):  # of sentences, or a box in mm: least and greatest x, y, z
        return " ".join(_text(part) for part in value)
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
