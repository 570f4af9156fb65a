"""Masks, scores and weights that the tests of the losses share."""

import math
from typing import Any

import torch
from torch import Tensor

SIZE = 16
WEIGHTS: dict[str, Any] = {
    "overlap_loss": "el_dice",
    "false_positive_weight": 0.6,
    "background_weight": 0.6,
    "sam_weight": 1.0,
    "foreground_sigma": 1.0,
    "background_sigma": 1.5,
}
LN_1_5 = math.log(1.5) ** 0.3  # EL of a Dice of 2/3


def batch(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def square(low: int = 4, high: int = 9) -> Tensor:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[:, :, low:high, low:high] = 1
    return mask


def make_mask(kind: str, seed: int = 0) -> Tensor:
    """Mask (1, 1, 16, 16) of a kind that has broken a loss somewhere."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    if kind == "full":
        mask[:] = 1
    elif kind == "pixel":
        mask[0, 0, seed % SIZE, 3] = 1
    elif kind == "random":
        mask = (torch.rand(1, 1, SIZE, SIZE, generator=generator) < 0.3).float()
    return mask


def make_scores(kind: str, pseudo_mask: Tensor, seed: int = 0) -> Tensor:
    """Probabilities (1, 1, 16, 16) of a kind that has broken a loss somewhere."""
    if kind == "equal":
        return pseudo_mask.clone()
    if kind == "opposite":
        return 1 - pseudo_mask
    if kind == "random":
        return torch.rand(pseudo_mask.shape, generator=torch.Generator().manual_seed(seed))
    return torch.full_like(pseudo_mask, {"zeros": 0.0, "halves": 0.5, "ones": 1.0}[kind])
