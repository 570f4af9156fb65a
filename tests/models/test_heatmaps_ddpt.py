"""Stage 1's heatmaps against hand-computed attention, and the views they are averaged over."""

from typing import Any

import pytest
import torch
from small_ddpt import TRAINED, make_model, make_slices
from torch import Tensor

from modeling_rasalore import DdptModel
from modeling_rasalore.models.heatmaps_ddpt import (
    HEATMAPS,
    attention_rollout,
    cls_attention,
    mean_over_turned_copies,
    relevance,
)


@pytest.mark.parametrize("kind", HEATMAPS)
@pytest.mark.parametrize("fields", [{}, TRAINED])
def test_every_heatmap_is_a_grid_of_patches_without_gradient(
    kind: str, fields: dict[str, Any]
) -> None:
    model = make_model(**fields)
    heatmaps = model.heatmaps(make_slices(3), kind)
    assert heatmaps.shape == (3, 4, 4)
    assert heatmaps.min() >= 0 and (heatmaps.flatten(1).amax(1) > 0).all()
    assert not heatmaps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", HEATMAPS)
def test_heatmaps_can_be_taken_without_gradients_and_with_every_weight_frozen(kind: str) -> None:
    model = make_model()
    expected = model.heatmaps(make_slices(), kind)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(model.heatmaps(make_slices(), kind), expected)


def test_the_configuration_chooses_the_heatmap() -> None:
    model = make_model(heatmap="attention_rollout")
    rollout = model.heatmaps(make_slices(), "attention_rollout")
    assert torch.equal(model.heatmaps(make_slices()), rollout)


def test_an_unknown_heatmap_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cls_attention', 'relevance'\], got 'saliency'"):
        make_model().heatmaps(make_slices(), "saliency")


def test_cls_attention_is_the_last_layers_own_attention_to_the_patches() -> None:
    model, seen = make_model(), []
    model.set_attn_implementation({"clip_config": "eager"})
    last = model.clip.vision_model.encoder.layers[-1].self_attn
    last.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    model(make_slices())
    expected = seen[0].mean(1)[:, 0, 1:17].unflatten(1, (4, 4))
    assert seen[0].shape[-1] == 17 + 2  # two class-aware prompts stand behind the patches
    torch.testing.assert_close(model.heatmaps(make_slices(), "cls_attention"), expected)


def test_collecting_attention_does_not_change_the_outputs() -> None:
    model, slices = make_model(), make_slices()
    text, attentions = model.learned_text_features(), list[Tensor]()
    in_the_open = model.encode_image(slices, text, attentions)
    assert [tuple(a.shape) for a in attentions] == [(2, 2, 20, 20), (2, 2, 20, 20), (2, 2, 1, 19)]
    for value, expected in zip(in_the_open, model.encode_image(slices, text), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_fused_and_eager_attention_agree() -> None:
    model, slices = make_model(), make_slices()
    fused = model(slices).logits
    model.set_attn_implementation({"clip_config": "eager"})
    torch.testing.assert_close(model(slices).logits, fused, rtol=1e-5, atol=1e-5)


NO_LOGIT = torch.zeros(1)
# CLS, two patches and one prompt; the prompt's share is dropped and the rest made to sum to 1.
WITH_PROMPT = torch.tensor(
    [[0.2, 0.2, 0.4, 0.2], [0.4, 0.4, 0.0, 0.2], [0.1, 0.3, 0.4, 0.2], [1.0, 0.0, 0.0, 0.0]]
)


def test_cls_attention_of_two_heads_is_their_mean() -> None:
    heads = torch.stack([WITH_PROMPT, WITH_PROMPT.flip(0)])[None]
    expected = torch.tensor([[0.6, 0.1, 0.2]])
    torch.testing.assert_close(cls_attention([heads], 3, NO_LOGIT), expected)


def test_rollout_of_one_layer_is_half_attention_half_identity() -> None:
    expected = torch.tensor([[(1 + 0.25) / 2, 0.25 / 2, 0.5 / 2]])
    torch.testing.assert_close(attention_rollout([WITH_PROMPT[None, None]], 3, NO_LOGIT), expected)


def test_rollout_of_two_layers_multiplies_them_last_first() -> None:
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # CLS looks at the patch only
    stay = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    # CLS row of (I + last) / 2 is [.5, .5]; times (I + first) / 2.
    first_stays = attention_rollout([stay[None, None], swap[None, None]], 2, NO_LOGIT)
    first_swaps = attention_rollout([swap[None, None], stay[None, None]], 2, NO_LOGIT)
    torch.testing.assert_close(first_stays, torch.tensor([[0.625, 0.375]]))
    torch.testing.assert_close(first_swaps, torch.tensor([[0.5, 0.5]]))


def test_relevance_keeps_what_raises_the_unhealthy_logit() -> None:
    attention = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    heads = torch.stack([attention, attention])[None].requires_grad_()
    # Gradients of the CLS row: head 1 (0, 2, 4), head 2 (0, 4, -8).
    weights = torch.zeros(1, 2, 3, 3)
    weights[0, :, 0] = torch.tensor([[0.0, 2.0, 4.0], [0.0, 4.0, -8.0]])
    expected = torch.tensor([[1.0, (0.3 * 2 + 0.3 * 4) / 2, 0.5 * 4 / 2]])
    torch.testing.assert_close(relevance([heads], 3, (heads * weights).sum()[None]), expected)


def test_relevance_of_two_layers_multiplies_them_last_first() -> None:
    first = torch.tensor([[0.5, 0.5], [0.25, 0.75]])[None, None].requires_grad_()
    last = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None, None].requires_grad_()
    logit = (first.sum() + 2 * last.sum())[None]  # gradients 1 and 2 everywhere
    # [1, 0] (I + 2 last) = [1, 2]; [1, 2] (I + first) = [1 + 0.5 + 0.5, 2 + 0.5 + 1.5].
    torch.testing.assert_close(relevance([first, last], 2, logit), torch.tensor([[2.0, 4.0]]))


