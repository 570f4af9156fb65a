"""List the slices of a run before its first step: what an epoch must see once."""

import hashlib
import io
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.labels import HEALTHY, LABELS_FILE, UNHEALTHY, UNKNOWN
from ..data.layouts import INDEX_FILE
from ..data.patient import ALL, Patient, Skip, used_slices
from ..data.shards import BRAIN, check_skip
from ..data.slices import read_slices
from ..files import replace_file
from ..provenance import available_cores
from ..remote_files import read_bytes
from ..scans.background import brain_of

Facts = list[tuple[int, int, float]]  # slice index, label, mm2 of brain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class WorkList:
    """Slices that show brain, by patient and from inferior to superior; arrays are (N,).

    Attributes:
        patients: whose slices, in this order.
        owner: which of the patients.
        slice_index: counted from the most inferior slice of the scan.
        label: 1 unhealthy, 0 healthy, -1 neither.
        brain_area: mm2 of brain.
    """

    patients: tuple[Patient, ...]
    owner: NDArray[np.int64]
    slice_index: NDArray[np.int64]
    label: NDArray[np.int64]
    brain_area: NDArray[np.float64]

    @classmethod
    def of(cls, patients: Sequence[Patient], modality: str, skip: Skip) -> "WorkList":
        """Return the slices of some patients: scans are decoded once, prepared slices are not."""
        # How many pixels all sequences cover together is not among what is known of prepared ones.
        if modality != ALL and all(patient.prepared for patient in patients):
            return cls.from_facts(patients, _prepared_facts(patients, modality, skip))

        def list_slices(patient: Patient) -> Facts:
            return [
                (e.slice_index, e.label, _area(count_brain(e.image), e.spacing))
                for e in read_slices(patient, modality, skip=skip)
            ]

        with ThreadPoolExecutor(available_cores()) as pool:  # inflating frees the lock
            facts = pool.map(list_slices, patients)
            bar = tqdm(facts, total=len(patients), desc="listing slices", disable=None)
            return cls.from_facts(patients, list(bar))

    @classmethod
    def from_facts(cls, patients: Sequence[Patient], facts: Sequence[Facts]) -> "WorkList":
        """Return the list of what is known of each patient's slices."""
        owner = np.repeat(np.arange(len(patients)), [len(rows) for rows in facts])
        columns = np.array([row for rows in facts for row in rows], np.float64).reshape(-1, 3).T
        index, label = columns[:2].astype(np.int64)
        return cls(tuple(patients), owner, index, label, columns[2])

    @classmethod
    def stored(
        cls, path: Path, patients: Sequence[Patient], modality: str, skip: Skip
    ) -> "WorkList":
        """Return the list stored at `path`, made and stored first where there is none.

        Raises:
            ValueError: the labels file has changed since.
        """
        if not path.exists():
            work = cls.of(patients, modality, skip)
            replace_file(path, lambda draft: pq.write_table(work.table(), draft))
        rows = pq.read_table(path).to_pylist()
        number = {patient.patient_id: index for index, patient in enumerate(patients)}
        facts: list[Facts] = [[] for _ in patients]
        for row in rows:
            facts[number[row["patient_id"]]].append(
                (row["slice_index"], row["label"], row["brain_area"])
            )
        return cls.from_facts(patients, facts)._refuse_other_labels(path)

    def _refuse_other_labels(self, path: Path) -> "WorkList":
        """Return the list; ValueError where the labels file says other labels than the list."""
        for row, label in enumerate(self.label):
            named = self.patients[self.owner[row]].slice_labels
            if named is not None and named.get(int(self.slice_index[row]), UNKNOWN) != label:
                patient_id, index = self.key(row)
                raise ValueError(
                    f"{path.parent} holds a run begun before {LABELS_FILE} changed, at slice "
                    f"{index} of {patient_id}; give out=<another folder>, or delete it to begin "
                    "anew."
                )
        return self

    def table(self) -> pa.Table:
        """Return the list as it is stored."""
        ids = [self.patients[index].patient_id for index in self.owner]
        columns = {"patient_id": ids, "slice_index": self.slice_index, "label": self.label}
        return pa.table({**columns, "brain_area": self.brain_area})

    def __len__(self) -> int:
        return len(self.owner)

    def key(self, row: int) -> tuple[str, int]:
        """Return patient id and slice index of a row."""
        return self.patients[self.owner[row]].patient_id, int(self.slice_index[row])

    def select(self, chosen: NDArray[np.bool_]) -> "WorkList":
        """Return the rows where `chosen` is true."""
        return WorkList(
            self.patients,
            self.owner[chosen],
            self.slice_index[chosen],
            self.label[chosen],
            self.brain_area[chosen],
        )

    def select_rows(self, rows: Sequence[int]) -> "WorkList":
        """Return some of the rows, in the order of the list."""
        return self.select(np.isin(np.arange(len(self)), rows))

    def select_labels(self, labels: Collection[int]) -> "WorkList":
        """Return the rows with one of the labels."""
        return self.select(np.isin(self.label, list(labels)))

    def rows_to_paint(self, least: float) -> list[int]:
        """Return rows of healthy slices with `least` mm2 of brain; ValueError if there are none."""
        rows = np.flatnonzero((self.label == HEALTHY) & (self.brain_area >= least)).tolist()
        if not rows:
            raise ValueError(f"no healthy slice shows {least:g} mm2 of brain to paint a lesion on.")
        return rows

    def of_patients(self, patients: Sequence[Patient]) -> "WorkList":
        """Return the rows of some of the patients."""
        ids = {patient.patient_id for patient in patients}
        inside = np.array([patient.patient_id in ids for patient in self.patients])
        return self.select(inside[self.owner])

    def count_labels(self) -> dict[int, int]:
        """Return how many slices have each label."""
        return {label: int(np.sum(self.label == label)) for label in (UNKNOWN, HEALTHY, UNHEALTHY)}

    def check_labels(self) -> "WorkList":
        """Return the list; slices that a labels file does not name are counted in one warning.

        Raises:
            ValueError: no slice is healthy, or none is unhealthy, so nothing could be learned.
        """
        counts = self.count_labels()
        if not counts[HEALTHY] or not counts[UNHEALTHY]:
            raise ValueError(
                f"training needs healthy and unhealthy slices, got {counts[HEALTHY]} and "
                f"{counts[UNHEALTHY]} in {len(set(self.owner))} patients; add patients or correct "
                f"{LABELS_FILE}."
            )
        by_file = np.array([patient.slice_labels is not None for patient in self.patients])
        if unnamed := int(np.sum(by_file[self.owner] & (self.label == UNKNOWN))):
            logger.warning("%d slices are not named in %s and have no label", unnamed, LABELS_FILE)
        return self

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of all rows: the same slices, prepared or not, give the same."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            facts = (*self.key(row), int(self.label[row]), round(float(self.brain_area[row]), 2))
            digest.update(repr(facts).encode())
        return digest.hexdigest()


