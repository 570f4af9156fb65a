"""Make the map that learns nothing: intensity, smoothed in 3-D, against the other hemisphere.

Every trained network has to beat the free map, and `rasalore predict --free-map` adds it to a
network's scores. Ranks stand for intensities, so that a scan's scale has no say. All happens within
the box that holds the brain, at 12 bytes per voxel of it.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scans.background import BrainSlices, index_box

FloatImage = NDArray[np.float32]
BoolImage = NDArray[np.bool_]
Slices = FloatImage | Sequence[FloatImage] | BrainSlices  # (S, H, W)
Spacing = tuple[float, float, float]  # mm between slices, rows and columns
Box = tuple[slice, ...]

INTENSITY_MM = 2.0  # standard deviation of the Gaussian that smooths intensities,
MIRROR_MM = 4.0  # and of the one before hemispheres are compared: no brain is quite symmetric
SAMPLED_VOXELS = 2**20  # of a larger brain, as many tell the ranks
MAD_OF_NORMAL = 1.4826  # a normal law's standard deviation per median absolute deviation
NEXT_TO_END = 2.0**-24  # how far from 0 and 1, whose logits are infinite, scores are held


class Polarity(StrEnum):
    """What tells a lesion from the brain around it."""

    BRIGHT = "bright"
    DARK = "dark"
    DARKER_THAN_MIRROR = "darker than mirror"


# Fixed beforehand: slice labels cannot choose, for a slice with a lesion differs from others in
# more than the lesion, and they have preferred the wrong polarity.
POLARITIES = {
    "t2": Polarity.BRIGHT,  # oedema and tumour hold water: long T2
    "flair": Polarity.BRIGHT,  # the same, free fluid suppressed
    "t1": Polarity.DARK,  # the same water: long T1
    # Core and oedema are darker than tissue, but an enhancing rim and vessels are brighter: a rank
    # alone tells little, and fluid is as dark on the other side.
    "t1ce": Polarity.DARKER_THAN_MIRROR,
}


def polarity_of(sequence: str | None) -> Polarity:
    """Return how lesions look in a sequence.

    Raises:
        ValueError: it is not known.
    """
    if sequence not in POLARITIES:
        raise ValueError(
            f"the free map needs to know the sequence, {', '.join(POLARITIES)}, got {sequence}; "
            "name it with --modality."
        )
    return POLARITIES[sequence]


def smoothed_rank(
    slices: Slices, brain: BoolImage, spacing: Spacing, polarity: Polarity = Polarity.BRIGHT
) -> FloatImage:
    """Return each voxel's rank in the scan's brain, smoothed, (S, H, W) in [0, 1], 0 outside.

    Args:
        slices: (S, H, W), on any scale.
        brain: (S, H, W).
        spacing: mm between slices, rows and columns.
        polarity: unless bright, the darkest voxel ranks highest.
    """
    ranks = np.zeros(brain.shape, np.float32)
    if (box := index_box(brain)) is not None:
        fill_ranks(ranks[box], slices, brain[box], box, polarity)
        smooth_scores(ranks[box], brain[box], spacing, INTENSITY_MM)
    return ranks


def free_map(slices: Slices, brain: BoolImage, spacing: Spacing, polarity: Polarity) -> FloatImage:
    """Return the map that learns nothing, (S, H, W) in [0, 1], 0 outside the brain.

    1. r: the rank, smoothed with 2 mm.
    2. d: the rank, smoothed with 4 mm, less that of the mirrored voxel; 0 where that is not brain.
       The midline is the column of the brain's centre of mass.
    3. (r + d + 1) / 3; where only the other side tells, (d + 1) / 2.

    Args:
        slices, brain, spacing: as for `smoothed_rank`, columns from right to left.
        polarity: of the sequence, as `POLARITIES` has it.
    """
    result = np.zeros(brain.shape, np.float32)
    if (box := index_box(brain)) is None:
        return result
    maps, inside = result[box], brain[box]
    fill_ranks(maps, slices, inside, box, polarity)
    smoother = maps.copy()
    smooth_scores(maps, inside, spacing, INTENSITY_MM)
    smooth_scores(smoother, inside, spacing, MIRROR_MM)
    midline = find_midline(inside)
    for plane, smooth, within in zip(maps, smoother, inside, strict=True):
        excess = exceed_mirror(smooth, within, midline)
        alone = polarity is Polarity.DARKER_THAN_MIRROR
        plane[...] = (excess + 1) / 2 if alone else (plane + excess + 1) / 3
        plane[~within] = 0
    return result


def fill_ranks(
    ranks: FloatImage, slices: Slices, inside: BoolImage, box: Box, polarity: Polarity
) -> None:
    """Write each brain voxel's rank in (0, 1): the share of darker voxels and half of the equal.

    Args:
        ranks: zeros, of the box's shape.
        slices: of the whole scan.
        inside: the brain in the box.
        box: of the brain, in the scan.
        polarity: as for `smoothed_rank`.
    """
    step = _sampling_step(inside)
    cut = zip(_planes(slices, box), inside, strict=True)
    sample = np.sort(np.concatenate([plane[within][::step] for plane, within in cut]))
    for row, plane, within in zip(ranks, _planes(slices, box), inside, strict=True):
        # Each value once and in order: looked up as they lie, they take two to five times as long.
        values, places = np.unique(plane[within], return_inverse=True)
        darker, not_brighter = (np.searchsorted(sample, values, s) for s in ("left", "right"))
        share = (darker + not_brighter) / (2 * sample.size)
        row[within] = (share if polarity is Polarity.BRIGHT else 1 - share)[places]


def _sampling_step(brain: BoolImage) -> int:
    """Return which brain voxels tell the ranks of all: every first, second, ..."""
    return -(-int(np.count_nonzero(brain)) // SAMPLED_VOXELS)


def _planes(slices: Slices, box: Box) -> Iterator[FloatImage]:
    """Yield what the box holds of each slice; a scan's slices may be made anew each time."""
    return (slices[index][box[1:]] for index in range(box[0].start, box[0].stop))


