"""Draw the slices of a patient's sequences, all slices of one in a single picture.

So a browser has the whole scan before the first key is pressed, and no arrow key waits.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.patient import Patient
from ..data.slices import check_one_grid, read_images
from ..files import first_line
from ..scans.background import brain_of
from ..scans.naming import MODALITIES
from ..scans.overlays import SCORE_OPACITY, SCORE_RAMP, SliceView, white_level
from ..scans.volumes import VolumeError

HEADROOM = 1.5  # times what is drawn white elsewhere: bright lesions have greys, too
MOST_PIXELS = 2**24  # of one picture; what any browser takes
WIDEST = 512  # of one slice, pixels
THUMBNAIL = 56  # width in the filmstrip, pixels
PREFERRED = ("flair", "t2", "t1ce", "t1")  # shown first where none is asked for
FloatImages = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ScanPictures:
    """The pictures of one patient.

    Attributes:
        labelled: sequence whose slices are numbered.
        count: its slices.
        shown: first and last of them with brain; the pictures hold these and those between.
        spacing: mm between slices, rows and columns.
        view: how a slice is drawn.
        columns: slices per row of a picture, the lowest slice first.
        sequences: name -> picture in greys as PNG, the labelled one first.
        thumbnails: small slices of the labelled sequence in one row, as PNG.
        notes: sequences that are not shown, one sentence each.
    """

    labelled: str
    count: int
    shown: tuple[int, int]
    spacing: tuple[float, float, float]
    view: SliceView
    columns: int
    sequences: dict[str, bytes]
    thumbnails: bytes
    notes: list[str]


def draw_patient(patient: Patient, modality: str | None = None) -> ScanPictures:
    """Return the pictures of all sequences of a patient that lie on one grid.

    Args:
        modality: sequence to label; None: the first that the patient has of `PREFERRED`, where all
            sequences lie on one grid, so that slices have the same numbers in each.

    Raises:
        ValueError: the sequence is missing, cannot be read, shows no brain, or is one of several
            grids and none was chosen.
    """
    labelled = choose_sequence(patient, modality)
    volume, images = read_images(patient, labelled)
    shown = span_of_brain(images, volume.path)
    view = fit_view(images, volume.spacing, shown[1] - shown[0] + 1)
    columns = isqrt(shown[1] - shown[0]) + 1
    greys = draw_greys(images, view, shown)
    sequences, notes = {labelled: as_png(tile(greys, columns))}, []
    for name in (name for name in MODALITIES if name in patient.images and name != labelled):
        try:
            check_one_grid(patient, (labelled, name))
            _, others = read_images(patient, name)
            sequences[name] = as_png(tile(draw_greys(others, view, shown), columns))
        except (ValueError, OSError) as error:
            notes.append(f"{name} is not shown: {first_line(error)}")
    height = max(round(THUMBNAIL * view.size[1] / view.size[0]), 1)
    small = [grey.resize((THUMBNAIL, height), Image.Resampling.BILINEAR) for grey in greys]
    return ScanPictures(
        labelled,
        len(images),
        shown,
        volume.spacing,
        view,
        columns,
        sequences,
        as_png(tile(small, len(small))),
        notes,
    )


def choose_sequence(patient: Patient, modality: str | None) -> str:
    """Return the sequence whose slices are numbered; raises as `draw_patient`."""
    if modality is None:
        try:
            check_one_grid(patient, MODALITIES)
        except ValueError as error:
            raise ValueError(
                f"{first_line(error)} Or choose with --modality whose slices are labelled."
            ) from error
        return next(name for name in PREFERRED if name in patient.images)
    if modality not in patient.images:
        there = ", ".join(patient.images)
        raise ValueError(f"{patient.patient_id} has no {modality} scan to label, only {there}.")
    return modality


def span_of_brain(images: FloatImages, path: Path) -> tuple[int, int]:
    """Return the first and the last slice that show brain."""
    with_brain = [index for index, image in enumerate(images) if brain_of(image).any()]
    if not with_brain:
        raise VolumeError(f"{path}: no slice shows brain; there is nothing to label.")
    return with_brain[0], with_brain[-1]


def fit_view(images: FloatImages, spacing: tuple[float, float, float], slices: int) -> SliceView:
    """Return how slices are drawn: pixel for pixel, or smaller where all would be too large."""
    view = SliceView.of(images, spacing[1:], WIDEST)
    columns = view.columns.stop - view.columns.start
    ratio = view.size[1] / view.size[0]
    tiles = (isqrt(slices - 1) + 1) ** 2
    width = min(view.size[0], columns, isqrt(int(MOST_PIXELS / tiles / ratio)))
    return replace(view, size=(width, max(round(width * ratio), 1)))


def draw_greys(images: FloatImages, view: SliceView, shown: tuple[int, int]) -> list[Image.Image]:
    """Return the slices that are shown, in greys; `HEADROOM` times the white level is white."""
    own = replace(view, white=white_level(images) * HEADROOM)
    nothing = np.zeros(images.shape[1:], np.float32)
    return [own.draw(image, nothing, []).convert("L") for image in _span(images, shown)]


def draw_tint(scores: FloatImages, pictures: ScanPictures) -> bytes:
    """Return score maps (S, H, W) in [0, 1] as one transparent picture, laid out as the others."""
    view = pictures.view
    low, high = (np.array(colour, np.float32) for colour in SCORE_RAMP)
    tints = []
    for plane in _span(scores, pictures.shown):
        image = Image.fromarray(np.ascontiguousarray(plane[view.rows, view.columns], np.float32))
        share = np.asarray(image.resize(view.size, Image.Resampling.BILINEAR))[..., None].clip(0, 1)
        colours = low + (high - low) * share
        opacity = 255 * SCORE_OPACITY * share**2  # as overlays are drawn
        tints.append(Image.fromarray(np.concatenate([colours, opacity], 2).astype(np.uint8)))
    return as_png(tile(tints, pictures.columns))


def _span(images: FloatImages, shown: tuple[int, int]) -> FloatImages:
    return images[shown[0] : shown[1] + 1]


def tile(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size side by side, row by row."""
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    sheet = Image.new(cells[0].mode, (min(columns, len(cells)) * width, rows * height))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (column * width, row * height))
    return sheet


def as_png(picture: Image.Image) -> bytes:
    """Return a picture as PNG, packed fast rather than small: it stays on this machine."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
