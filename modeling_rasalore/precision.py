"""Choose the float type that a network computes in, by what its device does faster.

Weights, optimizer state, losses, and all that comes before and after the network stay in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

PRECISIONS = ("float32", "bfloat16")
# Instructions that multiply bfloat16 matrices, as torch names them. Others only imitate them.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
# Narrower networks convert as much as they multiply. With avx512_bf16 a training step of stage 2
# takes 1.15, 0.96 and 0.69 times as long as in float32 at 6, 8 and 12 base channels, and one of
# stage 1 takes 1.0 and 0.66 times as long at widths of 128 and 192.
NARROWEST = {"rasalore": 12, "ddpt": 192}


class Precision(NamedTuple):
    """A float type to compute in, one of PRECISIONS, and why it was chosen, in words."""

    name: str
    reason: str


def choose_precision(
    config: Any, device: torch.device, precision: str = "auto", option: str = "--precision"
) -> Precision:
    """Return the float type that a network computes in, and why.

    Args:
        config: of a `RasaloreModel` or `DdptModel`; other networks count as narrow.
        device: that computes.
        precision: one of PRECISIONS; "auto" takes bfloat16 where the device multiplies it faster
            and the network is wide enough to gain, and float32 elsewhere.
        option: what asks for it, for the message.

    Raises:
        ValueError: another word.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"{option} must be auto, {' or '.join(PRECISIONS)}, got {precision}.")
    if precision == "auto":
        return _fastest(config, device)
    if precision == "bfloat16" and device.type == "cpu" and not bfloat16_instructions():
        return Precision(precision, "asked for, though this processor only imitates it")
    return Precision(precision, "asked for")


def choose_for_model(model: nn.Module, precision: str = "auto") -> Precision:
    """Return what `choose_precision` says of a network on the device of its weights."""
    device = next(model.parameters()).device
    return choose_precision(getattr(model, "config", None), device, precision)


def _fastest(config: Any, device: torch.device) -> Precision:
    """Return what "auto" stands for."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "this GPU multiplies it faster")
        return Precision("float32", "this GPU does not multiply bfloat16")
    if device.type != "cpu":
        return Precision("float32", f"nobody measured bfloat16 on {device.type}")
    instructions = bfloat16_instructions()
    if not instructions:
        return Precision("float32", f"this processor has no {' or '.join(INSTRUCTIONS)}")
    if not is_wide(config):
        return Precision("float32", f"this network is too narrow to gain by {instructions}")
    return Precision("bfloat16", f"this processor has {instructions}")


def bfloat16_instructions() -> str:
    """Return which of INSTRUCTIONS this processor has; "" for none, or where torch is too old."""
    known = hasattr(torch.cpu, "get_capabilities")
    capabilities = torch.cpu.get_capabilities() if known else {}
    return next((name for name in INSTRUCTIONS if capabilities.get(name)), "")


def is_wide(config: Any) -> bool:
    """Return whether a network is so wide that a processor gains by bfloat16."""
    kind = getattr(config, "model_type", "")
    if kind == "rasalore":
        return bool(config.base_channels >= NARROWEST[kind])
    if kind == "ddpt":
        return bool(config.clip_config.vision_config.hidden_size >= NARROWEST[kind])
    return False


@contextmanager
def computing_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Let a network compute in a float type; its weights, and all around it, stay as they are."""
    if precision == "float32":
        yield
        return
    device = next(model.parameters()).device.type
    before = vars(model).get("forward")  # None: that of the class
    model.forward = torch.autocast(device, torch.bfloat16)(model.forward)
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before
