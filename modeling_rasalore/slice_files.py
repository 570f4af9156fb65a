"""Slices as Parquet: one file per patient, nothing lost, read back by `datasets` alone."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from PIL import Image as PillowImage

from .files import replace_file
from .layouts import Patient
from .slices import HEALTHY, UNHEALTHY, UNKNOWN, read_slices

COLUMNS = Features(
    {
        "image": Image(),
        "label": Value("int8"),
        "patient_id": Value("string"),
        "slice_index": Value("int32"),
        "spacing": List(Value("float64"), length=3),  # mm: slices, rows, columns
        "source": Value("string"),
    }
)
MASK_COLUMN = {"mask": Image()}


def write_slice_files(
    split: Mapping[str, Sequence[Patient]],
    folder: Path,
    modality: str,
    skip: int,
    with_masks: bool = False,
) -> list[dict[str, Any]]:
    """Write `data/<split>/<patient>.parquet` below `folder`; returns one row of counts per split.

    Splits without patients have neither folder nor row. Arguments as in `slices.read_slices`.

    Raises:
        ValueError: masks are asked for and a patient has none, or a patient without slices.
    """
    counted = []
    for name, patients in split.items():
        labels: Counter[int] = Counter()
        for patient in patients:
            path = folder / "data" / name / f"{patient.patient_id}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            labels += write_patient(path, patient, modality, skip, with_masks)
        if patients:
            counted.append(
                {
                    "split": name,
                    "patients": len(patients),
                    "slices": labels.total(),
                    "unhealthy": labels[UNHEALTHY],
                    "healthy": labels[HEALTHY],
                    "neither": labels[UNKNOWN],
                }
            )
    return counted


def write_patient(
    path: Path, patient: Patient, modality: str, skip: int, with_masks: bool
) -> Counter[int]:
    """Write one patient's slices; returns how many have each label."""
    if with_masks and patient.mask is None:
        raise ValueError(f"with_masks=true needs a mask of every patient; {patient.patient_id} "
                         "has none.")  # fmt: skip
    rows, labels = [], Counter[int]()
    for example in read_slices(patient, modality, with_masks, skip):
        labels[example["label"]] += 1
        row = {**example, "image": image_bytes(example["image"])}
        if with_masks:
            row["mask"] = image_bytes(example["mask"] * np.uint8(255))
        rows.append({name: row[name] for name in columns(with_masks)})
    if not rows:
        raise ValueError(f"no slice of {patient.patient_id} shows brain; leave that scan out.")
    table = pa.Table.from_pylist(rows, columns(with_masks).arrow_schema)
    replace_file(path, lambda draft: pq.write_table(table, draft, compression="zstd"))
    return labels


def columns(with_masks: bool) -> Features:
    """The columns of a file."""
    return Features({**COLUMNS, **MASK_COLUMN}) if with_masks else COLUMNS


def image_bytes(image: np.ndarray) -> dict[str, Any]:
    """A slice (H, W) as a file that holds its exact values, as `datasets.Image` stores it.

    uint8 -> PNG; float32 -> 16-bit PNG where all values are whole numbers below 65536, as scanners
    store them; otherwise 32-bit float TIFF.
    """
    if image.dtype == np.float32:
        whole = image.astype(np.uint16)  # wraps what does not fit, and so differs
        image = whole if np.array_equal(whole, image) else image
    file = io.BytesIO()
    form = "TIFF" if image.dtype == np.float32 else "PNG"
    PillowImage.fromarray(image).save(file, form)
    return {"bytes": file.getvalue(), "path": None}
