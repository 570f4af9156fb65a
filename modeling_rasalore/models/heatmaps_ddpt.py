"""Compute stage 1's heatmaps from the attention of a vision transformer.

Each heatmap is a row of (B, 1 + P): how much the CLS token draws from itself and from each of P
patches. `length` = 1 + P leaves out the prompts, which stand behind the patches.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor


def run_layer(
    layer: Any, hidden: Tensor, attentions: list[Tensor] | None, rows: int | None = None
) -> Tensor:
    """One CLIP layer; when `attentions` is a list, also collect its probabilities there.

    Fused attention never shows its probabilities, so they are computed in the open when asked for,
    and then for the first `rows` tokens alone; None: for all.
    """
    if attentions is None:
        return layer(hidden, None)
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key, value = (
        projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projected in (
            attention.q_proj(normed[:, :rows]) * attention.scale,
            attention.k_proj(normed),
            attention.v_proj(normed),
        )
    )
    probabilities = (query @ key.transpose(2, 3)).softmax(-1)
    attentions.append(probabilities)
    attended = (probabilities @ value).transpose(1, 2).flatten(2)
    hidden = hidden[:, :rows] + attention.out_proj(attended)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


# Heatmaps are products of matrices of which only the CLS row is asked for. It is taken from the
# last layer down, vector times matrix, so of the last layer no other row is needed.
def cls_attention(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """The last layer's attention of the CLS token, averaged over heads."""
    return attentions[-1].mean(1)[:, 0, :length]


def attention_rollout(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention multiplied through all layers, with half of each token passed on unchanged."""

    def mix(attention: Tensor) -> Tensor:
        mixed = attention.mean(1)[:, :length, :length].float()
        return mixed / mixed.sum(-1, keepdim=True)

    row = 0.5 * (cls_row(attentions, length) + mix(attentions[-1][:, :, :1]))
    for attention in reversed(attentions[:-1]):
        row = 0.5 * (row + row @ mix(attention))
    return row[:, 0]


def relevance(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention weighted by its positive gradient towards the unhealthy logit, multiplied through.

    R <- R + A R with A the mean over heads of max(0, gradient * attention), first to last layer.
    """
    gradients = torch.autograd.grad(unhealthy_logit.sum(), attentions)

    def weigh(attention: Tensor, gradient: Tensor) -> Tensor:
        weighted = (attention.detach() * gradient).clamp_(min=0)
        return weighted.mean(1)[:, :length, :length].float()

    row = cls_row(attentions, length) + weigh(attentions[-1][:, :, :1], gradients[-1][:, :, :1])
    for attention, gradient in zip(
        reversed(attentions[:-1]), reversed(gradients[:-1]), strict=True
    ):
        row = row + row @ weigh(attention, gradient)
    return row[:, 0]


def cls_row(attentions: list[Tensor], length: int) -> Tensor:
    """The CLS row of the unit matrix, (1, 1, length)."""
    return torch.eye(1, length, device=attentions[0].device)[None]


HEATMAPS = {
    "cls_attention": cls_attention,
    "attention_rollout": attention_rollout,
    "relevance": relevance,
}


def mean_over_turned_copies(
    heatmaps_of: Callable[[Tensor], Tensor], pixel_values: Tensor, unturned: Tensor | None = None
) -> Tensor:
    """Geometric mean of heatmaps over the eight flips and quarter turns of square slices.

    A patch counts where it stands out in every copy: a lesion does however the head lies, while a
    token that a transformer uses as scratch memory does not. Needs no mask and no training.

    Args:
        heatmaps_of: (B, C, S, S) -> (B, ..., h, h).
        pixel_values: (B, C, S, S).
        unturned: heatmaps of the slices as they lie, where they are known.

    Returns:
        (B, ..., h, h).
    """
    logarithms = []
    for flipped, turns in product((False, True), range(4)):
        if unturned is not None and not flipped and not turns:
            heatmaps = unturned
        else:
            copy = torch.rot90(pixel_values.flip(-1) if flipped else pixel_values, turns, (2, 3))
            heatmaps = torch.rot90(heatmaps_of(copy), -turns, (-2, -1))
            heatmaps = heatmaps.flip(-1) if flipped else heatmaps
        logarithms.append(heatmaps.clamp(min=1e-8).log())
    return torch.stack(logarithms).mean(0).exp()
