"""Predict the anomaly map, the mask and the volume of one scan."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ..scans.background import BrainSlices, brain_of, index_box
from ..scans.slice_frame import box_corners
from ..scans.volumes import Volume
from .free_map import free_map, fuse_scores, fusion_offsets, polarity_of, smooth_scores
from .loading import choose_precision, computing_in
from .options import DEFAULT_OPTIONS, PredictionOptions
from .scoring import FloatImage, fill_maps
from .uncertainty import draw_doubt

NEIGHBOURS_26 = np.ones((3, 3, 3))
SMALLEST_BRAIN_ML = 0.1  # a mouse has 0.4
MOSAIC_PARTS = 6  # low slices of one brain show up to 5: brain stem, cerebellum, lobes


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """What a model says about one scan, on the scan's own voxels in the slice frame.

    Attributes:
        scores: (S, H, W) float32 in [0, 1], 0 outside the brain.
        mask: (S, H, W) uint8, 1 where the score is strictly above `threshold`.
        threshold: in [0, 1].
        spacing: mm between slices, rows and columns.
        model: what `describe_model` says of it.
        slice_affine: (4, 4), slice, row and column -> world coordinates in mm.
        spread: (S, H, W) float32 in [0, 0.5], standard deviation of the scores under the model's
            noise; None where no noise was drawn.
        quality_score: how well the masks of the noise draws agree, in [0, 1].
    """

    scores: FloatImage
    mask: NDArray[np.uint8]
    threshold: float
    spacing: tuple[float, float, float]
    model: dict[str, str | None]
    slice_affine: NDArray[np.float64] | None = None
    spread: FloatImage | None = None
    quality_score: float | None = None

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(np.prod(self.spacing))

    @property
    def millilitres(self) -> float:
        """Volume of the mask in mL."""
        return int(np.count_nonzero(self.mask)) * self.voxel_mm3 / 1000

    @property
    def slices_with_anomaly(self) -> list[int]:
        """Indices of the slices that the mask touches, ascending."""
        return np.flatnonzero(self.mask.any((1, 2))).tolist()

    @property
    def largest_slice(self) -> int | None:
        """Index of the slice with the largest mask, the lowest one of equals; None without."""
        areas = [np.count_nonzero(plane) for plane in self.mask]  # along axes, it copies the mask
        return int(np.argmax(areas)) if any(areas) else None

    @property
    def largest_component_ml(self) -> float:
        """Volume of the mask's largest connected part (26 neighbours) in mL, 0 without."""
        return int(part_sizes(self.mask).max(initial=0)) * self.voxel_mm3 / 1000

    @property
    def bounding_box_mm(self) -> list[list[float]] | None:
        """Least and greatest x, y and z of the mask's voxels in the scan's world; None without."""
        box = index_box(self.mask)
        if box is None or self.slice_affine is None:
            return None
        low = np.array([side.start for side in box]) - 0.5  # a voxel's index is its centre
        high = np.array([side.stop for side in box]) - 0.5
        points = box_corners(self.slice_affine, low, high)
        return [points.min(0).round(3).tolist(), points.max(0).round(3).tolist()]


def predict_volume(
    model: Any,
    processor: Any,
    volume: Volume,
    options: PredictionOptions = DEFAULT_OPTIONS,
    model_facts: dict[str, str | None] | None = None,
) -> VolumePrediction:
    """Return scores and mask of a scan; nothing of the scan or the model is changed.

    Args:
        model: `RasaloreModel`, on any device, in any float type, in training mode or not.
        processor: the model's `RasaloreImageProcessor`.
        volume: from `read_volume`.
        options: threshold, mirror images, smoothing, free map, noise draws and the like.
        model_facts: what `describe_model` says; None: asked here, which reads all the weights.

    Raises:
        ValueError: no brain in the scan, a model of several sequences, noise draws of a model
            without noise, or a free map of an unknown sequence.
    """
    _refuse_several_sequences(model, processor)
    images = require_brain(volume)
    views = processor.see(images, volume.spacing) if processor.see else None
    offsets = None
    if options.free_map:
        offsets = free_map_offsets(images, volume, options.free_map, model)
    scores = np.zeros(volume.slices.shape, np.float32)
    with computing_in(choose_precision(model, options.precision), model):
        fill_maps(list(scores), model, processor, images, options.batch_size, options.flips, views)
        if options.smooth_mm:
            smooth_scores(scores, images.foreground(), volume.spacing, options.smooth_mm)
        if offsets is not None:
            for plane, offset, image in zip(scores, offsets, images, strict=True):
                plane[...] = fuse_scores(plane, offset, brain_of(image))
        mask = (scores > options.threshold).view(np.uint8)
        if options.smallest_ml:
            smallest = options.smallest_ml * 1000 / volume.geometry.voxel_mm3
            remove_small_parts(mask, smallest)
        doubt = None
        if options.noise_samples:
            doubt = draw_doubt(model, processor, volume, options, offsets=offsets)
    return VolumePrediction(
        scores,
        mask,
        options.threshold,
        volume.spacing,
        model_facts or describe_model(model),
        volume.geometry.slice_affine,
        doubt.spread if doubt else None,
        doubt.quality_score if doubt else None,
    )


