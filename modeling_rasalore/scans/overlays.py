"""Draw slices for people: score maps in colour and masks as outlines on grey brains."""

from collections.abc import Sequence
from dataclasses import dataclass
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
Outline = tuple[NDArray[Any], Colour, int]  # mask (H, W), colour, line width in pixels

CELL = 256  # width of one slice in the montage, pixels
LONGEST = 1024  # width or height of any slice that is drawn, pixels
MOST_STRETCHED = 4.0  # longer side over the shorter one; slices beyond are not drawn to scale
GAP = 6
LEGEND_HEIGHT, LINE_HEIGHT = 66, 18
WARNING_LINES = 8  # shown below the legend
WHITE_VOXELS = 2**22  # of larger scans, some of their rows only tell what white is
# Readable on grey, and with red-green colour blindness.
INK, PAPER = (235, 235, 235), (16, 16, 16)
SCORE_RAMP = ((120, 20, 140), (255, 120, 40))  # colours of the scores 0 and 1
SCORE_OPACITY = 0.45  # of score 1; lower scores are much fainter, 0 is not drawn
MASK_COLOUR, TRUTH_COLOUR = (255, 230, 60), (70, 220, 255)
WARNING_COLOUR = (255, 150, 90)


@dataclass(frozen=True)
class SliceView:
    """How the slices of one scan are drawn.

    Attributes:
        rows, columns: the box that holds the brain of all slices.
        size: (width, height) of a slice's picture, pixels.
        white: the intensity that is drawn white.
        note: what a picture says of itself where it is not drawn to scale, else "".
    """

    rows: slice
    columns: slice
    size: tuple[int, int]
    white: float
    note: str

    @classmethod
    def of(
        cls, images: NDArray[np.floating] | BrainSlices, spacing: tuple[float, float], width: int
    ) -> "SliceView":
        """Return the view of a scan (S, H, W) with background 0, up to `width` pixels wide.

        Args:
            spacing: mm between rows and between columns.
        """
        rows, columns = brain_window(images)
        height_mm = (rows.stop - rows.start) * spacing[0]
        width_mm = (columns.stop - columns.start) * spacing[1]
        size, note = fit_size(height_mm, width_mm, (width, LONGEST))
        return cls(rows, columns, size, white_level(images), note)

    def draw(
        self,
        image: NDArray[np.floating],
        scores: NDArray[np.floating],
        outlines: Sequence[Outline],
        opacity: float = SCORE_OPACITY,
        ramp: tuple[Colour, Colour] = SCORE_RAMP,
    ) -> Image.Image:
        """Return the picture of one slice; whole arrays (H, W), else as for `overlay_slice`."""
        box = (self.rows, self.columns)
        cut = [(mask[box], colour, width) for mask, colour, width in outlines]
        picture = overlay_slice(image[box] / self.white, scores[box], cut, self.size, opacity, ramp)
        return write_note(picture, self.note)


def overlay_montage(
    images: NDArray[np.floating] | BrainSlices,
    scores: NDArray[np.floating],
    mask: NDArray[np.integer],
    truth: NDArray[np.integer] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    count: int = 12,
    title: str = "",
    warnings: Sequence[str] = (),
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
        warnings: sentences about what makes the prediction worth less, below the legend.

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
    view = SliceView.of(images, spacing, CELL)
    cells = []
    for index in choose_slices(images, marked, count):
        outlines: list[Outline] = [(mask[index], MASK_COLOUR, 2)]
        if truth is not None:
            outlines.insert(0, (truth[index], TRUTH_COLOUR, 3))
        cells.append(_numbered(view.draw(images[index], scores[index], outlines), index))
    return _assemble(cells, title, truth is not None, warnings)


def overlay_slice(
    unit_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    outlines: Sequence[Outline],
    size: tuple[int, int],
    opacity: float = SCORE_OPACITY,
    ramp: tuple[Colour, Colour] = SCORE_RAMP,
) -> Image.Image:
    """Return one slice in grey with its scores as a translucent colour and masks as outlines.

    Args:
        unit_image: (H, W), 0 black and 1 white; what lies outside is clipped.
        scores: (H, W) in [0, 1]; 0 is not drawn.
        outlines: masks, each drawn over those before it.
        size: (width, height) of the picture in pixels.
        opacity: of score 1, in [0, 1]; lower scores are fainter.
        ramp: colours of the scores 0 and 1.
    """
    cell = _tint(_grey(unit_image, size), _resize(scores, size), opacity, ramp)
    for mask, colour, width in outlines:
        cell[_outline(mask, size, width)] = colour
    return Image.fromarray(cell.round().astype(np.uint8))


def fit_size(
    height_mm: float, width_mm: float, box: tuple[int, int]
) -> tuple[tuple[int, int], str]:
    """Return (width, height) in pixels of the largest picture in a box, and its note.

    The picture has the proportions of the slice, up to `MOST_STRETCHED`: whatever sizes a header
    states, it has no more pixels than the box, and can be seen. The note says where it has not.

    Args:
        box: (width, height), pixels.
    """
    true = height_mm / width_mm
    ratio = min(max(true, 1 / MOST_STRETCHED), MOST_STRETCHED)
    width = min(float(box[0]), box[1] / ratio)
    size = (max(round(width), 1), max(round(width * ratio), 1))
    if true == ratio:
        return size, ""
    shape = f"{true:.3g} times as tall" if true > 1 else f"{1 / true:.3g} times as wide"
    return size, f"not to scale: {shape}"


def write_note(picture: Image.Image, note: str) -> Image.Image:
    """Return a picture after writing a note into its lowest line; "" writes nothing."""
    if note:
        ImageDraw.Draw(picture).text((6, picture.height - 16), note, INK, _font(11))
    return picture


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


def white_level(images: NDArray[np.floating] | BrainSlices) -> float:
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
    cells: list[Image.Image], title: str, with_truth: bool, warnings: Sequence[str]
) -> Image.Image:
    """Return cells in lines of four or six over the legend, warnings below it."""
    columns = min(len(cells), 4 if len(cells) <= 12 else 6)
    width, height = cells[0].size
    lines = -(-len(cells) // columns)
    total_width = max(columns, 3) * (width + GAP) + GAP
    sentences = _wrap_warnings(warnings, total_width)
    top = lines * (height + GAP) + GAP + 4
    total = (total_width, top + LEGEND_HEIGHT + len(sentences) * LINE_HEIGHT)
    montage = Image.new("RGB", total, PAPER)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        montage.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    _draw_legend(montage, top, title, with_truth)
    draw = ImageDraw.Draw(montage)
    for number, line in enumerate(sentences):
        place = (GAP, top + LEGEND_HEIGHT + number * LINE_HEIGHT - 4)
        draw.text(place, line, WARNING_COLOUR, _font(13))
    return montage


def _wrap_warnings(warnings: Sequence[str], width: int) -> list[str]:
    """Return warnings as lines that fit into `width` pixels, a bounded number of them."""
    lines = [line for text in warnings for line in wrap(f"warning: {text}", width // 7)]
    if len(lines) > WARNING_LINES:
        lines = [*lines[: WARNING_LINES - 1], "... and more, in the summary beside this picture"]
    return lines


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
