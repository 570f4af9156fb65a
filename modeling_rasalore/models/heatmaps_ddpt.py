"""Compute stage 1's heatmaps from the attention of a vision transformer.

Each heatmap is a row of (B, 1 + P): how much the CLS token draws from itself and from each of P
patches. `length` = 1 + P leaves out the prompts, which stand behind the patches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def run_layer(layer: Any, hidden: Tensor, attentions: list[Tensor] | None) -> Tensor:
    """One CLIP layer; when `attentions` is a list, also collect its probabilities there.

    Fused attention never shows its probabilities, so they are computed in the open when asked for.
    """
    if attentions is None:
        return layer(hidden, None)
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    probabilities = (query @ key.transpose(2, 3) * attention.scale).softmax(-1)
    attentions.append(probabilities)
    attended = (probabilities @ value).transpose(1, 2).flatten(2)
    hidden = hidden + attention.out_proj(attended)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def cls_attention(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """The last layer's attention of the CLS token, averaged over heads."""
    return attentions[-1].mean(1)[:, 0, :length]


def attention_rollout(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention multiplied through all layers, with half of each token passed on unchanged."""
    row = torch.eye(length, device=attentions[0].device)[:1].expand(len(attentions[0]), 1, -1)
    # From the last layer down only the CLS row is needed: vector times matrix.
    for attention in reversed(attentions):
        mixed = attention.mean(1)[:, :length, :length].float()
        mixed = mixed / mixed.sum(-1, keepdim=True)
        row = 0.5 * (row + row @ mixed)
    return row[:, 0]


def relevance(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention weighted by its positive gradient towards the unhealthy logit, multiplied through.

    R <- R + A R with A the mean over heads of max(0, gradient * attention), first to last layer;
    only the CLS row is needed, so the product is taken from the last layer down.
    """
    gradients = torch.autograd.grad(unhealthy_logit.sum(), attentions)
    row = torch.eye(length, device=attentions[0].device)[:1].expand(len(attentions[0]), 1, -1)
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        weighted = (attention * gradient).clamp(min=0).mean(1)[:, :length, :length].float()
        row = row + row @ weighted
    return row[:, 0]


HEATMAPS = {
    "cls_attention": cls_attention,
    "attention_rollout": attention_rollout,
    "relevance": relevance,
}


def mean_over_turned_copies(
    heatmaps_of: Callable[[Tensor], Tensor], pixel_values: Tensor
) -> Tensor:
    """Geometric mean of heatmaps over the eight flips and quarter turns of square slices.

    A patch counts where it stands out in every copy: a lesion does however the head lies, while a
    token that a transformer uses as scratch memory does not. Needs no mask and no training.

    Args:
        heatmaps_of: (B, C, S, S) -> (B, h, h).
        pixel_values: (B, C, S, S).

    Returns:
        (B, h, h).
    """
    logarithms = []
    for flipped in (False, True):
        for turns in range(4):
            copy = torch.rot90(pixel_values.flip(-1) if flipped else pixel_values, turns, (2, 3))
            heatmaps = torch.rot90(heatmaps_of(copy), -turns, (1, 2))
            heatmaps = heatmaps.flip(-1) if flipped else heatmaps
            logarithms.append(heatmaps.clamp(min=1e-8).log())
    return torch.stack(logarithms).mean(0).exp()
