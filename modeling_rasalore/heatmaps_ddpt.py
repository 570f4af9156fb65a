"""Localisation maps from a vision transformer's attention: stage 1's heatmaps.

Each heatmap is a row of (B, 1 + P): how much the CLS token draws from itself and from each of P
patches. `length` = 1 + P leaves out the prompts, which stand behind the patches.
"""

import torch
from torch import Tensor, nn


def run_layer(layer: nn.Module, hidden: Tensor, attentions: list[Tensor] | None) -> Tensor:
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
