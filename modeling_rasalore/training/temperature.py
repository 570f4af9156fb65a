"""Scale scores to how sure a network may be, on lesions painted for the purpose.

Overlap losses reward certainty without end: after some hundred steps a network is as sure of its
mistakes as of anything, its scores are 1 in single precision on healthy brain too, and no threshold
keeps to an asked rate of false alarms. One number, by which all logits are divided, mends that
(Guo et al. 2017, On Calibration of Modern Neural Networks). It changes no order and no mask at 0.5.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

HOTTEST = 1000.0


def fit_temperature(samples: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the temperature in [1, 1000] at which the masks are most likely; 1 without samples.

    Never below 1: painted lesions may be clearer than real ones, so they make nobody surer.

    Args:
        samples: pairs of (logits, masks of 0 and 1) of pixels inside the brain, (n,) each.
    """
    pairs = [(logits.double().cpu(), masks.double().cpu()) for logits, masks in samples]
    if not pairs:
        return 1.0
    logits, masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    def surprise(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(F.binary_cross_entropy_with_logits(scaled, masks))

    best = minimize_scalar(surprise, bounds=(0.0, float(np.log(HOTTEST))), method="bounded")
    return float(np.exp(best.x))
