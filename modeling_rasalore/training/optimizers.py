"""Build optimizers, and set learning rates as a function of the position in the run."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class OptimizerRecipe:
    """Optimizer and learning-rate schedule, in epochs.

    Attributes:
        name: sgd or adamw.
        learning_rate: after warm-up.
        momentum: of sgd.
        weight_decay: of all weights.
        schedule: "cosine" to 0, or "halving": constant until `hold_epochs`, then halved every
            `halving_epochs`.
        warmup_epochs: how long the rate is `warmup_learning_rate`.
        warmup_learning_rate: constant during warm-up.
        warmup_steps: over which the rate rises evenly to what the schedule says.
        hold_epochs: of "halving".
        halving_epochs: of "halving".
    """

    name: str = "sgd"
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_learning_rate: float = 1e-5
    warmup_steps: int = 0
    hold_epochs: float = 21.0
    halving_epochs: float = 20.0


def build_optimizer(
    recipe: OptimizerRecipe, groups: Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Return SGD or AdamW over parameter groups; each group keeps its peak rate as `peak`.

    Raises:
        ValueError: for another name.
    """
    parameters = [{"lr": recipe.learning_rate, **group} for group in groups]
    for group in parameters:
        group["peak"] = group["lr"]
    if recipe.name == "sgd":
        return torch.optim.SGD(
            parameters, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    if recipe.name == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay)
    raise ValueError(f"optimizer.name must be 'sgd' or 'adamw', got {recipe.name!r}.")


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    recipe: OptimizerRecipe,
    step: int,
    last_step: int,
    per_epoch: int,
) -> None:
    """Set each group's rate for a step of the run, of `last_step` in all, `per_epoch` an epoch.

    A pure function of the position: resuming needs no scheduler state, and the number of processes
    does not change it.
    """
    epoch, epochs = step / per_epoch, last_step / per_epoch
    rise = min((step + 1) / max(recipe.warmup_steps, 1), 1.0)
    for group in optimizer.param_groups:
        if epoch < group.get("warmup_epochs", recipe.warmup_epochs):
            group["lr"] = recipe.warmup_learning_rate
        else:
            group["lr"] = group["peak"] * schedule_factor(recipe, epoch, epochs) * rise


def schedule_factor(recipe: OptimizerRecipe, epoch: float, epochs: float) -> float:
    """Return the share of the peak rate at `epoch`; ValueError for an unknown schedule."""
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
    if recipe.schedule == "halving":
        halvings = max(0, math.ceil((epoch - recipe.hold_epochs + 1e-9) / recipe.halving_epochs))
        return 0.5**halvings
    raise ValueError(f"optimizer.schedule must be 'cosine' or 'halving', got {recipe.schedule!r}.")
