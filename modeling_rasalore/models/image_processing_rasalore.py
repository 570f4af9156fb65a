"""Turn brain slices into `pixel_values`, and a model's maps back into each slice's own frame.

One frame for everything: the slice, its pseudo-mask, the prompted segmenter's mask and the true
mask share the slice's pixel grid, and every crop or resize of one of them goes through this file.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from .scan_view_rasalore import (
    CHANNELS,
    HIGH,
    LOW,
    OUTSIDE,
    RANGES,
    Box,
    FloatImage,
    Levels,
    SeenScan,
    SeenSlice,
    crop_views,
    measure_scan,
    resize_bilinear,
    scan_channels,
)


# Not BaseImageProcessor: only saving and loading would be used of it, and it imports all processors
# and models of transformers.
class RasaloreImageProcessor(ImageProcessingMixin):
    """Slices (H, W) or (C, H, W) -> `pixel_values` (B, C, size, size), and maps back to (H, W).

    With `view` "slice" every slice is seen by itself:

    1. Scale each channel of a slice to [0, 1] by its own minimum and maximum.
    2. Raise to `gamma` (stage 2: 2.0, which darkens everything but the brightest tissue).
    3. Crop to the brain: the bounding box of all pixels above `brain_threshold`.
    4. Multiply by `rescale_factor` and resize to `size` x `size`, bilinear.
    5. Repeat a single channel to `num_channels`, and normalise by mean and standard deviation
       where the backbone was trained that way (CLIP).

    A slice without brain gives zeros before step 5, and a map of zeros afterwards.

    With "scan" it is seen as part of its scan, whose background is 0: `processor(scan (S, H, W),
    spacing=mm)`, or `views = processor.see(scan, mm)` and then any slices with their views,
    `processor(images, views=views)`.

    1. One square around the brain in all slices, its centre on the midline, resized to `size`.
    2. Intensities relative to the median and the spread of the scan's brain.
    3. `channels`, see `scan_channels`: the slice, its neighbours `neighbour_mm` below and above,
       and its difference to the other hemisphere; mean and standard deviation, where given, are
       those of channels in [0, 1].
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
        view: str = "slice",
        channels: Sequence[str] | None = None,
        neighbour_mm: float = 5.0,
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
        self.view = view
        self.channels = channels  # of view "scan"; None: CHANNELS
        self.neighbour_mm = neighbour_mm
        self._check_view()

    # What `from_pretrained` takes in place of what was saved: names, as keys of annotations.
    valid_kwargs = __init__

    def _check_view(self) -> None:
        """Raise ValueError for another view, or channels that are not what the network takes."""
        if self.view not in ("slice", "scan"):
            raise ValueError(f"view must be 'slice' or 'scan', got {self.view!r}.")
        for name in self.scan_channels:
            if name not in (*CHANNELS, "neighbours"):
                raise ValueError(f"channels are {[*CHANNELS, 'neighbours']}, got {name!r}.")
        if self.view == "scan" and len(self.scan_channels) != self.num_channels:
            raise ValueError(
                f"num_channels must be the number of channels {list(self.scan_channels)} that a "
                f"scan is seen in, got {self.num_channels}."
            )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save it with its own files, so that it loads elsewhere with trust_remote_code=True."""
        self.register_for_auto_class("AutoImageProcessor")  # imports what the class does without
        return super().save_pretrained(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: the fields that have a value, and the name of the class."""
        return {name: value for name, value in super().to_dict().items() if value is not None}

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = None,
        views: Sequence[SeenSlice] | None = None,
        spacing: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values` (B, C, size, size) of one slice, a list of slices, or a scan.

        Args:
            images: arrays or greyscale PIL images, (H, W) or (C, H, W), any intensity scale; of
                view "scan" slices (H, W) or a scan (S, H, W), background 0.
            views: what `see` says of each of the slices; view "slice" needs none.
            spacing: mm between slices, rows and columns of a scan, in place of `views`.

        Raises:
            ValueError: for a slice that is not 2- or 3-dimensional, is empty or not finite, or that
                comes without its scan.
        """
        slices = as_slices(images)
        if self.view == "scan":
            seen = self.require_views(slices, self.see_scan(images, spacing) if spacing else views)
            pixel_values = self.to_channels(**crop_views(seen, self.size)).numpy()
        else:
            batch = [self.crop_and_resize(unit_range(image)) for image in slices]
            pixel_values = np.stack([self.normalise(image) for image in batch])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)

    # --- View "scan" ----------------------------------------------------------------------------
    @property
    def scan_channels(self) -> Sequence[str]:
        """The channels in which a scan is seen."""
        return self.channels or CHANNELS

    @property
    def see(self) -> Callable[[Any, Sequence[float]], SeenScan] | None:
        """`see_scan`; None where every slice is seen by itself."""
        return self.see_scan if self.view == "scan" else None

    def see_scan(self, slices: Any, spacing: Sequence[float]) -> SeenScan:
        """Return the views of the slices of a scan by index; nothing is copied.

        Args:
            slices: (S, H, W), 0 in the background and above 0 in the brain.
            spacing: mm between slices, rows and columns.

        Raises:
            ValueError: no brain, or what is no scan with a spacing.
        """
        return SeenScan(slices, measure_scan(slices, spacing, self.neighbour_mm))

    def require_views(
        self, slices: Sequence[FloatImage], views: Sequence[SeenSlice] | SeenScan | None
    ) -> list[SeenSlice]:
        """Return the views of slices; ValueError where one comes without its scan."""
        seen = list(views or ())
        if len(seen) != len(slices) or None in seen:
            raise ValueError(
                "this model sees a slice as part of its scan: pass a scan (S, H, W) with "
                "spacing=(slice, row, column) in mm, or slices with views=, their share of "
                f"processor.see(scan, spacing); got {len(slices)} slices with {len(seen)} views."
            )
        return seen

    def to_channels(self, relative: Tensor, brain: Tensor, pixel_mm: Tensor, mad: Tensor) -> Tensor:
        """Return `pixel_values` (B, C, size, size) of what `crop_views` returned, on its device."""
        names = self.scan_channels
        planes = scan_channels(relative, brain, pixel_mm, mad, names, self.neighbour_mm)
        return self._from_unit(planes) if self.image_mean else planes

    @property
    def levels(self) -> Levels | None:
        """`pixel_values` outside the brain and at its median; None of view "slice"."""
        if self.view == "slice":
            return None
        names = self.scan_channels
        outside = torch.tensor([OUTSIDE.get(name, LOW / 2) for name in names])[:, None, None]
        both = outside, torch.zeros_like(outside)
        return Levels(*(self._from_unit(v) if self.image_mean else v for v in both))

    def _from_unit(self, planes: Tensor) -> Tensor:
        """Channels brought to [0, 1] each by its own fixed range, as backbones of pictures ask."""
        ranges = [RANGES.get(name, (LOW / 2, HIGH / 2)) for name in self.scan_channels]
        low, high = (planes.new_tensor(ends)[:, None, None] for ends in zip(*ranges, strict=True))
        mean, std = self._statistics(planes)
        return ((planes - low) / (high - low) - mean) / std

    # --- View "slice" ---------------------------------------------------------------------------

    @property
    def value_range(self) -> float:
        """Difference in `pixel_values` between the darkest and the brightest pixel.

        Of view "scan" it is two standard deviations of the brain.
        """
        if self.view == "scan":
            return 1 / (max(self.image_std) * (HIGH - LOW) / 2) if self.image_std else 1.0
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

    # --- Masks and maps: both views ---------------------------------------------------------------
    def boxes(self, images: Any, views: Sequence[SeenSlice] | None = None) -> list[Box]:
        """What of each slice a network sees; of view "scan" the square may reach beyond it."""
        slices = as_slices(images)
        if self.view == "scan":
            return [seen.scan.box for seen in self.require_views(slices, views)]
        return [self.box(unit_range(image)) for image in slices]

    def crop_masks(
        self,
        masks: Sequence[ArrayLike],
        images: Any,
        size: int,
        views: Sequence[SeenSlice] | None = None,
    ) -> Tensor:
        """Masks (H, W) of the slices in the frame of `pixel_values`, uint8 (B, size, size).

        Nearest pixel: a mask is never dilated by resizing. `size` may differ from the input's.
        """
        cropped = [
            F.interpolate(crop[None].float(), (size, size), mode="nearest-exact")[0, 0]
            for crop in self.crops(masks, images, views)
        ]
        return torch.stack(cropped).to(torch.uint8)

    def crop_maps(
        self,
        maps: Sequence[ArrayLike],
        images: Any,
        views: Sequence[SeenSlice] | None = None,
    ) -> Tensor:
        """Continuous maps (H, W) of the slices in the frame of `pixel_values`, (B, size, size)."""
        crops = self.crops(maps, images, views)
        return torch.cat([resize_bilinear(crop.float(), self.size, self.size) for crop in crops])

    def crops(
        self,
        maps: Sequence[ArrayLike],
        images: Any,
        views: Sequence[SeenSlice] | None = None,
    ) -> Iterator[Tensor]:
        """Masks or maps (H, W) of the slices inside their boxes, (1, h, w) each."""
        boxes = self.boxes(images, views)
        for values, image, box in zip(maps, as_slices(images), boxes, strict=True):
            if np.shape(values) != image.shape[1:]:
                raise ValueError(
                    f"a mask must have its slice's shape {image.shape[1:]}, got {np.shape(values)}."
                )
            yield torch.from_numpy(np.ascontiguousarray(box.crop(np.asarray(values))))[None]

    def post_process_maps(
        self, maps: Tensor, images: Any, views: Sequence[SeenSlice] | None = None
    ) -> list[FloatImage]:
        """Maps (B, h, w) or (B, 1, h, w) of `pixel_values` in each slice's own frame, (H, W).

        Args:
            maps: continuous values of the crop, at any resolution, e.g. `logits.sigmoid()`.
            images, views: the slices that were given to the processor.

        Returns:
            float32 arrays; 0 outside the box and in slices without brain.
        """
        if maps.ndim == 4:
            maps = maps[:, 0]
        slices, boxes = as_slices(images), self.boxes(images, views)
        restored = []
        for values, image, box in zip(maps.float().cpu(), slices, boxes, strict=True):
            whole = np.zeros(image.shape[1:], np.float32)
            if self._shows_brain(image):
                inside = resize_bilinear(values[None], box.bottom - box.top, box.right - box.left)
                # Rounding in the interpolation must not carry a score of 1 beyond 1.
                inside = inside[0].clamp(values.min(), values.max())
                whole = box.place(inside.numpy(), whole.shape)
            restored.append(whole)
        return restored

    def _shows_brain(self, image: FloatImage) -> bool:
        """Whether a slice (C, H, W) is brain anywhere."""
        shown = image > 0 if self.view == "scan" else unit_range(image)
        return bool(shown.any())


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
