"""Draw slices and every system's scores of them in one picture, the true outline on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..provenance import DISCLAIMER
from ..scans.overlays import (
    INK,
    PAPER,
    TRUTH_COLOUR,
    brain_window,
    fit_size,
    overlay_slice,
    write_note,
)

COLUMNS = 8  # the slice and seven systems; more systems go below, beside the slice again
LEAST_COLUMNS = 4  # as wide as the words below
CELL, GAP = 194, 5  # px; 8 cells are 1597 wide
HEADER, LEGEND = 46, 44  # px; a title of two lines fits
Map = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class GridSlice:
    """A slice of the picture: image and truth (H, W), mm between rows and columns, a caption."""

    image: Map
    truth: NDArray[np.bool_]
    spacing: tuple[float, float]
    caption: str


def results_grid(
    slices: Sequence[GridSlice], maps: Mapping[str, Sequence[Map]], path: str | Path
) -> Path:
    """Return `path` after drawing slices in rows and systems in columns, up to 1597 px wide.

    Scores are grey, 0 black and 1 white, the same for all systems.

    Args:
        slices: one row each.
        maps: name of a system -> its scores in [0, 1] of each slice, (H, W).

    Raises:
        ValueError: no slices, or maps of another shape than theirs.
    """
    _check(slices, maps)
    names = list(maps)
    blocks = [names[i : i + COLUMNS - 1] for i in range(0, max(len(names), 1), COLUMNS - 1)]
    block_height = HEADER + len(slices) * (CELL + GAP)
    width = min(max(len(names) + 1, LEAST_COLUMNS), COLUMNS)  # columns
    size = (width * (CELL + GAP) + GAP, len(blocks) * block_height + LEGEND + GAP)
    picture = Image.new("RGB", size, PAPER)
    for number, block in enumerate(blocks):
        columns = {"Slice": None} | {name: maps[name] for name in block}
        for column, (name, scores) in enumerate(columns.items()):
            left, top = GAP + column * (CELL + GAP), number * block_height
            _write_centred(picture, left, top, name)
            for row, shown in enumerate(slices):
                cell = _cell(shown, None if scores is None else scores[row])
                picture.paste(cell, (left, top + HEADER + row * (CELL + GAP)))
    _write_legend(picture)
    path = Path(path)
    picture.save(path)
    return path


def _check(slices: Sequence[GridSlice], maps: Mapping[str, Sequence[Map]]) -> None:
    if not slices:
        raise ValueError("a grid needs at least one slice, got none.")
    shapes = [shown.image.shape for shown in slices]
    for name, scores in maps.items():
        if (got := [plane.shape for plane in scores]) != shapes:
            raise ValueError(f"maps of {name} must have the slices' shapes {shapes}, got {got}.")


def _cell(shown: GridSlice, scores: Map | None) -> Image.Image:
    """A square with the slice, or with scores of it; the brain fills it, in its own proportions."""
    window = brain_window(shown.image[None])
    grey = shown.image / (np.quantile(shown.image, 0.995) or 1) if scores is None else scores
    image = grey[window]
    height, width = (n * mm for n, mm in zip(image.shape, shown.spacing, strict=True))
    size, note = fit_size(height, width, (CELL, CELL))
    outline = (shown.truth[window], TRUTH_COLOUR, 1)
    drawn = overlay_slice(image, np.zeros(image.shape, np.float32), [outline], size)
    cell = Image.new("RGB", (CELL, CELL))
    cell.paste(drawn, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    if scores is None:
        write = ImageDraw.Draw(cell).text  # edged, for it may lie on the brain
        font = ImageFont.load_default(11)
        write((3, CELL - 15), shown.caption, INK, font, stroke_width=2, stroke_fill=PAPER)
        return cell
    return write_note(cell, note)


def _write_centred(picture: Image.Image, left: int, top: int, name: str) -> None:
    """A column's title, at most two lines over the column."""
    font = ImageFont.load_default(14)
    lines = "\n".join(wrap(name, 24)[:2])
    middle = (left + CELL // 2, top + HEADER - 6)
    ImageDraw.Draw(picture).text(middle, lines, INK, font, anchor="md", align="center")


def _write_legend(picture: Image.Image) -> None:
    draw, top = ImageDraw.Draw(picture), picture.height - LEGEND
    draw.rectangle((GAP, top + 4, GAP + 18, top + 17), outline=TRUTH_COLOUR, width=2)
    words = "true outline; scores from 0, black, to 1, white, on one scale for all systems"
    draw.text((GAP + 26, top + 2), words, INK, ImageFont.load_default(14))
    draw.text((GAP, top + 24), DISCLAIMER, INK, ImageFont.load_default(13))
