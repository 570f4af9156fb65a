"""Send slices with brain through a model and bring their scores back into the slices' frames."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from ..scans.background import BrainSlices, brain_of

FloatImage = NDArray[np.float32]

MIRRORED = ((), (3,), (2,), (2, 3))  # axes of (B, C, H, W): a slice and its mirror images


def fill_maps(
    maps: Sequence[FloatImage],
    model: Any,
    processor: Any,
    images: Sequence[FloatImage] | BrainSlices,
    batch_size: int,
    flips: bool,
    views: Any = None,
) -> None:
    """Write the scores of slices with brain into `maps`, zeros of the slices' shapes.

    Args:
        views: of all slices by index, where the model sees them as part of their scan.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    with_brain = [index for index, image in enumerate(images) if brain_of(image).any()]
    batches = range(0, len(with_brain), batch_size)
    for start in tqdm(batches, desc="slices", leave=False, disable=None):
        indices = with_brain[start : start + batch_size]
        batch = [images[index] for index in indices]
        seen = views and [views[index] for index in indices]
        scores = score_images(model, processor, batch, flips, seen)
        for index, score in zip(indices, scores, strict=True):
            maps[index][...] = score


def score_images(
    model: Any,
    processor: Any,
    images: Sequence[FloatImage],
    flips: bool,
    views: Sequence[Any] | None = None,
) -> list[FloatImage]:
    """Return the score maps of slices with brain, in their own frames, from one forward pass."""
    weight = next(model.parameters())
    with evaluating(model), torch.inference_mode():
        pixel_values = processor(images, views=views, return_tensors="pt")["pixel_values"]
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        scores = score_batch(model, pixel_values, flips)
        maps = processor.post_process_maps(scores, images, views=views)
    return [np.where(brain_of(i), m, np.float32(0)) for i, m in zip(images, maps, strict=True)]


def score_batch(model: Any, pixel_values: torch.Tensor, flips: bool) -> torch.Tensor:
    """Return scores (B, 1, 2 S, 2 S) in [0, 1], averaged over mirror images with `flips`."""
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
