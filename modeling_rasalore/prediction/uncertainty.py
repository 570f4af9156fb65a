"""Measure where a model's scores would change: their spread when its noise is drawn anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..scans.background import BrainSlices, brain_of
from ..scans.volumes import Volume
from .free_map import fuse_scores
from .options import PredictionOptions
from .scoring import FloatImage, score_images

# A volume takes 13 bytes per voxel besides. Eight of the full-sized model take 300 MiB more.
DRAWS_AT_ONCE = 2


def has_value_noise(model: Any) -> bool:
    """Whether a model draws Gaussian value noise, which `predict_uncertainty` needs."""
    return bool(_noise_modules(model))


def predict_uncertainty(
    model: Any,
    processor: Any,
    image: FloatImage,
    *,
    samples: int = 8,
    seed: int = 0,
    view: Any = None,
    offset: FloatImage | None = None,
) -> FloatImage:
    """Return the standard deviation of each pixel's score over noise draws, (H, W) in [0, 0.5].

    The noise is the one the model was trained with, so the spread says how far a score hangs on
    it: a measure of doubt for ranking pixels, not a calibrated probability. The same seed gives
    the same map, and the caller's random state stays as it was.

    Args:
        model, processor: as for `predict_slices`.
        image: (H, W), 0 in the background and above 0 in the brain.
        samples: draws, at least 2.
        seed: of the draws.
        view: of the slice, as for `predict_slices`.
        offset: (H, W), what the free map adds to the logits of every draw; None for nothing.

    Raises:
        ValueError: fewer than 2 samples, or a model without Gaussian value noise.
    """
    with _drawing(model, samples, seed):
        brain = brain_of(image)
        if not brain.any():
            return np.zeros(image.shape, np.float32)
        scores = np.stack(list(_draws(model, processor, image, samples, False, view)))
    if offset is not None:
        scores = fuse_scores(scores, offset, brain)
    return np.std(scores, axis=0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Doubt:
    """How far a volume's scores and mask hang on the model's noise.

    Attributes:
        spread: (S, H, W) float32 in [0, 0.5], standard deviation of each voxel's score.
        quality_score: mean Dice between the mask of each draw and the mask of the draws' mean, in
            [0, 1].
        volume_ratios: volume of each draw's mask over that of the mask of the draws' mean; empty
            where that mask is.
    """

    spread: FloatImage
    quality_score: float
    volume_ratios: tuple[float, ...] = ()


def draw_doubt(
    model: Any,
    processor: Any,
    volume: Volume,
    options: PredictionOptions,
    seed: int = 0,
    offsets: FloatImage | None = None,
) -> Doubt:
    """Return the spread of each voxel's score over noise draws, and a quality score of the case.

    The quality score is 1 where the noise changes nothing; a prediction is worth a second look when
    it is low. Draws are not smoothed, and their masks keep tiny parts.

    Args:
        model, processor: as for `predict_volume`.
        options: `noise_samples` draws, at least 2, of which `threshold` makes masks, averaged over
            mirror images with `flips`.
        seed: as for `predict_uncertainty`.
        offsets: (S, H, W), what the free map adds to the logits of every draw; None for nothing.

    Raises:
        ValueError: as for `predict_uncertainty`.
    """
    samples, threshold = options.noise_samples, options.threshold
    spread = np.zeros(volume.slices.shape, np.float32)
    overlap, drawn = np.zeros(samples), np.zeros(samples)
    agreed = 0
    with _drawing(model, samples, seed):
        images = BrainSlices(volume.slices)
        views = processor.see(images, volume.spacing) if processor.see else [None] * len(images)
        for index, (image, view, plane) in enumerate(zip(images, views, spread, strict=True)):
            brain = brain_of(image)
            if not brain.any():
                continue
            draws = np.stack(list(_draws(model, processor, image, samples, options.flips, view)))
            if offsets is not None:
                draws = fuse_scores(draws, offsets[index], brain)
            plane[...] = draws.std(axis=0)
            masks, mean_mask = draws > threshold, draws.mean(0) > threshold
            overlap += (masks & mean_mask).sum((1, 2))
            drawn += masks.sum((1, 2))
            agreed += int(mean_mask.sum())
    sizes = drawn + agreed
    dice = np.divide(2 * overlap, sizes, out=np.ones(samples), where=sizes > 0)
    ratios = tuple((drawn / agreed).tolist()) if agreed else ()
    return Doubt(spread, float(dice.mean()), ratios)


def _draws(
    model: Any, processor: Any, image: FloatImage, samples: int, flips: bool, view: Any
) -> Iterator[FloatImage]:
    """Yield the scores of one slice under one draw of noise after the other."""
    for start in range(0, samples, DRAWS_AT_ONCE):
        copies = min(DRAWS_AT_ONCE, samples - start)
        yield from score_images(model, processor, [image] * copies, flips, [view] * copies)


@contextmanager
def _drawing(model: Any, samples: int, seed: int) -> Iterator[None]:
    """Let a model draw noise from `seed` on; the caller's random state is as before afterwards."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}; 8 is the usual choice.")
    if not has_value_noise(model):
        raise ValueError(
            "uncertainty needs a model with value_noise='gaussian', got one that draws no noise."
        )
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), drawing_value_noise(model):
        torch.manual_seed(seed)
        yield


@contextmanager
def drawing_value_noise(model: Any) -> Iterator[None]:
    """Let a model draw its value noise in evaluation mode too, and take that back afterwards."""
    before = [(module, module.sample_in_eval) for module in _noise_modules(model)]
    try:
        for module, _ in before:
            module.sample_in_eval = True
        yield
    finally:
        for module, value in before:
            module.sample_in_eval = value


def _noise_modules(model: Any) -> list[Any]:
    # By attribute: a model loaded as remote code has a `ValueNoise` class of its own.
    modules = (m for m in model.modules() if hasattr(m, "sample_in_eval"))
    return [module for module in modules if module.kind == "gaussian" and module.std > 0]
