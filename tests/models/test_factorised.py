"""The factorised computation of stage 2 gives the numbers and gradients of the plain formulas."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rasalore import plain_forward
from small_rasalore import make_input, make_model
from torch import Tensor

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.models.network_rasalore import RasaloreOutput


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    size, base = draw(st.sampled_from([8, 12, 16])), draw(st.sampled_from([1, 2, 4]))
    encoder = draw(st.sampled_from(["plain", "pyramid"] if size % 8 == 0 else ["plain"]))
    first = size if encoder == "plain" else size // 2
    return {
        "encoder": encoder,
        "image_size": size,
        "base_channels": base,
        "num_channels": draw(st.integers(1, 2)),
        "grid_size": draw(st.sampled_from([1, 2, 4, 8])),
        "refiner_grid": first // draw(st.sampled_from([d for d in (1, 2, 3, 4) if first % d == 0])),
        "num_attention_heads": draw(st.sampled_from([1, 2, 4])),
        "attention_head_dim": draw(st.sampled_from([None, 3, 8 * base])),
        "value_noise": draw(st.sampled_from(["gaussian", "learned", "none"])),
        "location_embeddings": draw(st.sampled_from(["random", "learned", "none"])),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
    }


def both_ways(model: RasaloreModel, pixel_values: Tensor) -> list[dict[str, Tensor]]:
    """Outputs without losses, factorised and plain, with the same noise and dropout."""
    torch.manual_seed(0)
    plain = plain_forward(model, pixel_values)
    torch.manual_seed(0)
    output = model(pixel_values)
    return [{name: output[name] for name in plain}, plain]


def gradients(model: RasaloreModel, total: Tensor) -> dict[str, Tensor]:
    """Gradient of every trainable parameter, by name; 0 where `total` does not depend on it."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(
        total, list(named.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(named, found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-5)


# Double precision, so that what differs is the formula and not the rounding.
@given(fields=configs(), batch=st.integers(1, 3), training=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_outputs_and_gradients_equal_the_plain_formulation(
    fields: dict[str, Any], batch: int, training: bool, seed: int
) -> None:
    model = make_model(seed, **fields).double().train(training)
    ours, plain = both_ways(model, make_input(model.config, batch, seed).double())
    assert_same(ours, plain)
    for name in plain:  # one by one: no gradient hides behind a larger one
        weights = torch.rand(plain[name].shape, generator=torch.Generator().manual_seed(5))
        assert_same(
            gradients(model, (ours[name] * weights).sum()),
            gradients(model, (plain[name] * weights).sum()),
        )


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("tiny", {}), ("base", {}), ("poster", {"image_size": 64}), ("released", {"image_size": 64})],
)
@torch.no_grad()
def test_presets_equal_the_plain_formulation_in_single_precision(
    name: str, smaller: dict[str, int]
) -> None:
    config = RasaloreConfig.preset(name, **smaller)
    torch.manual_seed(0)
    model = RasaloreModel(config).eval()
    pixel_values = make_input(config, batch=1)
    output = model(pixel_values)
    for key, expected in plain_forward(model, pixel_values).items():
        torch.testing.assert_close(output[key], expected, rtol=0, atol=5e-5)


# --- Losses -----------------------------------------------------------------------------------
def draw_mask(kind: str, side: int) -> Tensor:
    mask = torch.full((side, side), float(kind == "full"))
    if kind == "pixel":
        mask[side // 2, side // 2] = 1  # on a candidate point
    elif kind == "pixel between points":
        mask[-1, -1] = 1
    elif kind == "square":
        mask[side // 2 :, side // 4 :] = 1
    return mask


MASK_KINDS = st.sampled_from(["empty", "full", "pixel", "pixel between points", "square"])
# Scores of 0, of 1, or of anything: equal to an empty mask, to a full one, or to none.
CERTAINTIES = st.sampled_from([-300.0, None, 300.0])


@given(
    fields=configs(),
    kinds=st.lists(st.tuples(MASK_KINDS, MASK_KINDS), min_size=1, max_size=3),
    with_sam=st.booleans(),
    certainty=CERTAINTIES,
    form=st.sampled_from(["el_dice", "el_tversky"]),
    training=st.booleans(),
)
@settings(max_examples=40)
def test_losses_equal_the_plain_formulation_and_are_finite_whatever_the_masks(
    fields: dict[str, Any],
    kinds: list[tuple[str, str]],
    with_sam: bool,
    certainty: float | None,
    form: str,
    training: bool,
) -> None:
    model = make_model(decoder_loss=form, **fields).double().train(training)
    if certainty is not None:
        with torch.no_grad():
            model.mask_decoder.head.weight.zero_()
            model.mask_decoder.head.bias.fill_(certainty)
    side = model.config.output_size
    pseudo, sam = (
        torch.stack([draw_mask(kind, side) for kind in column])
        for column in zip(*kinds, strict=True)
    )
    found = []
    for outputs in both_ways(model, make_input(model.config, len(kinds)).double()):
        output = RasaloreOutput(**outputs)
        model.add_losses(output, pseudo, sam if with_sam else None)
        assert all(output[name].isfinite() for name in output if name.endswith("loss"))
        found.append({"loss": output.loss} | gradients(model, output.loss))
    assert all(value.isfinite().all() for value in found[0].values())
    assert_same(*found, rtol=1e-4)  # the losses are computed in single precision
