"""Where a model's scores would change: their spread when its attention values are disturbed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .prediction import FloatImage, predict_slices


def has_value_noise(model: Any) -> bool:
    """Whether a model draws Gaussian value noise, which `predict_uncertainty` needs."""
    return bool(_noise_modules(model))


def predict_uncertainty(
    model: Any, processor: Any, image: FloatImage, *, samples: int = 8, seed: int = 0
) -> FloatImage:
    """Return the standard deviation of each pixel's score over noise draws, (H, W) in [0, 0.5].

    The noise is the one the model was trained with, so the spread says how far a score hangs on
    it: a measure of doubt for ranking pixels, not a calibrated probability. The same seed gives
    the same map, and the caller's random state stays as it was.

    Args:
        model, processor: as for `predict_slices`.
        image: (H, W), 0 in the background and above 0 in the brain.
        samples: draws, at least 2; all go through the model at once.
        seed: of the draws.

    Raises:
        ValueError: fewer than 2 samples, or a model without Gaussian value noise.
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}; 8 is the usual choice.")
    if not has_value_noise(model):
        raise ValueError(
            "uncertainty needs a model with value_noise='gaussian', got one that draws no noise."
        )
    device = next(model.parameters()).device
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        drawing_value_noise(model),
    ):
        torch.manual_seed(seed)
        scores = predict_slices(model, processor, [image] * samples, batch_size=samples)
    return np.std(scores, axis=0, dtype=np.float32)


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
    found = (m for m in model.modules() if hasattr(m, "sample_in_eval"))
    return [module for module in found if module.kind == "gaussian" and module.std > 0]
