"""Stage 1 gives the numbers of five passes from one, and keeps nothing for frozen weights."""

from collections import Counter
from typing import Any

import pytest
import torch
from plain_ddpt import plain_heatmaps, plain_step
from small_ddpt import LABELS, TRAINED, make_model, make_slices
from torch import Tensor, nn

from modeling_rasalore import DdptModel
from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.training.optimizers import OptimizerRecipe, build_optimizer
from modeling_rasalore.training.stage1 import Stage1Recipe, parameter_groups

IMAGE, TEXT = "image", "text"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a batch went through each tower of models that `count` was asked to watch."""
    return Counter()


def count(model: DdptModel, passes: Counter[str]) -> DdptModel:
    towers = {IMAGE: model.clip.vision_model, TEXT: model.clip.text_model}
    for name, tower in towers.items():

        def hook(*args: Any, name: str = name) -> None:
            passes[name] += 1

        tower.encoder.layers[0].self_attn.q_proj.register_forward_hook(hook)
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every trainable parameter, by name."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# --- Steps ------------------------------------------------------------------------------------
def test_a_step_is_one_pass_through_each_tower(passes: Counter[str]) -> None:
    model = count(make_model(), passes).train()
    model(make_slices(), labels=LABELS).loss.backward()
    assert passes == {IMAGE: 1, TEXT: 1}


def test_a_guided_step_adds_the_frozen_slice_and_the_fixed_sentences(passes: Counter[str]) -> None:
    model = count(make_model(), passes).train()
    model(make_slices(), labels=LABELS, guidance=True).loss.backward()
    assert passes == {IMAGE: 2, TEXT: 2}


def test_guidance_costs_nothing_without_labels(passes: Counter[str]) -> None:
    count(make_model(), passes)(make_slices(), guidance=True)
    assert passes == {IMAGE: 1, TEXT: 1}


@pytest.mark.parametrize("position", ["middle", "end"])
@pytest.mark.parametrize("slices", [2, 5])
def test_a_guided_step_has_the_loss_and_gradients_of_five_passes(
    position: str, slices: int
) -> None:
    model = make_model(class_token_position=position).double().train()
    pixel_values, labels = make_slices(slices).double(), torch.arange(slices) % 2
    plain = plain_step(model, pixel_values, labels)
    ours = model(pixel_values, labels=labels, guidance=True).loss
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    expected = gradients(model, plain)
    assert all(value.any() for value in expected.values())
    torch.testing.assert_close(gradients(model, ours), expected, rtol=1e-7, atol=1e-9)


# --- Heatmaps ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["cls_attention", "attention_rollout", "relevance"])
def test_heatmaps_of_a_batch_come_from_one_pass(kind: str, passes: Counter[str]) -> None:
    model, slices = make_model(), make_slices(4)
    one_by_one = torch.cat([model.heatmaps(slices[i : i + 1], kind) for i in range(4)])
    batch = count(model, passes).heatmaps(slices, kind)
    assert passes == {IMAGE: 1, TEXT: 1}
    torch.testing.assert_close(batch, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [1, 8])
def test_class_score_and_every_heatmap_come_from_one_pass(views: int, passes: Counter[str]) -> None:
    model, slices = make_model(heatmap_views=views), make_slices(3)
    expected = torch.stack([model.heatmaps(slices, kind) for kind in HEATMAPS], 1)
    probability = model.unhealthy_probability(slices)
    ours, heatmaps = count(model, passes).score_and_locate(slices, list(HEATMAPS))
    assert passes == {IMAGE: views, TEXT: 1}
    torch.testing.assert_close(ours, probability, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heatmaps, expected, rtol=1e-4, atol=1e-6)


def test_slices_that_are_not_recognised_are_not_turned(passes: Counter[str]) -> None:
    model, slices = make_model(heatmap_views=8), make_slices(3)
    probability, expected = model.score_and_locate(slices, ["relevance"])
    least = float(probability.sort().values[1])
    _, heatmaps = model.score_and_locate(slices, ["relevance"], least)
    recognised = probability >= least
    assert recognised.tolist().count(True) == 2 and not heatmaps[~recognised].any()
    torch.testing.assert_close(heatmaps[recognised], expected[recognised], rtol=1e-4, atol=1e-6)
    _, none = count(model, passes).score_and_locate(slices, ["relevance"], 1.1)
    assert passes == {IMAGE: 1, TEXT: 1} and not none.any()


def test_heatmaps_of_a_batch_are_the_plain_ones() -> None:
    model, slices = make_model(), make_slices(3)
    expected = plain_heatmaps(model, slices)
    torch.testing.assert_close(model.heatmaps(slices, "cls_attention"), expected)


# --- What is trained --------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fields", [{}, TRAINED])
def test_only_what_is_trained_has_gradients_and_optimizer_state(
    fields: dict[str, Any], name: str
) -> None:
    model = make_model(**fields).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    recipe = Stage1Recipe(optimizer=OptimizerRecipe(name, 0.1))
    optimizer = build_optimizer(recipe.optimizer, parameter_groups(model, recipe))
    model(make_slices(), labels=LABELS, guidance=True).loss.backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    assert bool(frozen) == model.config.freeze_backbone
    assert all(parameters[n].grad is None and parameters[n].equal(p) for n, p in frozen.items())
    assert set(optimizer.state) == {p for n, p in parameters.items() if n not in frozen}


def test_the_text_context_learns_at_its_own_rate() -> None:
    model, recipe = make_model(), Stage1Recipe()
    groups = parameter_groups(model, recipe)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert groups[1]["params"] == [model.text_prompts.context]
    assert groups[1]["lr"] == recipe.context_learning_rate
