"""Tell that one patient is in two places: ids in two parts of a split, copies of an image."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from ..scans.background import index_box


def check_disjoint(split: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError when a patient id is in two parts ("train", "test") or twice in one."""
    places = defaultdict(list)
    for part, patient_ids in split.items():
        for patient_id in patient_ids:
            places[patient_id].append(part)
    for patient_id, parts in sorted(places.items()):
        if len(parts) > 1:
            raise ValueError(
                f"a patient belongs to one split once, got {patient_id} in {' and '.join(parts)}; "
                "split again by patient."
            )


def image_fingerprint(slices: np.ndarray) -> str:
    """Hexadecimal hash of what a scan shows, slices (S, H, W): the same for copies of one image.

    Data type, a factor on the intensities and margins without signal (0 or below) change nothing.
    """
    shown = np.asarray(slices, np.float64).clip(min=0)
    shown = shown[index_box(shown > 0) or np.s_[:0, :0, :0]]
    # Not rounded at one half: ratios of whole numbers lie on it, where a copy's last bit decides.
    levels = np.floor(shown / shown.max(initial=1e-30) * 255 + 0.382).astype(np.uint8)
    return hashlib.sha256(repr(levels.shape).encode() + levels.tobytes()).hexdigest()