def _prepared_facts(patients: Sequence[Patient], modality: str, skip: Skip) -> list[Facts]:
    number = {patient.patient_id: index for index, patient in enumerate(patients)}
    facts: list[Facts] = [[] for _ in patients]
    roots = {patient.prepared.root for patient in patients if patient.prepared}
    columns = ["patient_id", "slice_index", "slice_count", "label", "spacing", BRAIN + modality]
    for root in sorted(roots):
        index = pq.read_table(io.BytesIO(read_bytes(root, INDEX_FILE)), columns=columns)
        for patient_id, slice_index, count, label, spacing, pixels in zip(
            *(column.to_pylist() for column in index.columns), strict=True
        ):
            if patient_id not in number or not pixels:
                continue
            if not facts[number[patient_id]]:
                check_skip(patients[number[patient_id]], skip, count)
            if slice_index in used_slices(patient_id, count, skip):
                facts[number[patient_id]].append((slice_index, label, _area(pixels, spacing)))
    return facts


def count_brain(image: NDArray[np.float32]) -> int:
    """Return how many pixels of a slice (H, W) or (C, H, W) show brain in any sequence."""
    return int(np.count_nonzero(brain_of(image)))


def _area(pixels: int, spacing: Sequence[float]) -> float:
    return float(pixels * prod(spacing[1:]))
