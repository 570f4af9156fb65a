"""Scores and masks of a volume as 3-D objects: smoothing, connected parts, extent.

Everything works in place or within the box that holds the mask: a volume may have 10^8 voxels.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..scans.background import index_box

NEIGHBOURS_26 = np.ones((3, 3, 3))
PIECE_VOXELS = 2**20


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
    return np.zeros(0, np.int64) if box is None else _join(mask[box])[1]


def remove_small_parts(mask: NDArray[np.uint8], smallest: float) -> None:
    """Set connected parts of a mask (S, H, W) with fewer than `smallest` voxels to 0, in place."""
    box = index_box(mask)
    if box is None:
        return
    part_of, sizes = _join(mask[box])
    kept = (sizes >= smallest)[part_of]
    start = 0
    for own, parts, count in _pieces(mask[box]):
        own[...] = np.append(False, kept[start : start + count])[parts[: len(own)]]
        start += count


def _pieces(
    mask: NDArray[np.uint8],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32], int]]:
    """Yield a few slices at a time, their part numbers from 1 on, and how many parts there are.

    The numbers cover one slice more where there is one: the next piece's first, which joins them.
    A number per voxel of the whole mask would take as much memory as the scan.
    """
    step = max(PIECE_VOXELS // mask[0].size, 1)
    for start in range(0, len(mask), step):
        parts, count = ndimage.label(mask[start : start + step + 1], NEIGHBOURS_26)
        yield mask[start : start + step], parts, count


def _join(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the connected part of each part of each piece, and the voxels of the connected ones.

    Parts of two pieces are one where they have a voxel of the shared slice in common.
    """
    sizes, links = [], []
    shared: NDArray[np.int64] | None = None
    total = 0
    for own, parts, count in _pieces(mask):
        sizes.append(np.bincount(parts[: len(own)].ravel(), minlength=count + 1)[1:])
        if shared is not None:
            inside = parts[0] > 0
            pairs = np.unique(shared[inside] * (count + 1) + parts[0][inside])  # once each
            links.append(np.stack([pairs // (count + 1), pairs % (count + 1) + total - 1]))
        shared = parts[-1] + np.int64(total - 1)  # an array of its own
        total += count
    joined = np.concatenate([np.zeros((2, 0), np.int64), *links], axis=1)
    graph = coo_array((np.ones(joined.shape[1]), (joined[0], joined[1])), (total, total))
    found, part_of = connected_components(graph, directed=False)
    voxels = np.bincount(part_of, np.concatenate(sizes), found)
    return part_of, voxels.astype(np.int64)
