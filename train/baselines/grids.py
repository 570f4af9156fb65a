"""Lays slices on the square grid that a system sees: each by itself, or in its scan's square."""

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_rasalore.benchmark.systems import Image, SeenSlices, select
from modeling_rasalore.data.patient import See
from modeling_rasalore.models.image_processing_rasalore import RasaloreImageProcessor
from modeling_rasalore.models.scan_view_rasalore import LOW, Levels, crop_views, resize_bilinear

from .frames import BRAIN, from_grid, to_grid

SCAN_PIXELS = 96  # of a scan's square at least: what the preset `base` sees
DARKEST = 2 * BRAIN  # of a channel's brain, so that no ventricle counts as background
# What systems of attention or class activation see of a scan. Not the mirror difference: it is as
# large on the healthy side, which their maps then marked.
WITH_NEIGHBOURS = ("this", "below", "above")
CHUNK = 32  # slices whose channels are computed together


class SliceGrid:
    """Every slice by itself, padded to a square; it needs nothing of its scan.

    Attributes:
        see: None, as for `System`.
        channels: of a slice of one sequence.
        levels: None, as for `deletion_scores`.
    """

    see: See | None = None
    channels: int = 1
    levels: Levels | None = None

    def __init__(self, pixels: int):
        self.pixels = pixels

    def images(self, slices: Sequence[Image]) -> Tensor:
        """Slices as they came, (N, C, pixels, pixels); background 0."""
        return to_grid(slices, self.pixels)

    def maps(self, raw: Tensor, slices: Sequence[Image]) -> list[Tensor]:
        """Maps (N, pixels, pixels) in the frames (H, W) of their slices."""
        pairs = zip(raw, slices, strict=True)
        return [from_grid(values, image.shape[-2:]) for values, image in pairs]


class ScanGrid:
    """Every slice in the square around its scan's brain, alone or as channels of the scan.

    Alone it keeps its scale, the scan's 99th percentile at 1: noise, cuts and learning rates of
    systems that reconstruct slices are meant for that scale. Channels are those of the preset
    `base`, moved and scaled so that the background is 0 and the brain's median 0.5; the mirror
    difference stays signed.

    Args:
        pixels: side of the square.
        names: of `scan_channels`, the slice itself first; none for the slice alone.

    Attributes:
        see: as for `System`.
        channels: of a slice of one sequence.
        levels: as for `deletion_scores`; None for the slice alone.
    """

    def __init__(self, pixels: int, names: Sequence[str] = ()):
        self.names = names
        self.channels = len(names) or 1
        self.processor = RasaloreImageProcessor(
            pixels, self.channels, view="scan", channels=names or ("this",)
        )
        self.see: See | None = self.processor.see_scan
        levels = self.processor.levels
        assert levels is not None  # every scan has them
        self.outside = levels.outside
        moved = Levels(*((level - self.outside) / -LOW for level in levels))
        self.levels = moved if names else None

    def images(self, slices: SeenSlices) -> Tensor:
        """Slices with their views, (N, C, pixels, pixels); background 0.

        Raises:
            ValueError: a slice comes without its scan.
        """
        make = self.scan_channels if self.names else self.squares
        starts = range(0, len(slices), CHUNK)
        parts = [range(start, min(start + CHUNK, len(slices))) for start in starts]
        return torch.cat([make(select(slices, part)) for part in parts])

    def squares(self, slices: SeenSlices) -> Tensor:
        """Slices (H, W) or (C, H, W) alone, in the square of their scan."""
        boxes = self.processor.boxes(slices, slices.views)
        crops = [box.crop(image) for box, image in zip(boxes, slices, strict=True)]
        planes = [torch.from_numpy(crop).reshape(-1, *crop.shape[-2:]) for crop in crops]
        side = self.processor.size
        return torch.stack([resize_bilinear(plane, side, side) for plane in planes])

    def scan_channels(self, slices: SeenSlices) -> Tensor:
        """Channels of slices, (N, C, pixels, pixels)."""
        seen = self.processor.require_views(slices, slices.views)
        parts = crop_views(seen, self.processor.size)
        images = (self.processor.to_channels(**parts) - self.outside) / -LOW
        brain = parts["brain"][:, 1]
        images[:, 0] = torch.where(brain, images[:, 0].clamp(min=DARKEST), 0.0)
        return images

    def maps(self, raw: Tensor, slices: SeenSlices) -> list[Tensor]:
        """Maps (N, pixels, pixels) in the frames (H, W) of their slices; 0 outside the square."""
        restored = self.processor.post_process_maps(raw, slices, slices.views)
        return [torch.from_numpy(values) for values in restored]
