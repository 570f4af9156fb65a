"""Keep pseudo-masks on disk: a Parquet file per patient, a row per slice, bits packed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..files import replace_file

Mask = NDArray[np.uint8]
SCHEMA = pa.schema(
    {
        "patient_id": pa.string(),
        "slice_index": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "area": pa.float32(),  # of the pseudo-mask, mm2
        "pseudo_mask": pa.binary(),
        "sam_mask": pa.binary(),  # null where no prompted segmenter was used
        "ignored": pa.binary(),  # null where every pixel counts
    }
)

PLANES = ("pseudo_mask", "sam_mask", "ignored")


@dataclass(frozen=True)
class SliceMasks:
    """Masks of one slice, each (H, W) uint8 in the slice's frame.

    area: of the pseudo-mask in mm2; sam_mask: None where no prompted segmenter was used; ignored: 1
    where nobody knows whether there is a lesion (never on the pseudo-mask, whose area is what can
    be learned from), None where every pixel counts.
    """

    patient_id: str
    slice_index: int
    pseudo_mask: Mask
    area: float
    sam_mask: Mask | None = None
    ignored: Mask | None = None


class MaskTable:
    """Masks of many slices by patient and slice index; unpacked when they are read."""

    def __init__(self, folder: str | Path, patient_ids: Iterable[str]):
        """Open the tables of these patients.

        Raises:
            ValueError: when a patient has none.
        """
        self.rows: dict[tuple[str, int], dict[str, object]] = {}
        for patient_id in patient_ids:
            path = table_path(Path(folder), patient_id)
            if not path.is_file():
                raise ValueError(
                    f"{folder} has no pseudo-masks of patient {patient_id}; run "
                    "train/make_pseudo_masks.py with out=<that folder> again, it adds what lacks."
                )
            for row in pq.read_table(path).to_pylist():
                self.rows[row["patient_id"], row["slice_index"]] = row

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.rows)

    def drop_small(self, minimum_area: float) -> int:
        """Forget slices whose pseudo-mask is smaller than an area in mm2; returns how many."""
        small = [key for key, row in self.rows.items() if row["area"] < minimum_area]  # type: ignore[operator]
        for key in small:
            del self.rows[key]
        return len(small)

    def __getitem__(self, key: tuple[str, int]) -> SliceMasks:
        row = self.rows[key]
        shape = (row["height"], row["width"])
        planes = {
            name: None if row.get(name) is None else unpack(row[name], shape)  # type: ignore[arg-type]
            for name in PLANES
        }
        return SliceMasks(*key, area=float(row["area"]), **planes)  # type: ignore[arg-type]


def table_path(folder: Path, patient_id: str) -> Path:
    """Return where a patient's masks lie."""
    return folder / "masks" / f"{patient_id}.parquet"


def count_masks(folder: Path, patient_id: str) -> int:
    """Return how many slices of a patient have a mask."""
    count: int = pq.read_metadata(table_path(folder, patient_id)).num_rows
    return count


def write_masks(folder: Path, patient_id: str, masks: Iterable[SliceMasks]) -> Path:
    """Write one patient's masks; the file appears when it is complete."""
    rows = [
        {
            "patient_id": m.patient_id,
            "slice_index": m.slice_index,
            "height": m.pseudo_mask.shape[0],
            "width": m.pseudo_mask.shape[1],
            "area": m.area,
            **{name: pack(getattr(m, name)) for name in PLANES},
        }
        for m in masks
    ]
    path = table_path(folder, patient_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, SCHEMA)
    return replace_file(path, lambda draft: pq.write_table(table, draft))


def pack(mask: Mask | None) -> bytes | None:
    """Return the packed bits of a mask (H, W)."""
    return None if mask is None else np.packbits(mask).tobytes()


def unpack(bits: bytes, shape: tuple[int, int]) -> Mask:
    """Return the mask (H, W) of packed bits."""
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=shape[0] * shape[1])
    return flat.reshape(shape)
