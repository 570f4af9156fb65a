"""Find the connected parts of a mask, and measure what each of them is.

All happens within the box that holds the mask: a volume may have 10^8 voxels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scans.background import index_box

NEIGHBOURS_26 = np.ones((3, 3, 3))
LARGE_ML = 1.0  # a headline counts findings from this volume on
MOST_FINDINGS = 1000  # measured one by one; noise may have a hundred thousand
Finding = dict[str, Any]


def measure_findings(
    mask: NDArray[np.uint8],
    scores: NDArray[np.float32],
    voxel_mm3: float,
    slice_affine: NDArray[np.float64] | None = None,
    most: int = MOST_FINDINGS,
) -> tuple[list[Finding], Finding]:
    """Return one row per connected part of a mask (26 neighbours), and what has no row.

    Parts are ordered by volume times mean score, the greatest first: what is large and certain.
    The second result says how many parts have no row, and their volume together.

    Args:
        mask: (S, H, W) of 0 and 1.
        scores: (S, H, W) in [0, 1].
        voxel_mm3: volume of a voxel.
        slice_affine: (4, 4), slice, row and column -> world coordinates in mm; None: no centres.
        most: how many parts have a row.
    """
    box = index_box(mask)
    if box is None:
        return [], {"count": 0, "millilitres": 0.0}
    numbers = _number_parts(mask[box])
    sums = _sum_parts(numbers, scores[box])
    voxels, score_sums = sums[0], sums[1]
    order = _order_parts(score_sums, most)
    boxes = ndimage.find_objects(numbers)
    rows = []
    for part in order:
        lowest = box[0].start + boxes[part][0].start
        row: Finding = {
            "millilitres": float(voxels[part]) * voxel_mm3 / 1000,
            "lowest_slice": int(lowest),
            "highest_slice": int(box[0].start + boxes[part][0].stop - 1),
            "mean_score": float(score_sums[part] / voxels[part]),
        }
        if slice_affine is not None:
            index = sums[2:, part] / voxels[part] + [side.start for side in box]
            row["centre_mm"] = (slice_affine[:3] @ [*index, 1.0]).round(1).tolist()
        rows.append(row)
    others = int(voxels.sum() - voxels[order].sum())
    return rows, {"count": len(voxels) - len(rows), "millilitres": others * voxel_mm3 / 1000}


def cut_findings(
    mask: NDArray[np.uint8], scores: NDArray[np.float32], most: int = MOST_FINDINGS
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.bool_]]]:
    """Yield the box of each finding, and which of its voxels are the finding's, in their order.

    Args:
        mask, scores, most: as for `measure_findings`.
    """
    box = index_box(mask)
    if box is None:
        return
    numbers = _number_parts(mask[box])
    boxes = ndimage.find_objects(numbers)
    for part in _order_parts(_sum_parts(numbers, scores[box])[1], most):
        sides = zip(boxes[part], box, strict=True)
        whole = tuple(slice(s.start + b.start, s.stop + b.start) for s, b in sides)
        yield whole, numbers[boxes[part]] == part + 1


def locate_main_finding(
    mask: NDArray[np.uint8], scores: NDArray[np.float32]
) -> tuple[int, int, int] | None:
    """Return the slice, row and column that cut most of the finding named first; None without.

    Each is the one with most of the finding's voxels, so that all three planes show it.
    """
    box = index_box(mask)
    if box is None:
        return None
    numbers = _number_parts(mask[box])
    first = _sum_parts(numbers, scores[box])[1].argmax() + 1
    areas, rows, columns = (np.zeros(size, np.int64) for size in numbers.shape)
    for index, plane in enumerate(numbers):  # slice by slice: one more array is much
        part = plane == first
        areas[index] = part.sum()
        rows += part.sum(1)
        columns += part.sum(0)
    most = (int(counts.argmax()) for counts in (areas, rows, columns))
    slice_index, row, column = (p + s.start for p, s in zip(most, box, strict=True))
    return slice_index, row, column


def count_large(findings: Sequence[Mapping[str, Any]]) -> int:
    """Return how many findings have `LARGE_ML` or more."""
    return sum(finding["millilitres"] >= LARGE_ML for finding in findings)


def _order_parts(score_sums: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Return the indices of the parts with the highest sums of scores, the highest first."""
    return np.argsort(-score_sums, kind="stable")[:most]


def _sum_parts(numbers: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return voxels, score, slice, row and column, summed over each part, (5, parts)."""
    sums = np.zeros((5, int(numbers.max()) + 1))
    for index, (plane, plane_scores) in enumerate(zip(numbers, scores, strict=True)):
        rows, columns = plane.nonzero()
        parts = plane[rows, columns]
        weights = (None, plane_scores[rows, columns], np.full(len(parts), index), rows, columns)
        for line, weight in zip(sums, weights, strict=True):
            line += np.bincount(parts, weight, minlength=len(line))
    return sums[:, 1:]  # without the background


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
