"""Pack a scan and what was found in it as volumes that the viewer in the browser shows."""

import base64
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from analysis import Analysis
from drawing import scale_spread

from modeling_rasalore.prediction.volume import FloatImage
from modeling_rasalore.scans.volume_writing import write_nifti

MARGIN = 4  # voxels around the brain
MASK_BIT, TRUTH_BIT = 1, 2  # of the volume of outlines

Layer = dict[str, str]


def pack_layers(analysis: Analysis, threshold: float) -> dict[str, Any]:
    """Return scan, scores and outlines, and where the viewer opens, as JSON can hold them.

    All are cut to the brain, on a grid that runs to the right, the front and the top.
    """
    greys = np.clip(analysis.images / analysis.view.white, 0, 1) * 255
    return {
        "scan": pack_volume(analysis, greys),
        "scores": pack_volume(analysis, analysis.prediction.scores * 255),
        "outlines": pack_outlines(analysis, threshold),
        "has_truth": analysis.truth is not None,
        "first_slice": window_of(analysis)[0].start,
    }


def pack_outlines(analysis: Analysis, threshold: float) -> Layer:
    """Return what is outlined: `MASK_BIT` in the mask, `TRUTH_BIT` in the truth where known."""
    values: np.ndarray = analysis.at(threshold).mask * MASK_BIT
    if analysis.truth is not None:
        values = values + analysis.truth * TRUTH_BIT
    return pack_volume(analysis, values)


def pack_spread(analysis: Analysis, spread: FloatImage) -> Layer:
    """Return the uncertainty (S, H, W), of which the highest hundredth has the full colour."""
    return pack_volume(analysis, scale_spread(spread, analysis.images > 0) * 255)


def pack_volume(analysis: Analysis, values: np.ndarray) -> Layer:
    """Return values (S, H, W) from 0 to 255, in the slice frame, as a NIfTI file in base64.

    Its header holds numbers only, and nothing of it stays on the disk.
    """
    slices, rows, columns = window_of(analysis)
    cut = values[slices, rows, columns].round().astype(np.uint8)
    to_frame = np.array(  # right, front, up -> slice, row, column
        [[0, 0, 1, slices.start], [0, -1, 0, rows.stop - 1], [-1, 0, 0, columns.stop - 1]]
    )
    affine = analysis.scan.volume.geometry.slice_affine @ np.vstack([to_frame, [0, 0, 0, 1]])
    with tempfile.TemporaryDirectory() as folder:
        path = write_nifti(
            Path(folder) / "layer.nii.gz", cut[:, ::-1, ::-1].transpose(2, 1, 0), affine
        )
        return {"name": path.name, "content": base64.b64encode(path.read_bytes()).decode()}


def window_of(analysis: Analysis) -> tuple[slice, ...]:
    """Return the box that is shown: the brain's, with a margin."""
    return tuple(
        slice(max(side.start - MARGIN, 0), min(side.stop + MARGIN, size))
        for side, size in zip(analysis.brain, analysis.images.shape, strict=True)
    )
