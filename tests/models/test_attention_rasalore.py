"""Region-aware spatial attention gives the points of the plain formulas, whatever its weights."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_rasalore import attend
from small_rasalore import make_input, make_model
from torch import Tensor

from modeling_rasalore import RasaloreModel

NARROW: dict[str, Any] = {"value_noise": "none"}
FULL: dict[str, Any] = {"attention_head_dim": 16, "value_noise": "learned"}
LEARNED: dict[str, Any] = {"location_embeddings": "learned", "value_noise": "none"}
VARIANTS = pytest.mark.parametrize("fields", [NARROW, FULL, LEARNED])


@torch.no_grad()
def points_of(model: RasaloreModel) -> Tensor:
    pixel_values = make_input(model.config, batch=1).to(model.device, model.dtype)
    return model(pixel_values).point_embeddings


@torch.no_grad()
def plain_points(model: RasaloreModel) -> Tensor:
    """The same from the plain formulas."""
    rasa, table = model.spatial_attention, model.location_embeddings.table
    pixel_values = make_input(model.config, batch=1).to(model.device, model.dtype)
    cells = model.refiner(model.encoder(pixel_values)[0]).flatten(2).transpose(1, 2)
    return table + attend(rasa, rasa.heads, table[None], cells, rasa.noise(cells))


@VARIANTS
def test_a_slice_gets_the_same_points_again_in_inference_mode_too(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    first = points_of(model)
    assert torch.equal(points_of(model), first)
    with torch.inference_mode():
        assert torch.equal(points_of(model), first)


# --- Weights that change ----------------------------------------------------------------------
def load_others(model: RasaloreModel) -> None:
    model.load_state_dict(make_model(7, **to_fields(model)).state_dict())


def assign_others(model: RasaloreModel) -> None:
    model.load_state_dict(make_model(7, **to_fields(model)).state_dict(), assign=True)


def to_fields(model: RasaloreModel) -> dict[str, Any]:
    names = ("attention_head_dim", "value_noise", "location_embeddings")
    return {name: getattr(model.config, name) for name in names}


def take_a_step(model: RasaloreModel) -> None:
    """In evaluation mode, as when only a part is tuned."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(make_input(model.config)).logits.sum().backward()
    optimizer.step()


def train(model: RasaloreModel) -> None:
    take_a_step(model.train())
    model.eval()


def write_uncounted(model: RasaloreModel) -> None:
    """As old optimizers do; PyTorch does not count such a write."""
    model.train()
    model.spatial_attention.value.weight.data.mul_(3)
    model.eval()


def replace_twice(model: RasaloreModel) -> None:
    """The second tensor may lie where the first one lay."""
    weight = model.spatial_attention.query.weight
    for _ in range(2):
        weight.data = weight.data * -2


def move_the_locations(model: RasaloreModel) -> None:
    with torch.no_grad():
        model.location_embeddings.table.mul_(-1)


@pytest.mark.parametrize(
    "change",
    [
        load_others,
        assign_others,
        take_a_step,
        train,
        write_uncounted,
        replace_twice,
        move_the_locations,
    ],
)
@VARIANTS
def test_changed_weights_change_the_points(
    fields: dict[str, Any], change: Callable[[RasaloreModel], None]
) -> None:
    model = make_model(**fields)
    before = points_of(model)
    change(model)
    after = points_of(model)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, plain_points(model), rtol=1e-4, atol=1e-4)


@VARIANTS
def test_every_weight_of_the_attention_reaches_the_points(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    rasa = model.spatial_attention
    weights = {n: p for n, p in rasa.named_parameters() if not n.startswith("noise")}
    assert len(weights) == 8
    for name, weight in weights.items():
        points_of(model)
        with torch.no_grad():
            weight.add_(0.3 * torch.randn_like(weight))
        points, expected = points_of(model), plain_points(model)
        torch.testing.assert_close(points, expected, rtol=1e-4, atol=1e-4, msg=name)


@VARIANTS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_model_computes_in_its_new_type(fields: dict[str, Any], dtype: torch.dtype) -> None:
    model = make_model(**fields)
    single = points_of(model)
    cast = points_of(model.to(dtype))
    assert cast.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.2
    torch.testing.assert_close(cast.float(), single, rtol=tolerance, atol=tolerance)
    assert points_of(model.float()).dtype == torch.float32


@VARIANTS
def test_a_moved_model_computes_where_it_is(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    before, state = points_of(model), copy.deepcopy(model.state_dict())
    assert points_of(model.to("meta")).device.type == "meta"
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert torch.equal(points_of(model), before)


@VARIANTS
def test_mixed_precision_leaves_no_trace(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    exact = points_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = points_of(model)
    assert not torch.equal(mixed.float(), exact)
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.1)
    assert torch.equal(points_of(model), exact)


# --- Gradients, copies and files --------------------------------------------------------------
@VARIANTS
def test_gradients_in_evaluation_reach_the_weights(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    points_of(model)
    model(make_input(model.config)).point_embeddings.square().sum().backward()
    for name, weight in model.spatial_attention.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any() or name == "key.bias", name


@VARIANTS
def test_gradients_reach_the_slice_after_inference_mode(fields: dict[str, Any]) -> None:
    model = make_model(**fields).requires_grad_(False)
    with torch.inference_mode():
        points_of(model)
    pixel_values = make_input(model.config).requires_grad_()
    model(pixel_values).point_embeddings.square().sum().backward()
    assert pixel_values.grad is not None and pixel_values.grad.any()


def test_a_model_made_in_inference_mode_can_change() -> None:
    with torch.inference_mode():
        model = make_model(**FULL)  # its weights count no writes
        before = points_of(model)
        model.spatial_attention.value.weight.mul_(3)
        assert not torch.allclose(points_of(model), before, atol=1e-3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_agree(copied: Callable[[RasaloreModel], RasaloreModel]) -> None:
    model = make_model(**FULL)
    first = points_of(model)
    assert torch.equal(points_of(copied(model)), first)


def test_a_forward_pass_adds_nothing_to_what_is_saved(tmp_path: Path) -> None:
    model = make_model(**FULL)
    names = set(model.state_dict())
    points_of(model)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    assert torch.equal(points_of(RasaloreModel.from_pretrained(tmp_path)), points_of(model))
