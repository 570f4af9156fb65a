"""Average over the pieces of a step and over steps: a network's buffers and its weights."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class RunningStatistics:
    """Buffers that a forward pass changes, such as a BatchNorm's, over the pieces of one step.

    Every piece starts from the same buffers, and what the pieces change is averaged: the step then
    leaves the same buffers behind whichever process computed which piece. SyncBatchNorm would make
    processes agree, but not with the same pieces one after the other, and on GPUs alone.
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


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential running mean of a network's weights, with its newest buffers.

    The mean follows faster at the start of a run: its decay is (1 + step) / (10 + step) until that
    exceeds `decay`.

    Raises:
        ValueError: `decay` does not lie between 0 and 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"loop.ema must lie between 0 and 1, got {decay}; 0.999 is usual.")

    def mix(means: Sequence[Tensor], values: Sequence[Tensor], step: Tensor | int) -> None:
        now = min(decay, (1 + int(step)) / (10 + int(step)))
        get_ema_multi_avg_fn(now)(list(means), list(values), step)

    average = AveragedModel(model, multi_avg_fn=mix).requires_grad_(False)
    average.n_averaged.fill_(
        1
    )  # the start is the first of the mean, not replaced by the first step
    return average
