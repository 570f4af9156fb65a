"""Prepared slices, read back: the Parquet files that `slice_files.py` writes.

Training reads data/; the true masks lie in masks/, and only who asks for them opens that.
"""

import io
import struct
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ..remote_files import open_file
from .patient import LabelledSlice, Patient, PreparedSlices

FACTS = ("patient_id", "slice_index", "slice_count", "label", "spacing", "source")
BRAIN = "brain_pixels_"  # start of the name of the column that counts them, one per modality


def read_prepared(
    patient: Patient,
    modality: str,
    with_mask: bool,
    skip: int,
    labels: Collection[int] | None,
    only: Collection[int] | None,
) -> Iterator[LabelledSlice]:
    """Yield what `slices.read_slices` yields for the scan the slices came from, bit for bit."""
    place = patient.prepared
    assert place is not None
    check_skip(patient, skip)
    table = read_row_group(place, (*FACTS, BRAIN + modality, modality))
    masks = None
    if with_mask and place.mask_bytes:
        masks = read_row_group(place, ("slice_index", "mask"), masks=True).column("mask")
    images = table.column(modality)
    for number, row in enumerate(table.drop_columns(modality).to_pylist()):
        index = row["slice_index"]
        shown = skip <= index < row["slice_count"] - skip and row.pop(BRAIN + modality)
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
            )


def check_skip(patient: Patient, skip: int) -> None:
    """Raise ValueError where slices are asked for that were not prepared."""
    place = patient.prepared
    if place and skip < place.skip:
        raise ValueError(
            f"skip must be at least {place.skip}, with which the slices in {place.root} were "
            f"prepared, got {skip}; prepare them again with skip_slices={skip}."
        )


def read_row_group(place: PreparedSlices, columns: Collection[str], masks: bool = False) -> Any:
    """Return some columns of one patient's rows, as an Arrow table."""
    size = place.mask_bytes if masks else place.part_bytes
    name = f"{'masks' if masks else 'data'}/{place.part}.parquet"
    with open_file(place.root, name, size or 0) as file:
        footer = read_footer(place.root, name, size or 0)
        parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=True)
        return parquet.read_row_group(place.row_group, list(columns), use_threads=False)


@lru_cache(maxsize=64)
def read_footer(root: str, name: str, size: int) -> Any:
    """Return what a Parquet file says about itself; kept, for each patient's row group needs it."""
    with open_file(root, name, size) as file:
        return pq.read_metadata(file)


# An uncompressed TIFF of one strip behind a header of fixed length: any reader opens it, ours skips
# the header, and the Parquet file around it compresses as well as PNG and unpacks far faster.
# width, height, bits, uncompressed, grey, start, channels, rows, bytes, number format
TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 339)
HEADER_BYTES = 8 + 2 + 12 * len(TAGS) + 4  # file header, count, entries, end
LONG = 4  # type of an entry
FORMATS: dict[int, np.dtype[Any]] = {1: np.dtype("<u2"), 3: np.dtype("<f4")}


def encode_slice(image: NDArray[np.float32]) -> bytes:
    """A slice (H, W) as TIFF: 16-bit where all values are whole numbers below 65536, as scanners
    store them, otherwise 32-bit float."""
    with np.errstate(invalid="ignore"):  # what does not fit wraps, and so differs
        whole = image.astype("<u2")
    stored = whole if np.array_equal(whole, image) else image.astype("<f4")
    height, width = stored.shape
    kind = 3 if stored.dtype.kind == "f" else 1
    bits, size = 8 * stored.itemsize, stored.nbytes
    values = (width, height, bits, 1, 1, HEADER_BYTES, 1, height, size, kind)
    entries = [
        struct.pack("<HHII", number, LONG, 1, value)
        for number, value in zip(TAGS, values, strict=True)
    ]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + b"\0" * 4
    return header + stored.tobytes()


def decode_slice(data: bytes) -> NDArray[np.float32]:
    """The slice (H, W) float32 that `encode_slice` was given."""
    width, height = (struct.unpack_from("<I", data, 10 + 12 * row + 8)[0] for row in (0, 1))
    kind = FORMATS[struct.unpack_from("<I", data, 10 + 12 * (len(TAGS) - 1) + 8)[0]]
    values = np.frombuffer(data, kind, width * height, HEADER_BYTES)
    return values.reshape(height, width).astype(np.float32)


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """A mask (H, W), 0 or 1, as PNG, 255 in the lesion."""
    file = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(file, "PNG")
    return file.getvalue()


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """The mask (H, W) that `encode_mask` was given."""
    return (np.asarray(Image.open(io.BytesIO(data))) > 0).astype(np.uint8)
