"""Compute on a GPU where the Space is lent one for each request; elsewhere nothing changes.

On ZeroGPU hardware a function that needs the GPU is marked with `spaces.GPU`; it then runs in a
process of its own, so its arguments and what it returns must pickle. Such Spaces come with the
package `spaces`, whose mark does nothing on other hardware.
"""

from collections.abc import Callable
from typing import Any, TypeVar

try:
    import spaces  # before anything asks CUDA
except ImportError:
    spaces = None

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(function: Function) -> Function:
    """Return a function that runs where the GPU is."""
    return function if spaces is None else spaces.GPU(function)


def move_to_accelerator(model: torch.nn.Module) -> None:
    """Put a model on the accelerator that is there when it computes, if there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        model.to(accelerator)