def test_copies_of_something_that_turns_with_the_slice_agree() -> None:
    slices = make_slices()
    mean = mean_over_turned_copies(lambda copy: copy[:, 0], slices)
    torch.testing.assert_close(mean, slices[:, 0])


def test_what_stays_in_place_when_the_slice_turns_is_averaged_away() -> None:
    corner = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    mean = mean_over_turned_copies(lambda copy: corner, torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(mean, torch.full((1, 2, 2), 64**0.25))  # geometric


def test_heatmaps_over_all_copies_turn_with_the_slice() -> None:
    model, slices = make_model(heatmap_views=8), make_slices()
    untouched = make_model().heatmaps(slices, "attention_rollout")
    heatmaps = model.heatmaps(slices, "attention_rollout")
    turned = model.heatmaps(slices.flip(-1).rot90(1, (2, 3)), "attention_rollout")
    torch.testing.assert_close(turned, heatmaps.flip(-1).rot90(1, (1, 2)))
    assert not torch.allclose(heatmaps, untouched)


# --- Against the definitions --------------------------------------------------------------------
@pytest.mark.parametrize("kind", HEATMAPS)
@pytest.mark.parametrize("fields", [{}, TRAINED])
def test_heatmaps_are_those_of_whole_matrices(kind: str, fields: dict[str, Any]) -> None:
    """Every row of every layer, gradients of all of them, and matrices multiplied by matrices."""
    model, slices = make_model(**fields), make_slices(3)
    expected = heatmaps_of_whole_matrices(model, slices, kind)
    torch.testing.assert_close(model.heatmaps(slices, kind), expected, rtol=1e-5, atol=1e-7)


def heatmaps_of_whole_matrices(model: DdptModel, slices: Tensor, kind: str) -> Tensor:
    """Heatmaps (B, 4, 4) of transformers' eager attention, as they are defined."""
    model.set_attn_implementation({"clip_config": "eager"})
    seen: list[Tensor] = []  # probabilities of each layer, (B, heads, n, n)
    layers = model.clip.vision_model.encoder.layers
    hooks = [
        layer.self_attn.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
        for layer in layers
    ]
    unhealthy_logit = model(slices.requires_grad_()).logits[:, 1]
    for hook in hooks:
        hook.remove()
    length = 1 + 16
    if kind == "cls_attention":
        return seen[-1].mean(1)[:, 0, 1:length].unflatten(1, (4, 4)).detach()
    gradients = torch.autograd.grad(unhealthy_logit.sum(), seen)
    product = torch.eye(length)
    for attention, gradient in zip(seen, gradients, strict=True):
        if kind == "relevance":
            weighted = (attention * gradient).clamp(min=0).mean(1)[:, :length, :length]
            product = product + weighted @ product
        else:
            mixed = attention.mean(1)[:, :length, :length]
            mixed = mixed / mixed.sum(-1, keepdim=True)
            product = 0.5 * (torch.eye(length) + mixed) @ product
    return product[:, 0, 1:].unflatten(1, (4, 4)).detach()