def free_map_offsets(images: BrainSlices, volume: Volume, weight: float, model: Any) -> FloatImage:
    """Return what the free map adds to the logits of a scan's scores, (S, H, W).

    The scan's own sequence says how lesions look, else the one that the model learned from.

    Raises:
        ValueError: neither is known.
    """
    learned = getattr(getattr(model, "config", None), "modality", None)
    polarity = polarity_of(volume.sequence or learned)
    brain = images.foreground()
    return fusion_offsets(free_map(images, brain, volume.spacing, polarity), brain, weight)


def require_brain(volume: Volume) -> BrainSlices:
    """Return the slices of a scan with background 0, which a model can look at.

    Raises:
        ValueError: nothing to look at: blank, constant, a speck, or many slices side by side in
            one, so that an empty mask would say nothing.
    """
    images = BrainSlices(volume.slices)
    millilitres = images.brain_voxels * float(np.prod(volume.spacing)) / 1000
    if volume.replaced_voxels == volume.slices.size:
        problem = "all its voxels are NaN or infinite"
    elif not images.brain_voxels:
        problem = f"no voxel differs from its background, {images.scale.background:g}"
    elif millilitres < SMALLEST_BRAIN_ML:
        problem = f"only {images.brain_voxels} voxels ({millilitres:.2g} mL) are not background"
    elif len(images) == 1 and (parts := _count_large_parts(images[0])) >= MOSAIC_PARTS:
        problem = f"its one slice shows {parts} pieces of like size, as a mosaic of slices does"
    else:
        return images
    raise ValueError(
        f"{volume.path}: a scan must show one brain, but {problem}; give the scan as a volume, "
        "with its brain in it."
    )


def _count_large_parts(image: FloatImage) -> int:
    """Return how many parts of a slice have at least a fifth of the largest one's size."""
    sizes = part_sizes(brain_of(image)[None].view(np.uint8))
    return int(np.count_nonzero(sizes >= sizes.max() / 5))


def _refuse_several_sequences(model: Any, processor: Any) -> None:
    channels = getattr(getattr(model, "config", None), "num_channels", 1)
    if channels > 1 and processor.see is None:  # else they are one scan's slice and neighbours
        raise ValueError(
            f"this model takes {channels} sequences as channels, and one scan is one of them; give "
            f"slices ({channels}, H, W) to predict_slices."
        )


def predict_slices(
    model: Any,
    processor: Any,
    images: Sequence[FloatImage],
    batch_size: int = 4,
    flips: bool = False,
    views: Sequence[Any] | None = None,
) -> list[FloatImage]:
    """Return one score map (H, W) float32 in [0, 1] per slice, in the slice's own frame.

    Slices without brain are not sent through the model: their maps are 0, as is the background of
    all others.

    Args:
        model, processor: as for `predict_volume`.
        images: (H, W) each, or (C, H, W) for a model of several sequences, where one that is
            missing is 0; 0 in the background and above 0 in the brain.
        batch_size: slices per forward pass.
        flips: average the scores of each slice and its three mirror images: four times the work,
            and a score that does not depend on which side is which.
        views: what `processor.see(scan, spacing)` says of each slice, for a model that sees them as
            part of their scan; others need none.

    Raises:
        ValueError: a batch size below 1, or a slice without the view that the model needs.
    """
    maps = [np.zeros(image.shape[-2:], np.float32) for image in images]
    fill_maps(maps, model, processor, images, batch_size, flips, views)
    return maps


def describe_model(model: Any) -> dict[str, str | None]:
    """Return name (repo id or folder name), Hub revision, MRI sequence and the weights' SHA-256.

    Revision and sequence are None where they are not known. The hash covers names and values of
    all tensors, in the order of their names.
    """
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = getattr(model, "config", None)
    return {
        "name": Path(name).name if Path(name).exists() else name,
        "revision": getattr(config, "_commit_hash", None),
        "modality": getattr(config, "modality", None),
        "weights_sha256": digest.hexdigest(),
    }


# --- Parts of masks, found within the box that holds the mask: a volume may have 10^8 voxels ------
def part_sizes(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the voxels of each connected part of a mask (26 neighbours), in no order."""
    box = index_box(mask)
    return np.zeros(0, np.int64) if box is None else _count_voxels(_number_parts(mask[box]))[1:]


def remove_small_parts(mask: NDArray[np.uint8], smallest: float) -> None:
    """Set connected parts of a mask (S, H, W) with fewer than `smallest` voxels to 0, in place."""
    box = index_box(mask)
    if box is None:
        return
    numbers = _number_parts(mask[box])
    stays = _count_voxels(numbers) >= smallest
    stays[0] = False  # the background
    for plane, plane_numbers in zip(mask[box], numbers, strict=True):
        plane[...] = stays[plane_numbers]


def _number_parts(mask: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the number of each voxel's connected part, from 1 on, and 0 outside the mask.

    Two bytes per voxel, which is an eighth of a prediction, or four for more than 65535 parts.
    """
    with suppress(RuntimeError):  # more parts than uint16 has numbers
        return ndimage.label(mask, NEIGHBOURS_26, output=np.uint16)[0]
    return ndimage.label(mask, NEIGHBOURS_26)[0]


def _count_voxels(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """Return the voxels of each part number; slice by slice, because counting copies to int64."""
    counts = np.zeros(int(numbers.max()) + 1, np.int64)
    for plane in numbers:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return counts
