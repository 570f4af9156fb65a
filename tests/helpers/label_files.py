"""Slice labels as a labeller would leave them beside the scans."""

import csv
from collections.abc import Sequence
from pathlib import Path

from modeling_rasalore.data.labels import LABEL_NAMES, UNKNOWN, label_slices
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.scans.volumes import read_volume


def write_slice_labels(patients: Sequence[Patient], path: Path) -> Path:
    """Return `path`, a slice_labels.csv of what the masks say; unclear slices have no row."""
    rows = [
        (patient.patient_id, index, LABEL_NAMES[label])
        for patient in patients
        for index, label in enumerate(labels_of(patient))
        if label != UNKNOWN
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("volume", "slice_index", "label"), *rows])
    return path


def labels_of(patient: Patient) -> list[int]:
    assert patient.mask is not None
    mask = read_volume(patient.mask)
    return label_slices(mask.slices > 0, mask.spacing[1:])


# --- Tables as spreadsheets, R and pandas leave them ----------------------------------------------
Row = tuple[str, int, str]  # volume, slice index, label
HEAD = ("volume", "slice_index", "label")
BITS = {"healthy": 0, "unhealthy": 1}


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = HEAD, by: str = ",") -> str:
    """Return rows as text, `by` between the values."""
    return "".join(by.join(map(str, row)) + "\n" for row in [head, *rows])


def readable_tables(rows: Sequence[Row]) -> dict[str, tuple[bytes, str]]:
    """Return ways to write one table: name -> its bytes, and what has to be said of it."""
    plain = table(rows)
    marked = [(v, k, BITS[label]) for v, k, label in rows]
    quoted = "".join('"' + '","'.join(map(str, row)) + '"\n' for row in [HEAD, *rows])
    numbered = [(n, *row) for n, row in enumerate(rows, 1)]
    capitals = [(volume, index, label.upper()) for volume, index, label in rows]
    commas = [(volume, f"{index},0", f"{bit},0") for volume, index, bit in marked]
    texts = {
        "plain": (plain, ""),
        "semicolons": (table(rows, by=";"), "columns are separated by semicolons"),
        "tabs": (table(rows, by="\t"), "columns are separated by tabs"),
        "bars": (table(rows, by="|"), "columns are separated by bars"),
        "spaces after commas": (table(rows, by=", "), ""),
        "spaces alone": (table(rows, by=" "), "columns are separated by spaces"),
        "R without a name for row numbers": (table(numbered, HEAD), "holds row numbers"),
        "R with an empty one": (table(numbered, ("", *HEAD)), ""),
        "capitals": (table(capitals, ("VOLUME", "Slice Index", "Label")), ""),
        "columns in another order": (table([r[::-1] for r in rows], HEAD[::-1]), ""),
        "sep=,": ("sep=,\r\n" + plain, ""),
        "sep=#": ("sep=#\n" + table(rows, by="#"), "columns are separated by '#'"),
        "true and false": (table([(v, k, bool(b)) for v, k, b in marked]), "true as unhealthy"),
        "yes and no": (table([(v, k, ("no", "yes")[b]) for v, k, b in marked]), "no as healthy"),
        "numbers with a point": (table([(v, f"{k}.0", f"{b}.0") for v, k, b in marked]), ""),
        "numbers with a comma": (table(commas, by=";"), "semicolons"),
        "commas at the ends": (plain.replace("\n", ",,\n") + ",,\n,,,,\n", ""),
        "empty lines": ("\n" + plain.replace("\n", "\n\n") + " \n", ""),
        "quotes": (quoted, ""),
        "a comment": (table([(*row, '"seen, ok"') for row in rows], [*HEAD, "reader"]), ""),
        "CR alone": (plain.replace("\n", "\r"), ""),
        "CR LF": (plain.replace("\n", "\r\n"), ""),
        "one row twice": (table([*rows, rows[0]]), ""),
        "file names": (table([(f"{v}_t2.nii.gz", *row) for v, *row in rows]), "_t2.nii.gz as "),
        "paths": (table([(f"C:\\data\\{v}\\{v}_t2.nii.gz", *row) for v, *row in rows]), " as "),
    }  # fmt: skip
    return {
        **{name: (text.encode(), said) for name, (text, said) in texts.items()},
        "UTF-8 with a mark": (plain.encode("utf-8-sig"), ""),
        "UTF-16": (plain.encode("utf-16"), "the text is UTF-16, not UTF-8"),
        "UTF-16 without a mark": (plain.encode("utf-16-be"), "the text is UTF-16-BE, not UTF-8"),
        "Latin-1 in a comment": (
            table([(*row, "Müller") for row in rows], [*HEAD, "reader"]).encode("latin-1"),
            "the text is LATIN-1, not UTF-8",
        ),
    }
