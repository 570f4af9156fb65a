"""Say where in the brain each finding lies, in words and as a voxel to go to."""

from typing import Any

import numpy as np

from modeling_rasalore.prediction.volume import VolumePrediction
from modeling_rasalore.reports.findings import Finding, cut_findings

BOTH_SIDES = 0.25  # share of a finding on its lesser side, from which on it lies on both
DEPTHS = ("front", "centre", "back")
HEIGHTS = ("lower third", "middle third", "upper third")

Box = tuple[slice, ...]


def locate_findings(prediction: VolumePrediction, brain: Box) -> list[Finding]:
    """Return the findings of a prediction, in their order, each with where it lies.

    `position` are words; `slice` and `point_mm` (world x, y and z) are of the voxel of the finding
    that is nearest to its centre, so that a viewer that goes there shows it.

    Args:
        brain: the box that holds the brain, in the slice frame.
    """
    parts = cut_findings(prediction.mask, prediction.scores)
    return [
        row | locate_part(prediction, np.argwhere(inside) + [side.start for side in box], brain)
        for row, (box, inside) in zip(prediction.findings[0], parts, strict=True)
    ]


def locate_part(prediction: VolumePrediction, indices: np.ndarray, brain: Box) -> dict[str, Any]:
    """Return where one finding lies.

    Args:
        indices: (N, 3), slice, row and column of its voxels.
        brain: as for `locate_findings`.
    """
    nearest = indices[np.square(indices - indices.mean(0)).sum(1).argmin()]
    where = {"position": position_in_words(indices, brain), "slice": int(nearest[0])}
    if prediction.slice_affine is None:
        return where
    return where | {"point_mm": (prediction.slice_affine @ [*nearest, 1])[:3].round(2).tolist()}


def position_in_words(indices: np.ndarray, brain: Box) -> str:
    """Return side, depth and height of a part, such as "left, back, upper third".

    Args:
        indices: (N, 3), slice, row and column of its voxels.
        brain: as for `locate_findings`; thirds and midline are those of this box.
    """
    low = np.array([side.start for side in brain])
    share = (indices + 0.5 - low) / ([side.stop for side in brain] - low)  # in [0, 1]
    height, depth, _ = np.clip(share.mean(0) * 3, 0, 2).astype(int)
    on_left = float((share[:, 2] > 0.5).mean())  # columns run from the patient's right to the left
    side = "left" if on_left > 0.5 else "right"
    if min(on_left, 1 - on_left) >= BOTH_SIDES:
        side = "both sides"
    return f"{side}, {DEPTHS[depth]}, {HEIGHTS[height]}"
