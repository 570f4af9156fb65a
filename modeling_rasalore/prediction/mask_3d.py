"""Treat scores and masks of a volume as 3-D objects: smooth them, measure and remove parts.

Everything works in place or within the box that holds the mask: a volume may have 10^8 voxels.
"""

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scans.background import index_box

NEIGHBOURS_26 = np.ones((3, 3, 3))


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


def part_sizes(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the voxels of each connected part of a mask (26 neighbours), in no order."""
    box = index_box(mask)
    return np.zeros(0, np.int64) if box is None else _count_voxels(_number_parts(mask[box]))[1:]


def remove_small_parts(mask: NDArray[np.uint8], smallest: float) -> None:
    """Set connected parts of a mask (S, H, W) with fewer than `smallest` voxels to 0, in place."""
    box = index_box(mask)
    if box is None:
        return
    numbers = _number_parts(mask[box])
    stays = _count_voxels(numbers) >= smallest
    stays[0] = False  # the background
    for plane, plane_numbers in zip(mask[box], numbers, strict=True):
        plane[...] = stays[plane_numbers]


def _number_parts(mask: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the number of each voxel's connected part, from 1 on, and 0 outside the mask.

    Two bytes per voxel, which is an eighth of a prediction, or four for more than 65535 parts.
    """
    with suppress(RuntimeError):  # more parts than uint16 has numbers
        return ndimage.label(mask, NEIGHBOURS_26, output=np.uint16)[0]
    return ndimage.label(mask, NEIGHBOURS_26)[0]


def _count_voxels(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Return the voxels of each part number; slice by slice, because counting copies to int64."""
    counts = np.zeros(int(numbers.max()) + 1, np.int64)
    for plane in numbers:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return counts
