"""Read prepared slices back from the Parquet files that `shard_writing.py` writes.

Training reads data/; the true masks lie in masks/, and only who asks for them opens that.
"""

import io
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ..remote_files import open_file
from .patient import AUTO, LabelledSlice, Patient, PreparedSlices, See, Skip, used_slices

FACTS = ("patient_id", "slice_index", "slice_count", "label", "spacing", "source")
BRAIN = "brain_pixels_"  # start of the name of the column that counts them, one per modality


def read_prepared(
    patient: Patient,
    modality: str,
    with_mask: bool,
    skip: Skip,
    labels: Collection[int] | None,
    only: Collection[int] | None,
    see: See | None = None,
) -> Iterator[LabelledSlice]:
    """Yield what `slices.read_slices` yields for the scan the slices came from, bit for bit.

    What `see` says is the same where the slices were prepared with skip=0; else those left out
    count neither for the scan's scale nor as neighbours.
    """
    prepared = patient.prepared
    assert prepared is not None
    table = read_row_group(prepared, (*FACTS, BRAIN + modality, modality))
    masks = None
    if with_mask and prepared.mask_bytes:
        masks = read_row_group(prepared, ("slice_index", "mask"), masks=True).column("mask")
    images = table.column(modality)
    rows = table.drop_columns(modality).to_pylist()
    for count in {row["slice_count"] for row in rows}:
        check_skip(patient, skip, count)
    scan = see_prepared(patient, images, rows, see) if see and rows else {}
    for number, row in enumerate(rows):
        index = row["slice_index"]
        used = used_slices(patient.patient_id, row["slice_count"], skip)
        shown = index in used and row.pop(BRAIN + modality)
        if shown and (labels is None or row["label"] in labels) and (only is None or index in only):
            yield LabelledSlice(
                image=decode_slice(images[number]["bytes"].as_py()),
                label=row["label"],
                mask=None if masks is None else decode_mask(masks[number]["bytes"].as_py()),
                patient_id=row["patient_id"],
                slice_index=index,
                slice_count=row["slice_count"],
                spacing=tuple(row["spacing"]),
                source=row["source"],
                modality=modality,
                seen=scan.get(index),
            )


def see_prepared(
    patient: Patient, images: Any, rows: Sequence[dict[str, Any]], see: See
) -> dict[int, Any]:
    """Return what `see` says of the slices of a patient, by index; images are a column of TIFFs."""
    assert patient.prepared is not None
    stored = {row["slice_index"]: images[number]["bytes"] for number, row in enumerate(rows)}
    decoded = {i: decode_slice(data.as_py()) for i, data in stored.items() if data.is_valid}
    if not decoded:
        return {}
    blank = np.zeros_like(next(iter(decoded.values())))  # has no brain, so it has no row
    used = used_slices(patient.patient_id, rows[0]["slice_count"], patient.prepared.skip)
    scan = see(np.stack([decoded.get(i, blank) for i in used]), tuple(rows[0]["spacing"]))
    return {i: scan[i - used.start] for i in decoded}


def check_skip(patient: Patient, skip: Skip, count: int) -> None:
    """Raise ValueError where slices of a scan of `count` are asked for that were not prepared."""
    prepared = patient.prepared
    first = used_slices(patient.patient_id, count, skip).start
    if prepared and first < prepared.skip:
        raise ValueError(
            f"skip_slices must be at least {prepared.skip}, with which the slices in "
            f"{prepared.root} were prepared, got {skip}"
            + f", which is {first} of {count} slices" * (skip == AUTO)
            + f"; prepare them again with skip_slices={first}."
        )


def read_row_group(prepared: PreparedSlices, columns: Collection[str], masks: bool = False) -> Any:
    """Return some columns of one patient's rows, as an Arrow table."""
    size = prepared.mask_bytes if masks else prepared.part_bytes
    name = f"{'masks' if masks else 'data'}/{prepared.part}.parquet"
    with open_file(prepared.root, name, size or 0) as file:
        footer = read_footer(prepared.root, name, size or 0)
        parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=True)
        return parquet.read_row_group(prepared.row_group, list(columns), use_threads=False)


@lru_cache(maxsize=64)
def read_footer(root: str, name: str, size: int) -> Any:
    """Return what a Parquet file says about itself; kept, for each patient's row group needs it."""
    with open_file(root, name, size) as file:
        return pq.read_metadata(file)


# Slices are uncompressed TIFF: any reader opens it, and the Parquet file around it compresses as
# well as PNG and unpacks far faster.
def encode_slice(image: NDArray[np.float32]) -> bytes:
    """Return a slice (H, W) as TIFF, without loss.

    16-bit where all values are whole numbers below 65536, as scanners store them, otherwise
    32-bit float.
    """
    with np.errstate(invalid="ignore"):  # what does not fit wraps, and so differs
        whole = image.astype(np.uint16)
    return _encode(whole if np.array_equal(whole, image) else image, "TIFF")


def decode_slice(data: bytes) -> NDArray[np.float32]:
    """Return the slice (H, W) that `encode_slice` was given."""
    return np.array(Image.open(io.BytesIO(data), formats=("TIFF",)), np.float32)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Return a mask (H, W), 0 or 1, as PNG, 255 in the lesion."""
    return _encode(mask * np.uint8(255), "PNG")


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """Return the mask (H, W) that `encode_mask` was given."""
    return (np.asarray(Image.open(io.BytesIO(data), formats=("PNG",))) > 0).astype(np.uint8)


def _encode(values: NDArray[np.number], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()
