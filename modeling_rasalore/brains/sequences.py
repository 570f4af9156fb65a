"""Recognise the sequence of a brain from how it looks, or say that it cannot be told.

Fluid, grey and white matter follow each other from the brain's surface inwards, and every sequence
shows them in another order of brightness. The median brightness at each depth is weighed by a
logistic regression for three kinds: T1 (with or without contrast agent), T2 and FLAIR.
`train/plain/recognition.py` learns its table from synthetic brains alone, and checks it on scans.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scans.naming import Statement
from ..scans.volumes import Volume
from .anatomy import JUDGED_ML, sample_scan

KINDS = {"t1": frozenset({"t1", "t1ce"}), "t2": frozenset({"t2"}), "flair": frozenset({"flair"})}
SHELLS_MM = (0, 4, 6, 8, 10, 12, 15, 18, 22, 26, 30, 36)  # depths where shells begin
FEWEST_VOXELS = 20  # of a shell that tells its brightness
# Probability; on 305 real scans, 210 are told so and 7 of them wrong: 5 of the 48 told T2 or FLAIR.
SURE = 0.95
CERTAIN = 0.99  # to contradict a name: 147 of them, 2 wrong
TABLE = "sequences.json"
LOOKS = "its image looks like"  # how a statement of this module begins


@dataclass(frozen=True, eq=False)
class Table:
    """What was learned from synthetic brains.

    Attributes:
        weights: (3, 12), of the brightness of each shell for the logit of each of `KINDS`.
        offsets: (3,), of the logits.
    """

    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]


@cache
def load_table() -> Table:
    """Return the table that comes with the package."""
    stored = json.loads(files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    return Table(np.array(stored["weights"]), np.array(stored["offsets"]))


def recognise_sequence(volume: Volume, sure: float = SURE) -> Statement | None:
    """Return what a brain's image says of its sequence; None where that cannot be told.

    T1 with and without contrast agent look too much alike: both fit then.

    Args:
        volume: a scan of the brain alone.
        sure: probability from which it is told.
    """
    profile = measure_profile(volume.slices, volume.spacing)
    if profile is None:
        return None
    probabilities = weigh_profile(profile, load_table())
    best = int(probabilities.argmax())
    if probabilities[best] < sure:
        return None
    name, fits = list(KINDS.items())[best]
    agent = ", with or without contrast agent" if len(fits) > 1 else ""
    return Statement(f"{LOOKS} a {name}{agent}", fits)


def measure_profile(
    slices: np.ndarray, spacing: tuple[float, float, float]
) -> NDArray[np.float64] | None:
    """Return the brightness of a brain at each depth below its surface, (12,).

    It is the shell's median less the brain's, in units of the brain's range from its 10th to its
    90th percentile; shells of few voxels get what lies between their neighbours.

    Args:
        slices: (S, H, W), a brain alone.
        spacing: mm between slices, rows and columns.

    Returns:
        None where there is less than 300 mL, or no contrast.
    """
    images, spacing = sample_scan(slices, spacing)
    if images.brain_voxels * np.prod(spacing) / 1000 < JUDGED_ML:
        return None
    whole = images.whole()
    brain = whole > 0
    outline = np.pad(ndimage.binary_fill_holes(brain), 1)
    depths = ndimage.distance_transform_edt(outline, spacing)[1:-1, 1:-1, 1:-1][brain]
    values = whole[brain]
    shells = np.digitize(depths, SHELLS_MM) - 1
    low, middle, high = np.percentile(values, (10, 50, 90))
    if low == high:
        return None
    told = [i for i in range(len(SHELLS_MM)) if np.count_nonzero(shells == i) >= FEWEST_VOXELS]
    medians = [(np.median(values[shells == i]) - middle) / (high - low) for i in told]
    return np.interp(range(len(SHELLS_MM)), told, medians)


def weigh_profile(profile: NDArray[np.float64], table: Table) -> NDArray[np.float64]:
    """Return the probability of each kind, (3,)."""
    logits = table.weights @ profile + table.offsets
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum())
