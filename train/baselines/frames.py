"""Slices of any shape on a system's square grid, and maps back in the slice's own frame."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from modeling_rasalore.training.augmentation import (
    AugmentationRecipe,
    random_transforms,
    resample,
)

# A pixel of a resized slice belongs to the brain above this share of the brain's 99th percentile.
BRAIN = 0.01
TOP = 1.5  # where networks of a bounded range cut intensities: lesions are brighter than 1
# Any turn and both flips, as stage 1 gets them: what learns labels of few patients from scratch
# would otherwise learn the patients by heart.
VIEWS = AugmentationRecipe(
    rotation_degrees=180,
    rotation_probability=1.0,
    smallest_scale=0.7,
    horizontal_flip=0.5,
    vertical_flip=0.5,
)


def to_grid(slices: Sequence[NDArray[np.float32]], pixels: int) -> Tensor:
    """Slices (H, W) or (C, H, W) -> (N, C, pixels, pixels): padded to a square, then bilinear."""
    if not slices:
        return torch.zeros(0, 1, pixels, pixels)
    return torch.cat([_square(image, pixels) for image in slices])


def from_grid(raw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A map (p, p) of the grid in the frame (H, W) of the slice it was made from."""
    height, width = shape
    side = max(height, width)
    square = F.interpolate(raw[None, None], (side, side), mode="bilinear")[0, 0]
    top, left = (side - height) // 2, (side - width) // 2
    return square[top : top + height, left : left + width]


def random_views(images: Tensor) -> Tensor:
    """Slices (N, C, p, p), each turned, flipped and enlarged at random."""
    return resample(images, random_transforms(len(images), VIEWS, images.device), "bilinear")


def eroded_brain(images: Tensor) -> Tensor:
    """Brain of (N, C, p, p) without its rim, (N, p, p): 5x5 mean of the brain above 0.95."""
    brain = (images > BRAIN).any(1, keepdim=True).float()
    return F.avg_pool2d(brain, 5, stride=1, padding=2)[:, 0] > 0.95


def smooth(maps: Tensor) -> Tensor:
    """Maps (N, p, p) after a 5x5 median, edges reflected."""
    filtered = ndimage.median_filter(maps.detach().cpu().numpy(), size=(1, 5, 5), mode="reflect")
    return torch.from_numpy(filtered).to(maps.device)


def residual_maps(images: Tensor, reconstructions: Tensor) -> Tensor:
    """|x - reconstruction| mean over sequences, inside the eroded brain, smoothed: (N, p, p)."""
    return smooth((images - reconstructions).abs().mean(1) * eroded_brain(images))


def to_signed(images: Tensor) -> Tensor:
    """Images with background 0 and the brain's 99th percentile at 1 -> [-1, 1], cut at `TOP`."""
    return images.clamp(0, TOP) * (2 / TOP) - 1


def stretch(maps: Tensor) -> Tensor:
    """Each map (N, p, p) from its own minimum and maximum to [0, 1]; constant maps become 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def _square(image: NDArray[np.float32], pixels: int) -> Tensor:
    planes = torch.from_numpy(np.array(image, np.float32, ndmin=3))[None]
    height, width = planes.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padded = F.pad(planes, (left, side - width - left, top, side - height - top))
    return F.interpolate(padded, (pixels, pixels), mode="bilinear", antialias=True)
