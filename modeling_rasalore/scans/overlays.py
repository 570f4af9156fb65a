"""Draw slices for people: score maps in colour and masks as outlines on grey brains."""

from collections.abc import Sequence
from math import prod
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..provenance import DISCLAIMER
from .background import BrainSlices, brain_of, index_box

Colour = tuple[int, int, int]

CELL = 256  # width of one slice in the montage, pixels
GAP = 6
LETTER, NOTE_LINE = 8, 18  # room for a letter and a line of a note, pixels
WHITE_VOXELS = 2**22  # of larger scans, some of their rows only tell what white is
# Readable on grey, and with red-green colour blindness.
INK, PAPER = (235, 235, 235), (16, 16, 16)
NOTE_COLOUR = (255, 190, 90)
SCORE_RAMP = ((120, 20, 140), (255, 120, 40))  # colours of the scores 0 and 1
SCORE_OPACITY = 0.45  # of score 1; lower scores are much fainter, 0 is not drawn
MASK_COLOUR, TRUTH_COLOUR = (255, 230, 60), (70, 220, 255)


def overlay_montage(
    images: NDArray[np.floating] | BrainSlices,
    scores: NDArray[np.floating],
    mask: NDArray[np.integer],
    truth: NDArray[np.integer] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    count: int = 12,
    title: str = "",
    notes: Sequence[str] = (),
) -> Image.Image:
    """Return a montage of the slices that say most about a prediction, with a legend.

    Args:
        images: (S, H, W) scan in the slice frame, background 0.
        scores: (S, H, W) in [0, 1], drawn as a translucent colour.
        mask: (S, H, W), non-zero where predicted; drawn as an outline.
        truth: true mask of the same shape, a second outline; None where unknown.
        spacing: mm between rows and between columns.
        count: how many slices to show.
        title: first line of the legend, such as the name of the scan.
        notes: last lines of the legend, such as warnings.

    Raises:
        ValueError: the arrays differ in shape or are not (S, H, W).
    """
    arrays = {"images": images, "scores": scores, "mask": mask}
    if truth is not None:
        arrays["truth"] = truth
    if len(images.shape) != 3 or any(array.shape != images.shape for array in arrays.values()):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"all arrays must have one shape (slices, rows, columns), got {shapes}.")
    marked = mask if truth is None else (mask > 0) | (truth > 0)
    rows, columns = brain_window(images)
    height = round(CELL * (rows.stop - rows.start) * spacing[0])
    size = (CELL, max(round(height / ((columns.stop - columns.start) * spacing[1])), 1))
    white = _white_level(images)
    cells = []
    for index in choose_slices(images, marked, count):
        window = (index, rows, columns)
        image = images[index][rows, columns] / white
        outlines = [(mask[window], MASK_COLOUR, 2)]
        if truth is not None:
            outlines.insert(0, (truth[window], TRUTH_COLOUR, 3))
        cell = overlay_slice(image, scores[window], outlines, size)
        cells.append(_numbered(cell, index))
    return _assemble(cells, title, truth is not None, notes)


def overlay_slice(
    unit_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    outlines: Sequence[tuple[NDArray[Any], Colour, int]],
    size: tuple[int, int],
    opacity: float = SCORE_OPACITY,
    ramp: tuple[Colour, Colour] = SCORE_RAMP,
) -> Image.Image:
    """Return one slice in grey with its scores as a translucent colour and masks as outlines.

    Args:
        unit_image: (H, W), 0 black and 1 white; what lies outside is clipped.
        scores: (H, W) in [0, 1]; 0 is not drawn.
        outlines: mask (H, W), colour and line width in pixels, each drawn over those before it.
        size: (width, height) of the picture in pixels.
        opacity: of score 1, in [0, 1]; lower scores are fainter.
        ramp: colours of the scores 0 and 1.
    """
    cell = _tint(_grey(unit_image, size), _resize(scores, size), opacity, ramp)
    for mask, colour, width in outlines:
        cell[_outline(mask, size, width)] = colour
    return Image.fromarray(cell.round().astype(np.uint8))


def choose_slices(
    images: NDArray[np.floating] | BrainSlices, marked: NDArray[Any], count: int
) -> list[int]:
    """Return up to `count` slice indices in ascending order, for arrays (S, H, W).

    Evenly spaced over the slices where something is marked, the one with most among them; when
    these are too few, brain slices without a mark, evenly spaced too, fill up.
    """
    # Slice by slice: of a large scan, one more array of its shape is much.
    areas = np.array([np.count_nonzero(plane) for plane in marked])
    indices = np.flatnonzero(areas)
    if len(indices) > count:
        chosen = _evenly(indices, count)
        chosen[np.abs(chosen - areas.argmax()).argmin()] = areas.argmax()
        return sorted(set(chosen.tolist()))
    brain = np.array([np.count_nonzero(brain_of(image)) for image in images])
    others = np.flatnonzero((areas == 0) & (brain >= brain.max() / 4))
    return sorted([*indices.tolist(), *_evenly(others, count - len(indices)).tolist()])


