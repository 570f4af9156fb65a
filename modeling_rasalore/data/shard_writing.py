"""Write slices as Parquet: nothing lost, a row group per patient, true masks in their own files.

A folder holds data/<part>.parquet, masks/<part>.parquet where masks are asked for, index.parquet
with every row but its images, and slices.json, which says what lies where and is written last.
`datasets` reads the files alone; `find_patients` reads the folder like one of scans.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from ..files import first_line, replace_file, sha256_of, write_json
from ..scans.background import brain_of
from .labels import LABEL_NAMES
from .layouts import INDEX_FILE, SLICES_FILE, SLICES_FORMAT
from .patient import LabelledSlice, Patient
from .shards import BRAIN, encode_mask, encode_slice
from .slices import check_one_grid, read_slices

FACTS = {
    "label": Value("int8"),
    "patient_id": Value("string"),
    "slice_index": Value("int32"),
    "slice_count": Value("int32"),  # of the scan
    "spacing": List(Value("float64"), length=3),  # mm: slices, rows, columns
    "source": Value("string"),
}
MASK_COLUMNS = Features(
    {"mask": Image(), "patient_id": Value("string"), "slice_index": Value("int32")}
)
Row = dict[str, Any]


@dataclass(frozen=True)
class SliceChoice:
    """Which slices are stored.

    Attributes:
        modalities: one column each; a patient must have all of them.
        skip: how many of the first and of the last slices are left out.
        with_masks: write the true masks too.
    """

    modalities: tuple[str, ...]
    skip: int = 0
    with_masks: bool = False

    @property
    def columns(self) -> Features:
        """Columns of the files below data/."""
        images = {modality: Image() for modality in self.modalities}
        brain = {BRAIN + modality: Value("int32") for modality in self.modalities}
        return Features({**images, **FACTS, **brain})


def write_split_files(
    split: Mapping[str, Sequence[Patient]], folder: Path, choice: SliceChoice
) -> list[dict[str, Any]]:
    """Write data/<split>/<patient>.parquet for the Hub; returns one row of counts per split.

    Splits without patients have neither folder nor row.

    Raises:
        ValueError: a patient that cannot be read, has no slice, or lacks a mask that is asked for.
    """
    counted, parts = [], []
    for name, patients in split.items():
        labels: Counter[str] = Counter()
        for patient in patients:
            if choice.with_masks and patient.mask is None:
                raise ValueError(
                    f"with_masks=true needs a mask of every patient; {patient.patient_id} has none."
                )
            part = write_part(folder, f"{name}/{patient.patient_id}", [patient], choice)
            for failure in part["failed"]:
                raise ValueError(failure["reason"])
            labels.update(part["patients"][0]["labels"])
            parts.append(part)
        if patients:
            counts = {"patients": len(patients), "slices": labels.total()}
            counted.append({"split": name, **counts, **label_counts(labels)})
    write_manifest(folder, parts, choice)
    return counted


def write_part(
    folder: Path, name: str, patients: Sequence[Patient], choice: SliceChoice
) -> dict[str, Any]:
    """Write the files of some patients; returns their entry in slices.json.

    A patient that cannot be read does not stop the others: "failed" names it and the reason.
    """
    entry: dict[str, Any] = {"name": name, "patients": [], "failed": []}
    data, masks = (folder / kind / f"{name}.parquet" for kind in ("data", "masks"))
    data.parent.mkdir(parents=True, exist_ok=True)
    if choice.with_masks:
        masks.parent.mkdir(parents=True, exist_ok=True)
        replace_file(
            masks,
            lambda mask_draft: replace_file(
                data, lambda draft: _fill(draft, mask_draft, patients, choice, entry)
            ),
        )
    else:
        replace_file(data, lambda draft: _fill(draft, None, patients, choice, entry))
    entry |= {"bytes": data.stat().st_size, "sha256": sha256_of(data)}
    if choice.with_masks:
        return {**entry, "mask_bytes": masks.stat().st_size, "mask_sha256": sha256_of(masks)}
    return {**entry, "mask_bytes": None, "mask_sha256": None}


def write_manifest(
    folder: Path, parts: Sequence[dict[str, Any]], choice: SliceChoice, **facts: Any
) -> Path:
    """Write index.parquet, every row without its images, and slices.json, which names the parts.

    Returns the path of slices.json.
    """
    columns = [*FACTS, *(BRAIN + modality for modality in choice.modalities)]
    tables = [
        pq.read_table(folder / "data" / f"{p['name']}.parquet", columns=columns) for p in parts
    ]
    index = pa.concat_tables(tables).replace_schema_metadata(None)
    replace_file(folder / INDEX_FILE, lambda draft: pq.write_table(index, draft))
    totals: Counter[str] = Counter()
    for part in parts:
        for patient in part["patients"]:
            totals.update(patient["labels"])
    content = {
        "format": SLICES_FORMAT,
        "modalities": list(choice.modalities),
        "skip_slices": choice.skip,
        "patients": sum(len(part["patients"]) for part in parts),
        "slices": totals.total(),
        **label_counts(totals),
        **facts,
        "failed": [failure for part in parts for failure in part["failed"]],
        "parts": [{key: value for key, value in part.items() if key != "failed"} for part in parts],
    }
    return write_json(folder / SLICES_FILE, content)


def label_counts(labels: Counter[str]) -> dict[str, int]:
    """Return how many slices have each label."""
    return {name: labels[name] for name in ("unhealthy", "healthy", "neither")}


def describe_inputs(patient: Patient, modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the length of each of a patient's files, by name."""
    if patient.prepared:
        return {}
    paths = [patient.images[modality] for modality in modalities if modality in patient.images]
    paths += [path for path in (patient.mask, patient.brain_mask) if path is not None]
    return {path.name: {"bytes": path.stat().st_size} for path in paths if path.is_file()}


