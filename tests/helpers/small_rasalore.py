"""A stage-2 model small enough for many trials, and slices and masks for it."""

from typing import Any

import torch
from torch import Tensor

from modeling_rasalore import RasaloreConfig, RasaloreModel

SMALL: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 2,
    "grid_size": 8,
    "refiner_grid": 8,
    "num_attention_heads": 2,
}


def small_config(**fields: Any) -> RasaloreConfig:
    return RasaloreConfig(**{**SMALL, **fields})


def make_model(seed: int = 0, **fields: Any) -> RasaloreModel:
    """A small model in evaluation mode, no weight of which is a round number."""
    torch.manual_seed(seed)
    model = RasaloreModel(small_config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_input(config: Any, batch: int = 2, seed: int = 1) -> Tensor:
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make_masks(config: Any, batch: int = 2) -> Tensor:
    """A square lesion of a quarter of the slice, (B, 2 S, 2 S)."""
    masks = torch.zeros(batch, config.output_size, config.output_size)
    masks[:, config.image_size :, config.image_size :] = 1
    return masks
