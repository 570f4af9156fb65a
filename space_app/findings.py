"""Measure the connected parts of a mask: how large, how sure, and where in the brain they lie."""

from typing import Any

import numpy as np
from scipy import ndimage

from modeling_rasalore.prediction.volume import VolumePrediction

MOST_FINDINGS = 1000  # listed in a report
NEIGHBOURS_26 = np.ones((3, 3, 3))
BOTH_SIDES = 0.25  # share of a finding on its lesser side, from which on it lies on both
DEPTHS = ("front", "centre", "back")
HEIGHTS = ("lower third", "middle third", "upper third")

Finding = dict[str, Any]
Box = tuple[slice, ...]


def measure_findings(
    prediction: VolumePrediction, brain: Box
) -> tuple[list[Finding], dict[str, Any]]:
    """Return one row per connected part of the mask (26 neighbours), by volume times mean score.

    Noise may have a hundred thousand parts: the `MOST_FINDINGS` largest have a row, and the second
    result says how many others there are, and their volume together.

    Args:
        prediction: whose mask and scores.
        brain: the box that holds the brain, in the slice frame.
    """
    parts, count = ndimage.label(prediction.mask, NEIGHBOURS_26)
    voxels = np.bincount(parts.ravel(), minlength=1)
    largest = np.argsort(-voxels[1:], kind="stable")[:MOST_FINDINGS] + 1
    boxes = ndimage.find_objects(parts)
    rows = [
        describe_part(prediction, boxes[n - 1], parts[boxes[n - 1]] == n, brain) for n in largest
    ]
    rows.sort(key=lambda row: -row["millilitres"] * row["mean_score"])
    others = int(voxels[1:].sum() - voxels[largest].sum())
    millilitres = others * prediction.voxel_mm3 / 1000
    return rows, {"count": count - len(rows), "millilitres": millilitres}


def describe_part(
    prediction: VolumePrediction, box: Box, inside: np.ndarray, brain: Box
) -> Finding:
    """Return volume, mean score, extent and position of one part.

    Args:
        box: that holds the part, in the slice frame.
        inside: which voxels of the box are the part's.
        brain: as for `measure_findings`.
    """
    indices = np.argwhere(inside) + [side.start for side in box]  # (N, 3): slice, row, column
    nearest = indices[np.square(indices - indices.mean(0)).sum(1).argmin()]
    row: Finding = {
        "millilitres": len(indices) * prediction.voxel_mm3 / 1000,
        "mean_score": float(prediction.scores[box][inside].mean()),
        "position": position_in_words(indices, brain),
        "lowest_slice": box[0].start,
        "highest_slice": box[0].stop - 1,
        "slice": int(nearest[0]),
    }
    if prediction.slice_affine is not None:
        row["point_mm"] = (prediction.slice_affine @ [*nearest, 1])[:3].round(2).tolist()
    return row


def position_in_words(indices: np.ndarray, brain: Box) -> str:
    """Return side, depth and height of a part, such as "left, back, upper third".

    Args:
        indices: (N, 3), slice, row and column of its voxels.
        brain: as for `measure_findings`; thirds and midline are those of this box.
    """
    low = np.array([side.start for side in brain])
    share = (indices + 0.5 - low) / ([side.stop for side in brain] - low)  # in [0, 1]
    height, depth, _ = np.clip(share.mean(0) * 3, 0, 2).astype(int)
    on_left = float((share[:, 2] > 0.5).mean())  # columns run from the patient's right to the left
    side = "left" if on_left > 0.5 else "right"
    if min(on_left, 1 - on_left) >= BOTH_SIDES:
        side = "both sides"
    return f"{side}, {DEPTHS[depth]}, {HEIGHTS[height]}"
