"""Compute stage 1's heatmaps from the attention of a vision transformer.

Each heatmap is a row of (B, 1 + P): how much the CLS token draws from itself and from each of P
patches. `length` = 1 + P leaves out the prompts, which stand behind the patches.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def run_layer(layer: Any, hidden: Tensor, attentions: list[Tensor] | None) -> Tensor:
    """One CLIP layer; when `attentions` is a list, also collect its probabilities there.

    Fused attention never shows its probabilities, so they are computed in the open when asked for.
    """
    if attentions is None:
        return layer(hidden, None)
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key, value = (
        projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projected in (
            attention.q_proj(normed) * attention.scale,
            attention.k_proj(normed),
            attention.v_proj(normed),
        )
    )
    probabilities = (query @ key.transpose(2, 3)).softmax(-1)
    attentions.append(probabilities)
    attended = (probabilities @ value).transpose(1, 2).flatten(2)
    hidden = hidden + attention.out_proj(attended)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def read_cls_token(layer: Any, hidden: Tensor, attentions: list[Tensor]) -> Tensor:
    """The CLS token after one CLIP layer, (B, 1, D); its probabilities are collected.

    A single token needs no keys and values of all the others. With tokens x, weights K and V and
    attention a: q (K x) = (q K) x and (V x) a = V (x a), and the right sides are far less work.
    """
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    heads = (attention.num_heads, -1)
    query = (attention.q_proj(normed[:, 0]) * attention.scale).unflatten(-1, heads)
    # A key's bias adds the same to all of a query's products, and softmax forgets it.
    asked = torch.einsum("bhd,hdw->bhw", query, attention.k_proj.weight.unflatten(0, heads))
    attentions.append((asked @ normed.transpose(1, 2)).softmax(-1)[:, :, None])
    probabilities = attentions[-1][:, :, 0]
    answers = probabilities @ normed
    attended = torch.einsum("bhw,hdw->bhd", answers, attention.v_proj.weight.unflatten(0, heads))
    # The sum is 1; it is written out because relevance asks for its gradient.
    bias = attention.v_proj.bias.unflatten(0, heads) * probabilities.sum(-1, keepdim=True)
    attended = (attended + bias).flatten(1)
    hidden = hidden[:, 0] + attention.out_proj(attended)
    return (hidden + layer.mlp(layer.layer_norm2(hidden)))[:, None]


# Heatmaps are products of matrices of which only the CLS row is asked for. It is taken from the
# last layer down, vector times matrix, so of the last layer no other row is needed.
def cls_attention(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """The last layer's attention of the CLS token, averaged over heads."""
    return attentions[-1].mean(1)[:, 0, :length]


def attention_rollout(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention multiplied through all layers, with half of each token passed on unchanged."""
    row = cls_row(attentions, length)
    for attention in reversed(attentions):
        tokens = torch.arange(attention.shape[-1], device=row.device) < length
        share = (attention.float() @ tokens.float()).mean(1)[:, :length]  # left without prompts
        row = 0.5 * (row + pass_on(row[:, : share.shape[1]] / share, attention, length))
    return row


def relevance(attentions: list[Tensor], length: int, unhealthy_logit: Tensor) -> Tensor:
    """Attention weighted by its positive gradient towards the unhealthy logit, multiplied through.

    R <- R + A R with A the mean over heads of max(0, gradient * attention), first to last layer.
    """
    gradients = torch.autograd.grad(unhealthy_logit.sum(), attentions)
    row = cls_row(attentions, length)
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        weighted = (attention.detach() * gradient).clamp_(min=0)
        row = row + pass_on(row[:, : weighted.shape[2]], weighted, length)
    return row


def cls_row(attentions: list[Tensor], length: int) -> Tensor:
    """The CLS row of the unit matrix, for each slice, (B, length)."""
    return torch.eye(1, length, device=attentions[0].device).expand(len(attentions[0]), -1)


def pass_on(row: Tensor, attention: Tensor, length: int) -> Tensor:
    """Multiply a row by the mean over heads of attention (B, heads, m, n); (B, length).

    The row (B, m or less) is multiplied by each head first, for a mean of rows is less work than
    one of matrices. Prompts get a weight of 0: to cut them off would copy the matrices.
    """
    padded = F.pad(row, (0, attention.shape[2] - row.shape[1]))[:, None, None]
    return (padded @ attention.float()).mean(1)[:, 0, :length]


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
