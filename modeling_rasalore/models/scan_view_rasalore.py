"""See a scan as one: one square and one scale for all slices, their neighbours, both hemispheres.

A slice alone does not say how bright its scan is, how large the brain is, what lies 5 mm above, or
what the other side looks like. What the whole scan says is measured once and goes with each slice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FloatImage = NDArray[np.float32]

MARGIN = 1.03  # half side of the square, in largest half extents of the brain
BRIGHTEST = 4.0  # relative intensities end here, in medians of the scan's brain
MAD_TO_STD = 1.4826  # of a normal distribution
LEAST_MAD = 1e-3  # a scan of one value has no spread to divide by
LOW, HIGH = -4.0, 10.0  # where z ends, in standard deviations from the median
LARGEST_DIFFERENCE = 6.0  # where the difference to the mirror image ends, in the same unit
NEAR_MM, FAR_MM = 2.0, 4.0  # Gaussians of a slice and of its mirror image
LEAST_SHARE = 0.05  # of the far Gaussian that meets brain; with less there is nothing to compare

SLICES = ("below", "this", "above")  # the order in which a slice and its neighbours are stacked
CHANNELS = ("this", "below", "above", "mirror")
OUTSIDE = {"mirror": 0.0}  # of a channel outside the brain; of all others LOW / 2
RANGES = {"mirror": (-LARGEST_DIFFERENCE / 2, LARGEST_DIFFERENCE / 2)}  # else LOW / 2, HIGH / 2


class Levels(NamedTuple):
    """Values of a scan's channels that mean something, (C, 1, 1) each.

    outside: of pixels outside the brain.
    median: of pixels as bright as the brain's median, and as the other hemisphere.
    """

    outside: Tensor
    median: Tensor


class Box(NamedTuple):
    """Rectangle of a slice in pixels; bottom and right are excluded. It may reach beyond."""

    top: int
    left: int
    bottom: int
    right: int

    def crop(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Return planes (..., H, W) inside the box, (..., h, w); beyond their edges lies 0."""
        (rows, columns), margins = self._overlap(planes.shape[-2:])
        inside = planes[..., rows, columns]
        if not any(map(any, margins)):
            return inside
        return np.pad(inside, [*[(0, 0)] * (planes.ndim - 2), *margins])

    def place(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return zeros (H, W) with the values (h, w) of the box in it, as far as it reaches."""
        (rows, columns), ((above, _), (before, _)) = self._overlap(shape)
        whole = np.zeros(shape, values.dtype)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        whole[rows, columns] = values[above : above + height, before : before + width]
        return whole

    def _overlap(
        self, shape: tuple[int, ...]
    ) -> tuple[tuple[slice, slice], tuple[tuple[int, int], tuple[int, int]]]:
        """Return which rows and columns of a slice lie in the box, and by how much it exceeds."""
        height, width = shape
        rows = slice(max(self.top, 0), min(self.bottom, height))
        columns = slice(max(self.left, 0), min(self.right, width))
        return (rows, columns), (
            (rows.start - self.top, self.bottom - rows.stop),
            (columns.start - self.left, self.right - columns.stop),
        )


@dataclass(frozen=True)
class ScanView:
    """What a scan says about each of its slices; measured once.

    Attributes:
        row, column: centre of the square, in pixels from the outer edge of the first one; the
            column is that of the midline.
        half_side_mm: of the square.
        spacing: mm between slices, rows and columns.
        median: intensity of the brain.
        mad: 1.4826 times the median distance of intensities from the median, in medians.
        neighbour_step: slices from a slice to its neighbours.
    """

    row: float
    column: float
    half_side_mm: float
    spacing: tuple[float, float, float]
    median: float
    mad: float
    neighbour_step: int = 1

    @property
    def box(self) -> Box:
        """The square in whole pixels, the same in every slice."""
        height, width = (round(2 * self.half_side_mm / side) for side in self.spacing[1:])
        top, left = round(self.row - height / 2), round(self.column - width / 2)
        return Box(top, left, top + height, left + width)


@dataclass(frozen=True, eq=False)
class SeenSlice:
    """A slice (H, W) with its neighbours (H, W) and its scan, as it came, background 0.

    At the ends of a scan the last slice is its own neighbour.
    """

    below: FloatImage
    this: FloatImage
    above: FloatImage
    scan: ScanView


class SeenScan:
    """The slices of a scan by index, each a `SeenSlice`; nothing is copied."""

    def __init__(self, slices: Sequence[FloatImage] | FloatImage, scan: ScanView):
        self.slices, self.scan = slices, scan

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> SeenSlice:
        last, step = len(self.slices) - 1, self.scan.neighbour_step
        below, above = max(index - step, 0), min(index + step, last)
        slices = self.slices
        return SeenSlice(slices[below], slices[index], slices[above], self.scan)

    def __iter__(self) -> Iterator[SeenSlice]:
        return (self[index] for index in range(len(self)))


def measure_scan(
    slices: Sequence[FloatImage] | FloatImage,
    spacing: Sequence[float],
    neighbour_mm: float = 5.0,
) -> ScanView:
    """Return the square, the scale and the neighbours of a scan.

    Args:
        slices: (S, H, W), 0 in the background and above 0 in the brain.
        spacing: mm between slices, rows and columns.
        neighbour_mm: how far away the neighbours of a slice lie; the nearest slices are taken, and
            the next ones where slices are further apart.

    Raises:
        ValueError: no brain, or what is no scan with a spacing.
    """
    depth, height_mm, width_mm = check_spacing(spacing)
    rows, columns, values = 0, 0, []
    for image in slices:
        plane = np.asarray(image)
        if plane.ndim != 2 or not np.isfinite(plane).all():
            raise ValueError(
                f"a scan must be finite slices (S, H, W), got a slice of shape {plane.shape}"
                f"{' with NaN or Inf' if plane.ndim == 2 else ''}."
            )
        brain = plane > 0
        rows, columns = rows + brain.sum(1), columns + brain.sum(0)
        values.append(plane[brain])
    inside = np.concatenate([np.empty(0, np.float32), *values])
    if not inside.size:
        raise ValueError("a scan must show brain, got no voxel above 0; its background must be 0.")
    median = middle(inside)
    spread = middle(np.abs(inside / median - 1))
    top, bottom = span(np.asarray(rows))
    left, right = span(np.asarray(columns))
    midline = float(np.average(np.arange(len(columns)) + 0.5, weights=columns))  # type: ignore[arg-type]
    half_extents = (
        (bottom - top) / 2 * height_mm,
        (midline - left) * width_mm,
        (right - midline) * width_mm,
    )
    return ScanView(
        row=(top + bottom) / 2,
        column=midline,
        half_side_mm=MARGIN * max(half_extents),
        spacing=(depth, height_mm, width_mm),
        median=median,
        mad=max(MAD_TO_STD * spread, LEAST_MAD),
        neighbour_step=max(round(neighbour_mm / depth), 1),
    )


def check_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return mm between slices, rows and columns as floats; ValueError for anything else."""
    sides = tuple(float(side) for side in spacing)
    if len(sides) != 3 or not all(np.isfinite(sides)) or min(sides) <= 0:
        raise ValueError(
            f"spacing must be three lengths above 0 in mm (slices, rows, columns), got {sides}."
        )
    return sides[0], sides[1], sides[2]


def middle(values: NDArray[np.floating]) -> float:
    """Return the median; of two middle values the lower."""
    rank = (values.size - 1) // 2
    return float(np.partition(values, rank)[rank])


def span(counts: NDArray[np.integer]) -> tuple[int, int]:
    """Return the first index with a count, and the last + 1."""
    indices = np.flatnonzero(counts)
    return int(indices[0]), int(indices[-1]) + 1


# --- What a network sees of it --------------------------------------------------------------------
def crop_views(views: Sequence[SeenSlice], size: int) -> dict[str, Tensor]:
    """Return what channels are computed from, in the scan's square at `size` x `size` pixels.

    Returns:
        relative: intensities in medians of the scan's brain, [0, 4], 0 outside the brain,
            (B, 3, size, size), in the order of `SLICES`.
        brain: (B, 3, size, size) bool; of a pixel at the edge at least half is brain.
        pixel_mm: side of a pixel, (B,).
        mad: of the scans, (B,).
    """
    parts = [crop_view(view, size) for view in views]
    scans = [view.scan for view in views]
    return {
        "relative": torch.stack([relative for relative, _ in parts]),
        "brain": torch.stack([brain for _, brain in parts]),
        "pixel_mm": torch.tensor([2 * scan.half_side_mm / size for scan in scans]),
        "mad": torch.tensor([scan.mad for scan in scans]),
    }


def crop_view(view: SeenSlice, size: int) -> tuple[Tensor, Tensor]:
    """Return relative intensities and brain of a slice and its neighbours, (3, size, size) each."""
    box, median = view.scan.box, np.float32(view.scan.median)
    planes = np.stack([box.crop(getattr(view, name)) for name in SLICES])
    relative = torch.from_numpy((planes / median).clip(0, BRIGHTEST))
    inside = torch.from_numpy(planes > 0).to(relative.dtype)
    resized, share = resize_bilinear(torch.cat([relative, inside]), size, size).chunk(2)
    brain = share >= 0.5
    # The background that was mixed into a pixel at the edge is taken out again.
    return torch.where(brain, resized / share.clamp(min=0.5), 0.0), brain


def scan_channels(
    relative: Tensor,
    brain: Tensor,
    pixel_mm: Tensor,
    mad: Tensor,
    names: Sequence[str] = CHANNELS,
    neighbour_mm: float = 5.0,
) -> Tensor:
    """Return the named channels of slices, (B, C, S, S).

    "this", "below" and "above" are z = clip((x - 1) / MAD, -4, 10) / 2 of a slice and of its
    neighbours, -2 outside the brain; "neighbours" is the mean of the latter two; "mirror" is
    `mirror_difference`.

    Args:
        relative, brain, pixel_mm, mad: as `crop_views` returns them, painted on or not.
        neighbour_mm: as for `measure_scan`.
    """
    z = ((relative - 1) / mad[:, None, None, None]).clamp(LOW, HIGH) / 2
    z = torch.where(brain, z, LOW / 2)
    planes = dict(zip(SLICES, z.unbind(1), strict=True))
    planes["neighbours"] = (planes["below"] + planes["above"]) / 2
    if "mirror" in names:
        planes["mirror"] = mirror_difference(relative, brain, pixel_mm, mad, neighbour_mm)[:, 0]
    return torch.stack([planes[name] for name in names], dim=1)


def mirror_difference(
    relative: Tensor, brain: Tensor, pixel_mm: Tensor, mad: Tensor, neighbour_mm: float = 5.0
) -> Tensor:
    """Return how much brighter each pixel is than the other hemisphere, (B, 1, S, S).

    clip((G_2mm(x) - flip(G_4mm(x))) / MAD, -6, 6) / 2, G being a Gaussian over the brain of all
    three slices; 0 outside the brain, and where the other hemisphere shows none.

    Args:
        relative, brain, pixel_mm, mad: as `crop_views` returns them; the midline is the middle.
        neighbour_mm: from a slice to its neighbours.
    """
    near, _ = smooth_brain(relative, brain, pixel_mm, NEAR_MM, neighbour_mm)
    far, share = (
        plane.flip(-1) for plane in smooth_brain(relative, brain, pixel_mm, FAR_MM, neighbour_mm)
    )
    largest = LARGEST_DIFFERENCE
    difference = ((near - far) / mad[:, None, None]).clamp(-largest, largest) / 2
    return torch.where(brain[:, 1] & (share >= LEAST_SHARE), difference, 0.0)[:, None]


def smooth_brain(
    relative: Tensor, brain: Tensor, pixel_mm: Tensor, sigma_mm: float, neighbour_mm: float
) -> tuple[Tensor, Tensor]:
    """Return a Gaussian mean over brain alone, and the share of the Gaussian it saw, (B, S, S)."""
    across = torch.tensor([neighbour_mm, 0.0, neighbour_mm], device=relative.device)
    weights = torch.exp(-((across / sigma_mm) ** 2) / 2)
    weights = (weights / weights.sum())[:, None, None]
    # Across the slices first: along rows and columns then only one plane is left, and a product
    # with a matrix along each, as the pixels of each scan have a size of their own.
    planes = torch.stack([(relative * brain * weights).sum(1), (brain * weights).sum(1)])
    places = torch.arange(relative.shape[-1], device=relative.device)
    steps = (places[:, None] - places) * (pixel_mm / sigma_mm)[:, None, None]
    kernel = (
        torch.exp(-(steps**2) / 2) * (pixel_mm / (sigma_mm * (2 * torch.pi) ** 0.5))[:, None, None]
    )
    total, share = kernel @ planes @ kernel
    return total / share.clamp(min=1e-6), share


def resize_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) -> (C, height, width), antialiased when it shrinks."""
    return F.interpolate(
        image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]
