"""Means over the pieces of a step and over steps: of a network's buffers and of its weights."""

from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class RunningStatistics:
    """Buffers that a forward pass changes, such as a BatchNorm's, over the pieces of one step.

    Every piece starts from the same buffers, and what the pieces change is averaged: the step then
    leaves the same buffers behind whichever process computed which piece.
    """

    def __init__(self, model: nn.Module):
        buffers = list(model.buffers())
        self.means = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self.before = [buffer.clone() for buffer in self.means]
        self.change = [torch.zeros_like(buffer) for buffer in self.means]
        self.after_first: list[Tensor] = []

    def add(self, share: float) -> None:
        """Note what a piece changed, of which `share` of the step's samples were."""
        for buffer, before, change in zip(self.means, self.before, self.change, strict=True):
            change += share * (buffer - before)
            buffer.copy_(before)
        self.after_first = self.after_first or [count.clone() for count in self.counts]

    def finish(self, accelerator: Accelerator) -> None:
        """Put the mean change of all processes into the buffers; a step counts once."""
        for buffer, change in zip(self.means, self.change, strict=True):
            buffer += accelerator.reduce(change, "sum")
        for count, value in zip(self.counts, self.after_first, strict=True):
            count.copy_(value)


class WeightAverage:
    """An exponential running mean of a network's weights, itself a network."""

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"loop.ema must lie between 0 and 1, got {decay}; 0.999 is usual.")
        self.model, self.decay = deepcopy(model).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after a step, faster at the start of a run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value.to(mean), 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state)
