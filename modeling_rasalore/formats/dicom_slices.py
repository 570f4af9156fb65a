"""Describe the slices of one DICOM file by its header: where they lie and how they are scaled."""

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from .dicom_content import frame_headers
from .stored_voxels import FormatError

UNIT_TOLERANCE = 0.02  # of the length of a direction, which text with two decimals keeps
PLACE_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
MOSAIC_TAG = 0x0019100A  # of Siemens: how many slices are tiles of one picture


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """What one file says about its slice.

    Attributes:
        name: of the file, in its folder or archive.
        position: (3,) centre of the first voxel, LPS mm.
        rows_and_columns: (2, 3) unit vectors along a row and along a column, LPS.
        spacing: mm between rows and between columns.
        thickness: mm; the distance between slices where there is but one.
        shape: rows, columns.
        scaling: slope, intercept.
        last_digit: mm of the last decimal in which the position is written.
        index: which slice of its file, counted from 0.
        inverted: whether low values stand for bright.
    """

    name: str
    position: np.ndarray
    rows_and_columns: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    shape: tuple[int, int]
    scaling: tuple[float, float]
    last_digit: float
    index: int = 0
    inverted: bool = False

    @property
    def normal(self) -> np.ndarray:
        """(3,): which way the slice faces, LPS."""
        return np.cross(*self.rows_and_columns)


def describe_slices(name: str, header: Any) -> list[DicomSlice]:
    """Return all slices of a file."""
    manufacturer = str(header.get("Manufacturer", "")).upper()
    is_mosaic = MOSAIC_TAG in header and manufacturer.startswith("SIEMENS")
    if is_mosaic or "MOSAIC" in (header.get("ImageType") or ()):
        raise FormatError(
            f"{name} is a mosaic, many slices as tiles of one picture; convert it with dcm2niix"
        )
    frames = [_describe(name, frame) for frame in frame_headers(header)]
    return [replace(part, index=index) for index, part in enumerate(frames)]


def _describe(name: str, header: Any) -> DicomSlice:
    """Return what is needed of a slice's header, checked."""
    colours = int(header.get("SamplesPerPixel", 1)), header.get("PhotometricInterpretation")
    if colours not in ((1, "MONOCHROME1"), (1, "MONOCHROME2")):
        raise FormatError(f"expected one grey value per voxel, got {colours[1]!r}")
    missing = [tag for tag in PLACE_TAGS if header.get(tag) is None]
    if missing:
        raise FormatError(f"a slice lacks {missing[0]}, so its place in space is unknown")
    vectors = _unit_vectors(np.array(header.ImageOrientationPatient, float).reshape(2, 3))
    spacing = tuple(float(size) for size in header.PixelSpacing)
    distance = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    described = DicomSlice(
        name=name,
        position=np.array(header.ImagePositionPatient, float),
        rows_and_columns=vectors,
        spacing=(spacing[0], spacing[1]),
        thickness=abs(float(distance)),
        shape=(int(header.Rows), int(header.Columns)),
        scaling=(1.0 if slope is None else float(slope), float(intercept or 0)),
        last_digit=min(_last_digit(number) for number in header.ImagePositionPatient),
        inverted=colours[1] == "MONOCHROME1",
    )
    numbers = [*described.position, *vectors.ravel(), *spacing, described.thickness]
    numbers += described.scaling
    if not np.isfinite(numbers).all() or min(*spacing, *described.shape) <= 0:
        raise FormatError("a slice's position, spacing or scaling is not a usable number")
    return described


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return directions (2, 3) whose length rounded text has changed, with length 1 again."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
        raise FormatError(
            "the two directions in ImageOrientationPatient must have length 1, got "
            f"{lengths[0, 0]:.3g} and {lengths[1, 0]:.3g}; export the series again"
        )
    return vectors / lengths


def _last_digit(number: Any) -> float:
    """Return the value of the last decimal of a number as the file writes it, such as 0.1."""
    try:
        exponent = Decimal(getattr(number, "original_string", None) or str(number)).as_tuple()[2]
    except InvalidOperation:  # no number, which is refused with all others
        return 0.0
    return float(f"1e{exponent}") if isinstance(exponent, int) else 0.0  # a letter for infinity
