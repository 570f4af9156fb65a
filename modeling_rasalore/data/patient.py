"""Name what data sets consist of: a patient before anything is opened, and a labelled slice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .persons import Identity, person_of

ALL = "all"  # in place of a modality: all of them as channels, in this order
EACH = "each"  # in place of a modality: every sequence as a scan of its own
Skip = int | str  # lowest and highest slices that are left out: a number, or AUTO
AUTO = "auto"  # as many as 15 of BraTS's 155
AUTO_FEWEST = 50  # slices; scans of fewer have thick ones, all of which count
# Slices (S, H, W) of a scan, background 0, and its spacing -> by index, what a network that sees
# the whole scan needs to know of a slice: `see` of an image processor.
See = Callable[[Any, tuple[float, float, float]], Any]


def used_slices(patient_id: str, count: int, skip: Skip) -> range:
    """Return the slices of a scan of `count` that are neither among its first nor its last ones.

    Raises:
        ValueError: `skip` is neither AUTO nor a number from 0 on, or leaves no slice.
    """
    if skip == AUTO:
        number = round(count * 15 / 155) if count >= AUTO_FEWEST else 0
    elif isinstance(skip, int) and skip >= 0:
        number = skip
    else:
        raise ValueError(f"skip_slices must be auto or a number from 0 on, got {skip!r}.")
    if 2 * number >= count:
        raise ValueError(
            f"skip_slices={skip} leaves none of the {count} slices of {patient_id}; give a smaller "
            "number, or skip_slices=auto, which leaves all slices of scans with few."
        )
    return range(number, count - number)


@dataclass(frozen=True)
class PreparedSlices:
    """Where the slices of one patient lie in a folder of train/prepare_slices.py.

    Attributes:
        root: the folder, web address or repo id.
        part: name of the Parquet file, below data/ and without ending.
        part_bytes: its length.
        row_group: which row group of it is this patient's.
        mask_bytes: length of the file of the same name below masks/; None where there is none.
        skip: how many of the first and of the last slices were left out.
    """

    root: str
    part: str
    part_bytes: int
    row_group: int
    mask_bytes: int | None = None
    skip: int = 0


@dataclass(frozen=True)
class Patient:
    """One patient folder (or file) of a data set; nothing is opened until slices are read.

    Attributes:
        patient_id: the folder's name, with that of the visit below it; or the file's name without
            sequence and ending.
        images: modality ("t1", "t1ce", "t2", "flair") -> scan.
        channels: modality -> channel, where one 4-D file holds all modalities; else empty.
        mask: label map, any value above 0 being lesion; None if there is none.
        brain_mask: 1 inside the brain; None where the scans' background is known otherwise.
        slice_labels: slice index (0 = most inferior) -> 1 unhealthy, 0 healthy; None without a
            labels file, and then the mask decides.
        source: name of the layout.
        prepared: where the slices are, for patients without scans; `images` and `mask` then only
            say what there is.
        identity: who the patient is by a table of persons; None where none was given, or where it
            says nothing of this one.
    """

    patient_id: str
    images: dict[str, Path]
    channels: dict[str, int] = field(default_factory=dict)
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: dict[int, int] | None = None
    source: str = "folder"
    prepared: PreparedSlices | None = None
    identity: Identity | None = None

    @property
    def person(self) -> str:
        """Who was scanned; one person may have been scanned at several visits."""
        return self.identity.person if self.identity else person_of(self.patient_id)

    @property
    def other_names(self) -> tuple[str, ...]:
        """The person's names in other data sets, as far as a table tells."""
        return self.identity.others if self.identity else ()

    @property
    def left_out(self) -> bool:
        """Whether the patient has no part, because another data set shows the same person."""
        return self.identity is not None and self.identity.left_out

    def of_each_sequence(self) -> "list[Patient]":
        """Return the patient once per sequence, with that alone; the ids end in "/" and its name.

        Raises:
            ValueError: the patient has prepared slices, which lie together.
        """
        if self.prepared:
            raise ValueError(
                f"{EACH} reads scans, but {self.patient_id} has prepared slices; give the folder "
                "they were prepared from, or one modality."
            )
        return [
            replace(self, patient_id=f"{self.patient_id}/{name}", images={name: path})
            for name, path in self.images.items()
        ]

    @property
    def has_labels(self) -> bool:
        """Whether a mask, a labels file or prepared slices tell which slices are unhealthy."""
        told = self.mask is not None or self.slice_labels is not None
        return told or self.prepared is not None


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One axial slice of a patient that shows brain.

    Attributes:
        image: (H, W) float32, or (4, H, W) with all sequences as channels; 0 in the background and
            above 0 elsewhere.
        label: 1 unhealthy, 0 healthy, -1 neither.
        mask: (H, W) uint8, 1 in the lesion; None where it was not asked for or is not there.
        patient_id: of whom.
        slice_index: 0 = most inferior, of the scan's `slice_count` slices.
        spacing: mm between slices, rows and columns.
        source: name of the data set's layout.
        modality: "t1", "t1ce", "t2", "flair" or "all".
        seen: what `see` said of the slice; None without one.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray | None
    patient_id: str
    slice_index: int
    slice_count: int
    spacing: tuple[float, float, float]
    source: str
    modality: str
    seen: Any = None

    @property
    def lesion(self) -> np.ndarray:
        """(H, W) bool, True in the lesion; only of slices that were read with their masks."""
        assert self.mask is not None, f"{self.patient_id} was read without its mask"
        return self.mask > 0


def stack_slices(images: Sequence[np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Return slices (H, W) of a scan at their distances, (S, H, W); 0 where one is missing.

    Slice number `indices[i] - indices[0]` is image i; the indices ascend.
    """
    scan = np.zeros((indices[-1] - indices[0] + 1, *images[0].shape), np.float32)
    for index, image in zip(indices, images, strict=True):
        scan[index - indices[0]] = image
    return scan
