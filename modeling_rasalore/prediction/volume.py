"""From a scan to its anomaly map, mask and volume."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from ..scans.background import BrainSlices, brain_of, index_box
from ..scans.slice_frame import box_corners
from ..scans.volumes import Volume
from .mask_3d import part_sizes, remove_small_parts, smooth_scores

FloatImage = NDArray[np.float32]

MIRRORED = ((), (3,), (2,), (2, 3))  # axes of (B, C, H, W): a slice and its mirror images


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
        areas = [np.count_nonzero(one) for one in self.mask]  # along axes, it copies the mask
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
        found = box_corners(self.slice_affine, low, high)
        return [found.min(0).round(3).tolist(), found.max(0).round(3).tolist()]


def predict_volume(
    model: Any,
    processor: Any,
    volume: Volume,
    *,
    batch_size: int = 4,
    threshold: float = 0.5,
    flips: bool = False,
    smooth_mm: float = 0.0,
    smallest_ml: float = 0.0,
    model_facts: dict[str, str | None] | None = None,
) -> VolumePrediction:
    """Return scores and mask of a scan; nothing of the scan or the model is changed.

    Args:
        model: `RasaloreModel`, on any device, in any float type, in training mode or not.
        processor: the model's `RasaloreImageProcessor`.
        volume: from `read_volume`.
        batch_size: slices per forward pass.
        threshold: in [0, 1]; a voxel is anomalous when its score is above it.
        flips: as for `predict_slices`.
        smooth_mm: standard deviation of a 3-D Gaussian that blurs the scores; 0 leaves them.
        smallest_ml: connected parts of the mask with less volume are removed; 0 keeps all.
        model_facts: what `describe_model` says; None: asked here, which reads all the weights.

    Raises:
        ValueError: a threshold outside [0, 1], a batch size below 1, a negative size, or a model of
            several sequences.
    """
    channels = getattr(getattr(model, "config", None), "num_channels", 1)
    if channels > 1:
        raise ValueError(
            f"this model takes {channels} sequences as channels, and one scan is one of them; give "
            f"slices ({channels}, H, W) to predict_slices."
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}; 0.5 is the usual choice.")
    if not (0 <= smooth_mm < np.inf and 0 <= smallest_ml < np.inf):
        raise ValueError(
            f"smoothing and the smallest part must be 0 or more, got {smooth_mm} mm and "
            f"{smallest_ml} mL."
        )
    images = BrainSlices(volume.slices)
    scores = np.zeros(volume.slices.shape, np.float32)
    _fill_maps(list(scores), model, processor, images, batch_size, flips)
    if smooth_mm:
        smooth_scores(scores, images.foreground(), volume.spacing, smooth_mm)
    mask = (scores > threshold).view(np.uint8)
    if smallest_ml:
        remove_small_parts(mask, smallest_ml * 1000 / volume.geometry.voxel_mm3)
    facts = model_facts or describe_model(model)
    affine = volume.geometry.slice_affine
    return VolumePrediction(scores, mask, threshold, volume.spacing, facts, affine)


def predict_slices(
    model: Any,
    processor: Any,
    images: Sequence[FloatImage],
    batch_size: int = 4,
    flips: bool = False,
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

    Raises:
        ValueError: a batch size below 1.
    """
    maps = [np.zeros(image.shape[-2:], np.float32) for image in images]
    _fill_maps(maps, model, processor, images, batch_size, flips)
    return maps


def _fill_maps(
    maps: Sequence[FloatImage],
    model: Any,
    processor: Any,
    images: Sequence[FloatImage] | BrainSlices,
    batch_size: int,
    flips: bool,
) -> None:
    """Write the scores of slices with brain into `maps`, zeros of the slices' shapes."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    with_brain = [index for index, image in enumerate(images) if brain_of(image).any()]
    batches = range(0, len(with_brain), batch_size)
    for start in tqdm(batches, desc="slices", leave=False, disable=None):
        indices = with_brain[start : start + batch_size]
        scores = score_images(model, processor, [images[index] for index in indices], flips)
        for index, score in zip(indices, scores, strict=True):
            maps[index][...] = score


def score_images(
    model: Any, processor: Any, images: Sequence[FloatImage], flips: bool
) -> list[FloatImage]:
    """Return the score maps of slices with brain, in their own frames, from one forward pass."""
    weight = next(model.parameters())
    with evaluating(model), torch.inference_mode():
        pixel_values = processor(images, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        maps = processor.post_process_maps(score_batch(model, pixel_values, flips), images)
    return [np.where(brain_of(i), m, np.float32(0)) for i, m in zip(images, maps, strict=True)]


def score_batch(model: Any, pixel_values: torch.Tensor, flips: bool) -> torch.Tensor:
    """Scores (B, 1, 2 S, 2 S) in [0, 1], averaged over mirror images where asked for."""
    total = torch.zeros(())
    axes = MIRRORED if flips else MIRRORED[:1]
    for dims in axes:
        logits = model(pixel_values=pixel_values.flip(dims)).logits
        total = total.to(logits.device) + logits.float().sigmoid().flip(dims)
    return total / len(axes)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode it came in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


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
