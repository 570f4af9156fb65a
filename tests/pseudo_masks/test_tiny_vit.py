"""The TinyViT encoder, and LiteMedSAM around it: shapes, windows, saving and loading."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lite_medsam_files import SMALL_VISION
from torch.nn import functional as F
from transformers import SamImageProcessorPil

from modeling_rasalore.pseudo_masks.lite_medsam import (
    LiteMedSamConfig,
    LiteMedSamModel,
    lite_medsam_config,
    lite_medsam_processor,
)
from modeling_rasalore.pseudo_masks.segmenter import PromptedSegmenter
from modeling_rasalore.pseudo_masks.tiny_vit import (
    TinyVitConfig,
    TinyVitEncoder,
    WindowAttention,
    join_windows,
    split_windows,
)


def small_model() -> LiteMedSamModel:
    """LiteMedSAM of a few thousand numbers, none of them 0, running statistics included."""
    torch.manual_seed(0)
    model = LiteMedSamModel(lite_medsam_config(**SMALL_VISION)).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.2 * torch.rand_like(value) + 0.01)
    return model


# --- Encoder ----------------------------------------------------------------------------------
def test_an_embedding_has_a_quarter_of_the_image_s_pixels_per_side() -> None:
    encoder = TinyVitEncoder(TinyVitConfig(**SMALL_VISION)).eval()
    for side in (32, 20):  # 20: windows that do not fit
        embedding = encoder(torch.rand(2, 3, side, side)).last_hidden_state
        assert embedding.shape == (2, 32, side // 4, side // 4)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    window=st.integers(1, 4),
    channels=st.integers(1, 3),
)
def test_windows_join_to_what_was_split(
    height: int, width: int, window: int, channels: int
) -> None:
    features = torch.arange(1.0, 1 + 2 * channels * height * width)
    features = features.view(2, channels, height, width)
    windows = split_windows(features, window)
    count = 2 * -(-height // window) * -(-width // window)
    assert windows.shape == (count, window**2, channels)
    assert torch.equal(join_windows(windows, features.shape, window), features)
    assert (windows == 0).sum() == windows.numel() - features.numel()  # only padding is 0


def test_a_window_holds_neighbours_row_by_row() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4)
    assert split_windows(features, 2)[..., 0].tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15],
    ]  # fmt: skip


@torch.no_grad()
def test_attention_is_what_the_formula_says() -> None:
    torch.manual_seed(1)
    attention = WindowAttention(width=6, heads=2, window=2)
    attention.distance_bias.copy_(torch.randn(2, 4))
    pixels = torch.randn(1, 4, 6)
    joint = attention.query_key_value(F.layer_norm(pixels, (6,)))[0]
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = torch.zeros(4, 6)
    for head in range(2):
        query, key, value = joint[:, 9 * head : 9 * head + 9].split(3, dim=1)
        for here, (row, column) in enumerate(places):
            weights = torch.stack(
                [
                    query[here] @ key[there] / 3**0.5
                    + attention.distance_bias[head, 2 * abs(row - r) + abs(column - c)]
                    for there, (r, c) in enumerate(places)
                ]
            ).softmax(0)
            expected[here, 3 * head : 3 * head + 3] = weights @ value
    torch.testing.assert_close(attention(pixels)[0], attention.output(expected))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads must divide the width, got 4 heads of 6"):
        WindowAttention(6, 4, 2)


# --- LiteMedSAM -------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize("prompt", ["box", "points"])
def test_a_saved_model_loads_bit_for_bit(tmp_path: Path, prompt: str) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    again = LiteMedSamModel.from_pretrained(tmp_path).eval()
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    prompts = {
        "box": {"input_boxes": torch.tensor([[[4.0, 5.0, 20.0, 25.0]]])},
        "points": {"input_points": torch.tensor([[[[4.0, 5.0], [20.0, 25.0]]]])},
    }[prompt]
    image = torch.rand(1, 3, 32, 32)
    outputs = [m(pixel_values=image, **prompts) for m in (model, again)]
    assert torch.equal(outputs[0].pred_masks, outputs[1].pred_masks)
    assert outputs[0].pred_masks.shape == (1, 1, 3, 32, 32)


def test_a_model_loads_again_from_its_training_mode() -> None:
    model = small_model()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = model.get_image_embeddings(image)
        model.train()
        model.eval()
        assert torch.equal(model.get_image_embeddings(image), before)


def test_the_folder_says_which_class_it_is_and_that_it_knows_masks(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    lite_medsam_processor(model.config).save_pretrained(tmp_path)
    segmenter = PromptedSegmenter.from_pretrained(str(tmp_path))
    assert isinstance(segmenter.model, LiteMedSamModel) and segmenter.contaminated
    image = torch.rand(40, 30).numpy()
    score = segmenter.score(image, (image > 0.9).astype("uint8"))
    assert score.shape == (40, 30) and 0 < score.max() <= 1


def test_the_published_sizes_and_epsilons() -> None:
    config = lite_medsam_config()
    assert isinstance(config, LiteMedSamConfig)
    assert config.prompt_encoder_config.image_embedding_size == 64
    assert config.mask_decoder_config.layer_norm_eps == 1e-5


def test_slices_are_resized_padded_and_left_unnormalised() -> None:
    image = torch.zeros(100, 200, 3, dtype=torch.uint8)
    image[:, 100:] = 255
    inputs = lite_medsam_processor(lite_medsam_config())(image.numpy(), return_tensors="pt")
    pixels = inputs["pixel_values"]
    assert isinstance(lite_medsam_processor(lite_medsam_config()), SamImageProcessorPil)
    assert pixels.shape == (1, 3, 256, 256)
    assert pixels[0, :, :128, 140:].min() == 1 and pixels[0, :, :128, :116].max() == 0
    assert pixels[0, :, 128:].max() == 0  # padding
    assert inputs["reshaped_input_sizes"].tolist() == [[128, 256]]