# --- The other hemisphere -------------------------------------------------------------------------
def find_midline(brain: BoolImage) -> float:
    """Return the column, between two of them as a fraction, of a brain's centre of mass."""
    voxels = np.count_nonzero(brain, axis=(0, 1))
    return float(np.average(np.arange(len(voxels)), weights=voxels))


def exceed_mirror(plane: FloatImage, brain: BoolImage, midline: float) -> FloatImage:
    """Return by how much each pixel of a slice exceeds its mirror image, (H, W); 0 without one.

    Args:
        plane: (H, W), 0 outside the brain.
        brain: (H, W); the mirrored pixel is the mean of the two columns it lies between, of what
            is brain there, and has to be brain for at least a half.
        midline: column that is its own mirror image.
    """
    columns = 2 * midline - np.arange(plane.shape[1])
    left = np.floor(columns).astype(int)
    total, weight = np.zeros_like(plane), np.zeros_like(plane)
    for column, share in ((left, 1 + left - columns), (left + 1, columns - left)):
        exists = (column >= 0) & (column < plane.shape[1])
        shares = np.where(exists, share, 0).astype(np.float32)
        column = column.clip(0, plane.shape[1] - 1)
        total += plane[:, column] * shares
        weight += brain[:, column] * shares
    known = brain & (weight >= 0.5)
    mirrored = np.divide(total, weight, out=np.zeros_like(plane), where=known)
    return np.where(known, plane - mirrored, 0)


# --- Fusion with a network's scores ---------------------------------------------------------------
def fusion_offsets(free: FloatImage, brain: BoolImage, weight: float) -> FloatImage:
    """Return what is added to the logits of a scan's scores, in place of its free map (S, H, W).

    It is `weight` times the free map's distance from its median in the brain, in standard
    deviations as the median absolute deviation tells them. So half of the brain gains and half
    loses, the sign of the weight being positive, and no healthy scan is needed.
    """
    values = free[brain][:: _sampling_step(brain)]
    median = np.median(values)
    deviation = MAD_OF_NORMAL * np.median(np.abs(values - median))
    if deviation > 0:
        free -= median
        free *= weight / deviation
        free[~brain] = 0
    else:  # one value everywhere
        free[...] = 0
    return free


def fuse_scores(scores: FloatImage, offsets: FloatImage, brain: BoolImage) -> FloatImage:
    """Return sigmoid(logit(score) + offset) in the brain, of the scores' shape; 0 outside.

    Args:
        scores: (..., H, W) in [0, 1].
        offsets: (H, W), of `fusion_offsets`.
        brain: (H, W).
    """
    held = scores.clip(NEXT_TO_END, 1 - NEXT_TO_END)
    with np.errstate(over="ignore"):  # a huge weight: 1 / infinity
        fused = 1 / (1 + (1 - held) / held * np.exp(-offsets))
    return np.where(brain, fused, 0).astype(np.float32)


def finish_scores(
    scores: FloatImage,
    brain: BoolImage,
    spacing: Spacing,
    smooth_mm: float,
    offsets: FloatImage | None,
) -> None:
    """Blur scores (S, H, W) in place, then let the free map join them.

    Args:
        scores: of a network, 0 outside the brain.
        brain: (S, H, W).
        spacing: mm between slices, rows and columns.
        smooth_mm: standard deviation of the blur; 0 leaves them.
        offsets: (S, H, W), of `fusion_offsets`; None leaves them.
    """
    if smooth_mm:
        smooth_scores(scores, brain, spacing, smooth_mm)
    if offsets is not None:
        for plane, offset, inside in zip(scores, offsets, brain, strict=True):
            plane[...] = fuse_scores(plane, offset, inside)


# --- Smoothing ------------------------------------------------------------------------------------
def smooth_scores(
    scores: NDArray[np.float32],
    brain: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    sigma_mm: float,
) -> None:
    """Blur scores (S, H, W) in place with a 3-D Gaussian of `sigma_mm`, inside the brain only.

    What lies outside the brain neither enters nor lowers a score: it has weight 0.

    Args:
        scores: 0 outside the brain.
        brain: (S, H, W).
        spacing: mm between slices, rows and columns.
    """
    weights = brain.astype(np.float32)
    for array in (scores, weights):
        _blur(array, [sigma_mm / size for size in spacing])
    for plane, weight, inside in zip(scores, weights, brain, strict=True):
        np.divide(plane, weight, out=plane, where=inside)
        plane[~inside] = 0
        np.clip(plane, 0, 1, out=plane)  # rounding


def _blur(array: NDArray[np.float32], sigmas: list[float]) -> None:
    for plane in array:
        plane[...] = ndimage.gaussian_filter(plane, sigmas[1:], mode="constant")
    for row in array.swapaxes(0, 1):
        row[...] = ndimage.gaussian_filter1d(row, sigmas[0], axis=0, mode="constant")
