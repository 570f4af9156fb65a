"""Draw what a report shows of a scan, and put pictures into the text of a page."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..scans.background import BrainSlices, brain_of, index_box
from ..scans.overlays import (
    INK,
    MASK_COLOUR,
    PAPER,
    fit_size,
    overlay_slice,
    white_level,
    write_note,
)

CELL = 340  # width and height of one plane, pixels
GAP, LABEL_HEIGHT, TICK = 6, 22, 10
MARGIN = 4  # voxels around the brain
JPEG_QUALITY = 82
SCORE_BINS = 25
CHART = (640, 200)  # width and height of the histogram, in the units of its own axes


def draw_planes(
    images: BrainSlices,
    scores: NDArray[np.float32],
    mask: NDArray[np.uint8],
    spacing: Sequence[float],
    centre: tuple[int, int, int],
) -> Image.Image:
    """Return the axial, coronal and sagittal plane through a voxel, side by side.

    The head is up and the patient's right on the left; the sagittal plane looks left. Ticks at the
    edges say where the voxel is.

    Args:
        images: (S, H, W), background 0.
        scores, mask: (S, H, W).
        spacing: mm between slices, rows and columns.
        centre: slice, row and column of the voxel.
    """
    index, row, column = centre
    # Copies, or each would hold its whole slice.
    lines = [(image[row].copy(), image[:, column].copy()) for image in images]
    coronal, sagittal = (np.stack(plane)[::-1] for plane in zip(*lines, strict=True))
    above = len(images) - 1 - index  # slices are counted from below
    between_slices, between_rows, between_columns = spacing
    planes: tuple[tuple[NDArray[np.floating], Any, tuple[float, float], tuple[int, int]], ...] = (
        (images[index], np.s_[index], (between_rows, between_columns), (row, column)),
        (coronal, np.s_[::-1, row], (between_slices, between_columns), (above, column)),
        (sagittal, np.s_[::-1, :, column], (between_slices, between_rows), (above, row)),
    )
    white = white_level(images)
    picture = Image.new("RGB", (3 * CELL + 4 * GAP, CELL + LABEL_HEIGHT + 2 * GAP), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    names = (f"axial, slice {index}", f"coronal, row {row}", f"sagittal, column {column}")
    for number, (name, (image, cut, sizes, at)) in enumerate(zip(names, planes, strict=True)):
        left = GAP + number * (CELL + GAP)
        cell = _draw_plane(image / white, scores[cut], mask[cut], sizes, at)
        draw.text((left, GAP), name, INK, font)
        offset = (CELL - cell.width) // 2, (CELL - cell.height) // 2
        picture.paste(cell, (left + offset[0], GAP + LABEL_HEIGHT + offset[1]))
    return picture


def _draw_plane(
    unit_image: NDArray[np.floating],
    scores: NDArray[np.float32],
    mask: NDArray[np.uint8],
    spacing: tuple[float, float],
    at: tuple[int, int],
) -> Image.Image:
    """Return the part of one plane that shows brain, with ticks beside the voxel `at`."""
    box = index_box(brain_of(unit_image)) or tuple(slice(0, size) for size in unit_image.shape)
    sides = zip(box, unit_image.shape, strict=True)
    cut = tuple(slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in sides)
    height_mm, width_mm = ((s.stop - s.start) * mm for s, mm in zip(cut, spacing, strict=True))
    size, note = fit_size(height_mm, width_mm, (CELL, CELL))
    cell = overlay_slice(unit_image[cut], scores[cut], [(mask[cut], MASK_COLOUR, 2)], size)
    y, x = (
        round((p + 0.5 - s.start) / (s.stop - s.start) * n)
        for p, s, n in zip(at, cut, (cell.height, cell.width), strict=True)
    )
    draw = ImageDraw.Draw(cell)
    for line in (
        *((0, y, TICK, y), (cell.width - TICK, y, cell.width, y)),
        *((x, 0, x, TICK), (x, cell.height - TICK, x, cell.height)),
    ):
        draw.line(line, INK)
    return write_note(cell, note)


def count_scores(scores: NDArray[np.float32]) -> list[int]:
    """Return how many voxels of the brain have scores in each of `SCORE_BINS` equal bins of [0, 1].

    Args:
        scores: (S, H, W), 0 outside the brain and above 0 in it.
    """
    counts = np.zeros(SCORE_BINS, np.int64)
    for plane in scores:
        counts += np.histogram(plane[plane > 0], SCORE_BINS, (0, 1))[0]
    return counts.tolist()


def histogram_svg(counts: Sequence[int], threshold: float, label: str) -> str:
    """Return a drawing of `count_scores`, each bar as high as the logarithm of its voxels.

    Args:
        threshold: in [0, 1], drawn as a line.
        label: what it shows, for those who do not see it.
    """
    width, height = CHART
    highest = math.log10(max(*counts, 1) + 1)
    bars = ""
    for number, count in enumerate(counts):
        top = math.log10(count + 1) / highest * height
        bar, left = width / len(counts), width * number / len(counts)
        kind = "marked" if (number + 0.5) / len(counts) > threshold else "plain"
        bars += (
            f'<rect class="{kind}" x="{left:.1f}" y="{height - top:.1f}" width="{bar - 1:.1f}" '
            f'height="{top:.1f}"/>'
        )
    x = threshold * width
    ticks = "".join(
        f'<text x="{score * width:.0f}" y="{height + 18}" text-anchor="{anchor}">{score:g}</text>'
        for score, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    return (
        f'<svg viewBox="0 -4 {width} {height + 28}" role="img" aria-label="{escape(label)}">{bars}'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="-4" y2="{height}"/>{ticks}</svg>'
    )


def embed_picture(path: Path) -> str | None:
    """Return the address of a picture that holds the picture itself, as JPEG; None without one."""
    try:
        with Image.open(path) as picture:
            content = io.BytesIO()
            picture.convert("RGB").save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    except OSError:  # deleted, or somebody else's file by now
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