def _fill(
    data: Path,
    masks: Path | None,
    patients: Sequence[Patient],
    choice: SliceChoice,
    entry: dict[str, Any],
) -> None:
    """Write the Parquet files of some patients, and what is in them into `entry`."""
    with ExitStack() as stack:
        writer = stack.enter_context(_writer(data, choice.columns))
        mask_writer = stack.enter_context(_writer(masks, MASK_COLUMNS)) if masks else None
        for patient in patients:
            try:
                rows = read_rows(patient, choice)
            except (ValueError, OSError) as error:
                reason = first_line(error)
                entry["failed"].append({"patient_id": patient.patient_id, "reason": reason})
                continue
            _write_group(writer, rows, choice.columns)
            if mask_writer:
                _write_group(mask_writer, rows, MASK_COLUMNS)
            labels = Counter(LABEL_NAMES.get(row["label"], "neither") for row in rows)
            entry["patients"].append(
                {
                    "patient_id": patient.patient_id,
                    "source": patient.source,
                    "modalities": list(choice.modalities),
                    "has_mask": choice.with_masks and patient.mask is not None,
                    "labels": label_counts(labels),
                    "inputs": describe_inputs(patient, choice.modalities),
                }
            )


def read_rows(patient: Patient, choice: SliceChoice) -> list[Row]:
    """Return a patient's rows, inferior to superior: slices with brain in at least one sequence.

    Raises:
        ValueError: a sequence is missing, cannot be read or lies on another grid than the others,
            or no slice shows brain.
    """
    check_one_grid(patient, choice.modalities)
    rows: dict[int, Row] = {}
    for modality in choice.modalities:
        for example in read_slices(patient, modality, choice.with_masks, choice.skip):
            row = rows.setdefault(example.slice_index, _blank(example, choice))
            row[modality] = {"bytes": encode_slice(example.image), "path": None}
            row[BRAIN + modality] = int(np.count_nonzero(brain_of(example.image)))
            if example.mask is not None:
                row["mask"] = {"bytes": encode_mask(example.mask), "path": None}
    if not rows:
        raise ValueError(f"no slice of {patient.patient_id} shows brain; leave that scan out.")
    return [rows[index] for index in sorted(rows)]


def _blank(example: LabelledSlice, choice: SliceChoice) -> Row:
    images = dict.fromkeys(choice.modalities)
    facts = {name: getattr(example, name) for name in FACTS}
    return {"mask": None, **images, **{BRAIN + name: 0 for name in images}, **facts}


def _writer(path: Path, columns: Features) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, columns.arrow_schema, compression="zstd", use_dictionary=False)


def _write_group(writer: pq.ParquetWriter, rows: list[Row], columns: Features) -> None:
    chosen = [{name: row[name] for name in columns} for row in rows]
    writer.write_table(pa.Table.from_pylist(chosen, columns.arrow_schema), row_group_size=len(rows))
