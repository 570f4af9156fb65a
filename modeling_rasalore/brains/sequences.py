"""Recognise the sequence of a brain from how it looks, or say that it cannot be told.

The brain is cut into cells. Each cell's mean, less that of its surroundings, is compared with the
average of synthetic brains of three kinds: T1 (with or without contrast agent), T2 and FLAIR. The
three correlations are weighed by a logistic regression. `train/plain/recognition.py` learns the
table from synthetic brains alone, and checks it on scans.
"""

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
CELLS = (12, 14, 12)  # from below, from the front, from the patient's right
SAMPLE_MM = 4.2
BRIGHTEST = 4.0  # in medians of the brain
SURROUNDINGS = 2.0  # cells, standard deviation of a Gaussian
FEWEST_VOXELS = 3  # of a cell that counts
EXTREME = 2  # percent of cells on either side that count as their neighbours in rank: lesions
SURE = 0.8  # probability
TABLE = "sequences.npz"


@dataclass(frozen=True, eq=False)
class Table:
    """What was learned from synthetic brains.

    Attributes:
        averages: (3, *CELLS) float, the average brain of each of `KINDS`, in any unit.
        shown: CELLS bool, the cells that nearly all brains fill.
        weights: (3, 3), of the correlation with each average for the logit of each kind.
        offsets: (3,), of the logits.
    """

    averages: NDArray[np.float64]
    shown: NDArray[np.bool_]
    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]


@cache
def load_table() -> Table:
    """Return the table that comes with the package."""
    path = files(__package__).joinpath(TABLE)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return Table(*(stored[name] for name in ("averages", "shown", "weights", "offsets")))


def look_at_sequence(volume: Volume) -> Statement | None:
    """Return what a brain's image says of its sequence; None where that cannot be told.

    T1 with and without contrast agent look too much alike: both fit then.

    Args:
        volume: a scan of the brain alone.
    """
    cells = cut_into_cells(volume.slices, volume.spacing)
    if cells is None:
        return None
    probabilities = weigh(compare_with_averages(*cells, load_table()), load_table())
    best = int(probabilities.argmax())
    if probabilities[best] < SURE:
        return None
    name, fits = list(KINDS.items())[best]
    words = "its image looks like a t1, with or without contrast agent"
    return Statement(words if name == "t1" else f"its image looks like a {name}", fits)


def cut_into_cells(
    slices: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
    """Return each cell's mean less its surroundings', in medians of the brain, and which count.

    Args:
        slices: (S, H, W), a brain alone.
        spacing: mm between slices, rows and columns.

    Returns:
        CELLS float and CELLS bool; None where there is less than 300 mL.
    """
    images, spacing = sample_scan(slices, spacing, SAMPLE_MM)
    if images.brain_voxels * np.prod(spacing) / 1000 < JUDGED_ML:
        return None
    whole = images.whole()
    brain = whole > 0
    values = np.minimum(whole[brain] / np.median(whole[brain]), BRIGHTEST)
    numbers, inside = _number_cells(brain)
    count = int(np.prod(CELLS))
    voxels = np.bincount(numbers, minlength=count).reshape(CELLS)
    sums = np.bincount(numbers, values[inside], minlength=count).reshape(CELLS)
    shown = voxels >= FEWEST_VOXELS
    means = np.where(shown, sums / np.maximum(voxels, 1), 0)
    weight = ndimage.gaussian_filter(shown.astype(float), SURROUNDINGS, mode="constant")
    around = ndimage.gaussian_filter(means, SURROUNDINGS, mode="constant")
    return np.where(shown, means - around / np.maximum(weight, 1e-3), 0), shown


def _number_cells(brain: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the cell of each voxel of the brain that lies in one, and which of them do."""
    cells, inside = [], np.ones(np.count_nonzero(brain), bool)
    for positions, number in zip(np.nonzero(brain), CELLS, strict=True):
        low, high = np.percentile(positions, (1, 99))  # a few voxels may stand out
        cell = np.floor((positions - low) / (high - low + 1e-6) * number).astype(np.int64)
        inside &= (cell >= 0) & (cell < number)
        cells.append(cell)
    return np.ravel_multi_index([cell[inside] for cell in cells], CELLS), inside


def compare_with_averages(
    cells: NDArray[np.float64], shown: NDArray[np.bool_], table: Table
) -> NDArray[np.float64]:
    """Return the correlation of a brain's cells with the average of each kind, (3,) in [-1, 1]."""
    common = shown & table.shown
    if np.count_nonzero(common) < 2:
        return np.zeros(len(KINDS))
    values = cells[common]
    values = np.clip(values, *np.percentile(values, (EXTREME, 100 - EXTREME)))
    values = values - values.mean()
    averages = table.averages[:, common] - table.averages[:, common].mean(1, keepdims=True)
    norms = np.linalg.norm(values) * np.linalg.norm(averages, axis=1)
    return np.asarray(averages @ values / np.maximum(norms, 1e-9))


def weigh(correlations: NDArray[np.float64], table: Table) -> NDArray[np.float64]:
    """Return the probability of each kind, (3,)."""
    logits = table.weights @ correlations + table.offsets
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum())
