"""Turn brain slices into `pixel_values`, and a model's maps back into each slice's own frame.

One frame for everything: the slice, its pseudo-mask, the prompted segmenter's mask and the true
mask share the slice's pixel grid, and every crop or resize of one of them goes through this file.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

FloatImage = NDArray[np.float32]


class Box(NamedTuple):
    """Rectangle of a slice in pixels; bottom and right are excluded."""

    top: int
    left: int
    bottom: int
    right: int


class RasaloreImageProcessor(BaseImageProcessor):
    """Slices (H, W) or (C, H, W) -> `pixel_values` (B, C, size, size), and maps back to (H, W).

    1. Scale each channel of a slice to [0, 1] by its own minimum and maximum.
    2. Raise to `gamma` (stage 2: 2.0, which darkens everything but the brightest tissue).
    3. Crop to the brain: the bounding box of all pixels above `brain_threshold`.
    4. Multiply by `rescale_factor` and resize to `size` x `size`, bilinear.
    5. Repeat a single channel to `num_channels`, and normalise by mean and standard deviation
       where the backbone was trained that way (CLIP).

    A slice without brain gives zeros before step 5, and a map of zeros afterwards.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - the library's own declaration

    def __init__(
        self,
        size: int = 128,
        num_channels: int = 1,
        gamma: float = 2.0,
        crop_to_brain: bool = True,
        brain_threshold: float = 0.01,
        rescale_factor: float = 1.0,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size = size
        self.num_channels = num_channels
        self.gamma = gamma
        self.crop_to_brain = crop_to_brain
        self.brain_threshold = brain_threshold
        self.rescale_factor = rescale_factor  # 255 for the released weights
        self.image_mean = image_mean
        self.image_std = image_std

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Return `pixel_values` (B, C, size, size) of one slice or a list of slices.

        Args:
            images: arrays or greyscale PIL images, (H, W) or (C, H, W), any intensity scale.

        Raises:
            ValueError: for a slice that is not 2- or 3-dimensional, is empty or not finite.
        """
        batch = [self.crop_and_resize(unit_range(image)) for image in as_slices(images)]
        return BatchFeature(
            {"pixel_values": np.stack([self.normalise(image) for image in batch])},
            tensor_type=return_tensors,
        )

    @property
    def value_range(self) -> float:
        """Difference in `pixel_values` between the darkest and the brightest pixel."""
        return self.rescale_factor / (max(self.image_std) if self.image_std else 1.0)

    def crop_and_resize(self, image: FloatImage) -> FloatImage:
        """Unit-range slice (C, H, W) -> gamma-corrected brain crop (C, size, size)."""
        top, left, bottom, right = self.box(image)
        crop = torch.from_numpy(
            image[:, top:bottom, left:right] ** self.gamma * self.rescale_factor
        )
        return resize_bilinear(crop, self.size, self.size).numpy()

    def normalise(self, image: FloatImage) -> FloatImage:
        """Repeat one channel and apply the backbone's mean and standard deviation."""
        if len(image) == 1:
            image = np.repeat(image, self.num_channels, axis=0)
        if len(image) != self.num_channels:
            raise ValueError(
                f"a slice must have 1 or {self.num_channels} channels, got {len(image)}; "
                "stack the sequences the model was trained on along the first axis."
            )
        if self.image_mean is None or self.image_std is None:
            return image.astype(np.float32)
        mean, std = (
            np.array(v, np.float32)[:, None, None] for v in (self.image_mean, self.image_std)
        )
        return ((image - mean) / std).astype(np.float32)

    def to_intensities(self, pixel_values: Tensor) -> Tensor:
        """Slices in [0, 1], as they were before gamma and normalisation, (B, C, size, size)."""
        mean, std = self._statistics(pixel_values)
        images = (pixel_values * std + mean) / self.rescale_factor
        return images.clamp(0, 1) ** (1 / self.gamma)

    def from_intensities(self, images: Tensor) -> Tensor:
        """`pixel_values` of cropped and sized slices in [0, 1]: `to_intensities` undone."""
        mean, std = self._statistics(images)
        return (images**self.gamma * self.rescale_factor - mean) / std

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = like.new_tensor(self.image_mean or [0.0])[:, None, None]
        return mean, like.new_tensor(self.image_std or [1.0])[:, None, None]

    def box(self, unit_image: FloatImage) -> Box:
        """Brain box of a unit-range slice (C, H, W); the whole slice when not cropping."""
        if not self.crop_to_brain:
            return Box(0, 0, *unit_image.shape[1:])
        return brain_box(unit_image.max(axis=0), self.brain_threshold)

    def crop_masks(self, masks: Sequence[ArrayLike], images: Any, size: int) -> Tensor:
        """Masks (H, W) of the slices in the frame of `pixel_values`, uint8 (B, size, size).

        Nearest pixel: a mask is never dilated by resizing. `size` may differ from the input's.
        """
        cropped = [
            F.interpolate(crop[None].float(), (size, size), mode="nearest-exact")[0, 0]
            for crop in self.crops(masks, images)
        ]
        return torch.stack(cropped).to(torch.uint8)

    def crop_maps(self, maps: Sequence[ArrayLike], images: Any) -> Tensor:
        """Continuous maps (H, W) of the slices in the frame of `pixel_values`, (B, size, size)."""
        crops = self.crops(maps, images)
        return torch.cat([resize_bilinear(crop.float(), self.size, self.size) for crop in crops])

    def crops(self, maps: Sequence[ArrayLike], images: Any) -> Iterator[Tensor]:
        """Masks or maps (H, W) of the slices inside their brain boxes, (1, h, w) each."""
        for values, image in zip(maps, as_slices(images), strict=True):
            if np.shape(values) != image.shape[1:]:
                raise ValueError(
                    f"a mask must have its slice's shape {image.shape[1:]}, got {np.shape(values)}."
                )
            top, left, bottom, right = self.box(unit_range(image))
            inside = np.asarray(values)[top:bottom, left:right]
            yield torch.from_numpy(np.ascontiguousarray(inside))[None]

    def post_process_maps(self, maps: Tensor, images: Any) -> list[FloatImage]:
        """Maps (B, h, w) or (B, 1, h, w) of `pixel_values` in each slice's own frame, (H, W).

        Args:
            maps: continuous values of the crop, at any resolution, e.g. `logits.sigmoid()`.
            images: the slices that were given to the processor.

        Returns:
            float32 arrays; 0 outside the brain box and in slices without brain.
        """
        if maps.ndim == 4:
            maps = maps[:, 0]
        restored = []
        for values, image in zip(maps.float().cpu(), as_slices(images), strict=True):
            unit_image = unit_range(image)
            whole = np.zeros(image.shape[1:], np.float32)
            if unit_image.any():
                top, left, bottom, right = self.box(unit_image)
                inside = resize_bilinear(values[None], bottom - top, right - left)
                # Rounding in the interpolation must not carry a score of 1 beyond 1.
                whole[top:bottom, left:right] = inside[0].clamp(values.min(), values.max()).numpy()
            restored.append(whole)
        return restored


def as_slices(images: Any) -> list[FloatImage]:
    """One slice or several as a list of float32 arrays (C, H, W); ValueError for other shapes."""
    if (hasattr(images, "ndim") and images.ndim == 2) or hasattr(images, "getpixel"):
        images = [images]
    slices = []
    for image in images:
        array = np.asarray(image, dtype=np.float32)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or 0 in array.shape:
            raise ValueError(
                f"a slice must be (H, W) or (C, H, W), got shape {np.shape(image)}; "
                "pass a list of slices for a batch."
            )
        if not np.isfinite(array).all():
            raise ValueError("a slice must be finite, got NaN or Inf; replace them, e.g. by 0.")
        slices.append(array)
    if not slices:
        raise ValueError("at least one slice is needed, got an empty list.")
    return slices


def unit_range(image: FloatImage) -> FloatImage:
    """Slice (C, H, W) with each channel scaled to [0, 1]; a constant channel becomes 0."""
    low = image.min(axis=(1, 2), keepdims=True)
    spread = image.max(axis=(1, 2), keepdims=True) - low
    return (image - low) / np.where(spread > 0, spread, 1)


def brain_box(unit_image: FloatImage, threshold: float = 0.01) -> Box:
    """Bounding box of the pixels above `threshold` in a unit-range slice (H, W).

    The whole slice when no pixel is. The last row and column belong to the brain: the released
    code leaves them out.
    """
    rows = np.flatnonzero((unit_image > threshold).any(axis=1))
    columns = np.flatnonzero((unit_image > threshold).any(axis=0))
    if not len(rows):
        return Box(0, 0, *unit_image.shape)
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def resize_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) -> (C, height, width), antialiased when it shrinks."""
    return F.interpolate(
        image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]