def brain_window(images: NDArray[np.floating] | BrainSlices) -> tuple[slice, slice]:
    """Return rows and columns that hold the brain of all slices, with a margin of 4 pixels."""
    anywhere = np.zeros(images.shape[1:], np.bool_)
    for image in images:
        anywhere |= brain_of(image)
    rows, columns = index_box(anywhere) or (slice(0, size) for size in anywhere.shape)
    return (
        slice(max(rows.start - 4, 0), min(rows.stop + 4, images.shape[1])),
        slice(max(columns.start - 4, 0), min(columns.stop + 4, images.shape[2])),
    )


def _white_level(images: NDArray[np.floating] | BrainSlices) -> float:
    """Return the intensity that is drawn white: few voxels of the brain are brighter."""
    step = max(prod(images.shape) // WHITE_VOXELS, 1)
    rows = (image[::step] for image in images)
    values = np.concatenate([part[brain_of(part)] for part in rows])
    return float(np.percentile(values, 99.5)) if values.size else 1.0


def _evenly(values: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """Return up to `count` values, evenly spaced, without the ends where there is a choice."""
    if len(values) <= count:
        return values
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)]


def _resize(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return an array (H, W) at `size` (width, height), bilinear."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _grey(unit_image: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a slice (H, W) as grey (height, width, 3) in [0, 255]; above 1 is white."""
    grey = _resize(unit_image.clip(0, 1), size) * 255
    return np.repeat(grey[..., None], 3, axis=2)


def _tint(
    cell: NDArray[np.float32],
    scores: NDArray[np.float32],
    opacity: float = SCORE_OPACITY,
    ramp: tuple[Colour, Colour] = SCORE_RAMP,
) -> NDArray[np.float32]:
    low, high = (np.array(colour, np.float32) for colour in ramp)
    share = scores.clip(0, 1)[..., None]
    covered = opacity * share**2  # a score of 0.2, as healthy brain may have, is hardly seen
    return cell * (1 - covered) + (low + (high - low) * share) * covered


def _outline(mask: NDArray[Any], size: tuple[int, int], width: int) -> NDArray[np.bool_]:
    """Return the inner edge of a mask (H, W), `width` pixels wide, as pixels (height, width)."""
    inside = _resize(mask > 0, size) > 0.5
    return inside & ~ndimage.binary_erosion(inside, iterations=width)


def _numbered(cell: Image.Image, index: int) -> Image.Image:
    ImageDraw.Draw(cell).text((6, 4), str(index), INK, _font(14))
    return cell


def _assemble(
    cells: list[Image.Image], title: str, with_truth: bool, notes: Sequence[str]
) -> Image.Image:
    """Return cells in lines of four or six over the legend."""
    columns = min(len(cells), 4 if len(cells) <= 12 else 6)
    width, height = cells[0].size
    lines = -(-len(cells) // columns)
    across = max(columns, 3) * (width + GAP) + GAP
    text = [part for note in notes for part in wrap(f"Warning: {note}", across // LETTER)]
    top = lines * (height + GAP) + GAP
    total = (across, top + 70 + NOTE_LINE * len(text))
    montage = Image.new("RGB", total, PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        montage.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    _draw_legend(montage, top + 4, title, with_truth)
    for number, part in enumerate(text):
        place = (GAP, top + 66 + NOTE_LINE * number)
        ImageDraw.Draw(montage).text(place, part, NOTE_COLOUR, _font(13))
    return montage


def _draw_legend(montage: Image.Image, top: int, title: str, with_truth: bool) -> None:
    draw = ImageDraw.Draw(montage)
    draw.text((GAP, top), title, INK, _font(15))
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[None].repeat(14, axis=0)
    bar = _tint(np.full((14, 80, 3), 128, np.float32), ramp)
    montage.paste(Image.fromarray(bar.astype(np.uint8)), (GAP, top + 24))
    left = _write(draw, GAP + 88, top + 22, "score 0 to 1")
    entries = [("predicted mask", MASK_COLOUR), ("true mask", TRUTH_COLOUR)]
    for name, colour in entries[: 1 + with_truth]:
        draw.rectangle((left, top + 24, left + 18, top + 37), outline=colour, width=3)
        left = _write(draw, left + 26, top + 22, name)
    _write(draw, left, top + 22, "slices counted from below, patient's right on the left")
    draw.text((GAP, top + 44), DISCLAIMER, INK, _font(13))


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str) -> int:
    """Draw a legend entry; returns where the next one starts."""
    draw.text((left, top), text, INK, _font(14))
    return left + round(draw.textlength(text, _font(14))) + 24


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
