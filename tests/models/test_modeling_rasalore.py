"""Stage 2's network: shapes, gradients, losses and location embeddings; saved whole."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rasalore import SMALL, make_input, make_masks, make_model, small_config
from torch import Tensor

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.models.encoder_rasalore import Refiner
from modeling_rasalore.models.network_rasalore import LocationEmbeddings, ValueNoise

POSTER: dict[str, Any] = {}
RELEASED = {"attention_head_dim": 16, "value_noise": "learned", "decoder_loss": "el_tversky"}
LEARNED = {"location_embeddings": "learned", "value_noise": "none"}
NO_LOCATIONS = {"location_embeddings": "none", "refiner_grid": 16}
PYRAMID = {"encoder": "pyramid", "decoder_loss": "bce_dice"}
VARIANTS = pytest.mark.parametrize("fields", [POSTER, RELEASED, LEARNED, NO_LOCATIONS, PYRAMID])


def test_the_released_preset_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        model = RasaloreModel(RasaloreConfig.preset("released"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_254_370
    assert model.location_embeddings.table.numel() == 262_144
    assert not model.location_embeddings.table.requires_grad


@VARIANTS
def test_outputs_have_the_documented_shapes(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    output = model(make_input(model.config, batch=3))
    assert output.loss is None
    assert output.logits.shape == (3, 1, 32, 32)
    assert output.point_activations.shape == (3, 64)
    assert output.point_embeddings.shape == (3, 64, 16)


@pytest.mark.parametrize(("size", "grid"), [(16, 16), (16, 8), (12, 4), (16, 4), (16, 2)])
def test_the_refiner_gives_the_number_of_cells_that_was_asked_for(size: int, grid: int) -> None:
    refiner = Refiner(small_config(image_size=size, refiner_grid=grid))
    assert refiner(torch.rand(1, 2, size, size)).shape == (1, 16, grid, grid)


@pytest.mark.parametrize("grid", [8, 4, 2])
def test_the_refiner_of_a_pyramid_starts_from_half_the_resolution(grid: int) -> None:
    model = make_model(encoder="pyramid", refiner_grid=grid)
    first, features = model.encoder(make_input(model.config))
    assert first.shape == (2, 2, 8, 8) and features.shape == (2, 16, 8, 8)
    assert model.refiner(first).shape == (2, 16, grid, grid)


@pytest.mark.parametrize(("encoder", "side"), [("plain", 22), ("pyramid", 92)])
def test_a_feature_sees_as_far_as_its_encoder_says(encoder: str, side: int) -> None:
    model = make_model(encoder=encoder, image_size=160, refiner_grid=8, grid_size=8)
    pixel_values = make_input(model.config, batch=1).requires_grad_()
    model.encoder(pixel_values)[1][..., 40, 40].sum().backward()
    seen = pixel_values.grad[0].abs().sum(0) > 0  # type: ignore[index]
    assert seen.any(0).sum() == seen.any(1).sum() == side


@pytest.mark.parametrize("fields", [POSTER, RELEASED, LEARNED, PYRAMID])
def test_the_gradient_reaches_every_trainable_parameter(fields: dict[str, Any]) -> None:
    model = make_model(**fields).train()
    masks = make_masks(model.config)
    model(make_input(model.config), labels=masks, sam_masks=masks).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A softmax drops what the keys' bias adds, so its gradient is 0 but for rounding.
        assert parameter.grad.any() or name.endswith("key.bias"), name


@pytest.mark.parametrize("fields", [POSTER, RELEASED])
def test_masks_of_ignored_pixels_teach_the_network_nothing(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    masks, pixel_values = make_masks(model.config), make_input(model.config)
    ignored = torch.zeros_like(masks)
    ignored[:, 10:20, 12:24] = 1  # half on the lesion, and on a few candidate points

    def learned(masks: Tensor) -> list[Tensor]:
        model.zero_grad()
        output = model(pixel_values, labels=masks, sam_masks=masks, ignored=ignored)
        output.loss.backward()
        return [output.loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    first, second = learned(masks), learned(torch.where(ignored > 0, 1 - masks, masks))
    assert all(map(torch.equal, first, second))
    whole = model(pixel_values, labels=masks, sam_masks=masks)
    assert whole.loss != first[0] and whole.structural_loss.isfinite()


def test_the_inputs_are_left_alone() -> None:
    model = make_model().train()
    masks = make_masks(model.config)
    inputs = {"pixel_values": make_input(model.config), "labels": masks, "sam_masks": masks.clone()}
    before = {name: value.clone() for name, value in inputs.items()}
    model(**inputs).loss.backward()
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)


@VARIANTS
def test_a_saved_model_comes_back_bit_by_bit(fields: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**fields).train()
    model(make_input(model.config))  # moves the running statistics
    model.eval().save_pretrained(tmp_path)
    loaded = RasaloreModel.from_pretrained(tmp_path)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    pixel_values = make_input(model.config)
    assert torch.equal(model(pixel_values).logits, loaded(pixel_values).logits)


def test_a_half_precision_model_is_saved_and_loaded_in_half_precision(tmp_path: Path) -> None:
    model = make_model().bfloat16()
    model.save_pretrained(tmp_path)
    loaded = RasaloreModel.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.location_embeddings.table, model.location_embeddings.table)
    assert loaded(make_input(model.config).bfloat16()).logits.isfinite().all()


def test_mixed_precision_computes_the_losses_in_single_precision() -> None:
    model, fields = make_model(), {"labels": make_masks(small_config())}
    exact = model(make_input(model.config), **fields)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(make_input(model.config), **fields)
    mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32
    torch.testing.assert_close(mixed.loss, exact.loss, rtol=0.02, atol=0)


# --- Losses -----------------------------------------------------------------------------------
def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    model = make_model(point_activation_weight=2.0, structural_weight=3.0)
    output = model(make_input(model.config), labels=make_masks(model.config))
    parts = output.decoder_loss, output.point_activation_loss, output.structural_loss
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(output.loss, parts[0] + 2 * parts[1] + 3 * parts[2])


def test_masks_may_have_any_resolution_and_a_channel_axis() -> None:
    model = make_model()
    masks = make_masks(model.config)
    losses = [
        model(make_input(model.config), labels=labels).loss
        for labels in (masks, masks[:, None].bool(), masks[:, ::4, ::4])
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_pseudo_mask_gives_finite_gradients(value: float) -> None:
    model = make_model().train()
    masks = torch.full((2, 32, 32), value)
    model(make_input(model.config), labels=masks, sam_masks=masks).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- Location embeddings ----------------------------------------------------------------------
def make_table(**fields: Any) -> Tensor:
    return LocationEmbeddings(RasaloreConfig(**fields)).make_table()


def test_location_embeddings_depend_on_their_seed_alone() -> None:
    torch.manual_seed(11)
    first = make_table()
    torch.manual_seed(12)
    assert torch.equal(first, make_table())
    assert not torch.equal(first, make_table(location_seed=1))


@pytest.mark.parametrize("name", ["tiny", "poster", "released"])
def test_every_candidate_point_has_its_own_embedding(name: str) -> None:
    config = RasaloreConfig.preset(name)
    table = LocationEmbeddings(config).make_table()
    assert len(table.unique(dim=0)) == config.grid_size**2
    assert torch.pdist(table).min() > 1e-3


def test_a_location_embedding_is_the_fourier_feature_of_row_and_column() -> None:
    generator = torch.Generator().manual_seed(3)
    frequencies = torch.randn(2, 8, generator=generator).double()
    offset = torch.randn(16, generator=generator)
    row, column = 5 / 8 * 2 - 1, 2 / 8 * 2 - 1  # point (5, 2) of an 8 x 8 grid on [-1, 1)
    phase = [2 * math.pi * 0.7 * (row * a + column * b) for a, b in frequencies.T.tolist()]
    waves = [math.sin(p) for p in phase] + [math.cos(p) for p in phase]
    table = LocationEmbeddings(small_config(location_seed=3, location_scale=0.7)).make_table()
    torch.testing.assert_close(table[5 * 8 + 2], torch.tensor(waves) + offset, rtol=0, atol=1e-5)


def test_a_new_model_holds_the_seeded_embeddings() -> None:
    model = RasaloreModel(small_config())
    assert torch.equal(model.location_embeddings.table, model.location_embeddings.make_table())
    assert "location_embeddings.table" in dict(model.named_buffers())


def test_stored_embeddings_win_over_the_seed(tmp_path: Path) -> None:
    model = make_model()
    model.location_embeddings.table.copy_(torch.rand(64, 16))  # another program's table
    model.save_pretrained(tmp_path)
    loaded = RasaloreModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.location_embeddings.table, model.location_embeddings.table)


def test_embeddings_missing_from_a_checkpoint_are_made_from_the_seed(tmp_path: Path) -> None:
    model = make_model(location_seed=4)
    state = model.state_dict()
    del state["location_embeddings.table"]
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = RasaloreModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.location_embeddings.table, model.location_embeddings.table)


def test_learned_locations_start_like_random_ones_and_are_trained() -> None:
    learned = RasaloreModel(small_config(location_embeddings="learned")).location_embeddings
    assert isinstance(learned.table, torch.nn.Parameter) and learned.table.requires_grad
    assert torch.equal(learned.table, make_table(**SMALL))


def test_without_locations_every_candidate_point_is_the_same() -> None:
    model = make_model(location_embeddings="none")
    points = model(make_input(model.config)).point_embeddings
    assert not model.location_embeddings.table.any()
    torch.testing.assert_close(points, points[:, :1].expand_as(points))


# --- Value noise and dropout ------------------------------------------------------------------
def two_logits(model: RasaloreModel) -> tuple[Tensor, Tensor]:
    pixel_values = make_input(model.config)
    with torch.no_grad():
        return model(pixel_values).logits, model(pixel_values).logits


def test_gaussian_noise_is_drawn_in_training_only() -> None:
    model = make_model(dropout=0.0)
    assert torch.equal(*two_logits(model))
    assert not torch.equal(*two_logits(model.train()))


@pytest.mark.parametrize("kind", ["learned", "none"])
def test_other_noise_is_never_drawn(kind: str) -> None:
    assert torch.equal(*two_logits(make_model(value_noise=kind, dropout=0.0).train()))


def test_noise_can_be_drawn_in_evaluation_to_show_uncertainty() -> None:
    model = make_model()
    for module in model.modules():
        if isinstance(module, ValueNoise):
            module.sample_in_eval = True
    assert not torch.equal(*two_logits(model))


def test_gaussian_noise_has_the_configured_standard_deviation() -> None:
    noise = ValueNoise(small_config(value_noise_std=0.3), tokens=64).train()
    torch.manual_seed(0)
    drawn = noise(torch.zeros(100, 64, 16))
    assert drawn.std() == pytest.approx(0.3, rel=0.01)
    assert drawn.mean() == pytest.approx(0, abs=0.01)


# --- User mistakes ----------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16), (1, 16, 16), (2, 1, 16, 8)])
def test_pixel_values_of_another_shape_are_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^pixel_values must be [^.]*\.$") as error:
        make_model()(torch.rand(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid_sise": 8}, "did you mean 'grid_size'"),
        ({"value_noise": "gausian"}, "value_noise must be one of"),
        ({"location_embeddings": "fourier"}, "location_embeddings must be one of"),
        ({"decoder_loss": "dice"}, "decoder_loss must be one of"),
        ({"refiner_grid": 5}, "multiple of refiner_grid"),
        ({"grid_size": 7}, "multiple of grid_size"),
        ({"num_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads, got 0"),
        ({"base_channels": 0}, "base_channels must be at least 1, got 0"),
        ({"encoder": "resnet"}, "encoder must be one of"),
        ({"encoder": "pyramid", "image_size": 36}, "multiple of 8, .* got 36; .* example 40"),
        ({"encoder": "pyramid", "refiner_grid": 96}, "image_size / 2 must be a multiple of refin"),
        ({"image_size": 33, "refiner_grid": 33, "grid_size": 33}, "must be even"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RasaloreConfig(**fields)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['base', 'poster', 'released', 'tiny'\], got 'huge'"):
        RasaloreConfig.preset("huge")


def test_fields_of_a_preset_can_be_replaced() -> None:
    assert RasaloreConfig.preset("released", dropout=0.0).dropout == 0
    assert RasaloreConfig.preset("released", dropout=0.0).attention_head_dim == 256


def test_scores_start_near_one_half_so_that_training_can_begin() -> None:
    torch.manual_seed(0)
    model = RasaloreModel(RasaloreConfig.preset("tiny")).eval()
    side = model.config.image_size
    assert model(torch.rand(2, 1, side, side)).logits.abs().max() < 0.5
