"""The numbers of the authors' released modules, from their own weights.

Both stages are checked against outputs that were stored with the weights: 1e-4 on logits and
embeddings, 1e-4 relative on losses.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_rasalore import DdptConfig, DdptModel, RasaloreConfig, RasaloreModel
from modeling_rasalore.heatmaps_ddpt import cls_attention
from modeling_rasalore.loss_rasalore import sample_at_points
from modeling_rasalore.modeling_rasalore import RasaloreOutput

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs the stored outputs of ../shared/golden"
)
STAGE1, STAGE2 = GOLDEN / "stage1_released", GOLDEN / "stage2_released"
Weights = dict[str, Tensor]


def assert_same(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


# --- Stage 2 ----------------------------------------------------------------------------------
# Prefixes of our names and of the released files' names; heads are stored one by one there.
ENCODER = {
    f"encoder.blocks.{i}.conv{j}": f"e{i + 1}.conv.conv{j}" for i in range(4) for j in (1, 2)
}
ENCODER |= {f"encoder.blocks.{i}.norm": f"e{i + 1}.norm" for i in range(4)}
ENCODER |= {
    "refiner.conv": "adapter1.conv.0",
    "refiner.conv_norm": "adapter1.conv.1",
    "refiner.up1": "adapter1.upconv1.0",
    "refiner.up1_norm": "adapter1.upconv1.1",
    "refiner.up2": "adapter1.upconv2.0",
    "refiner.up2_norm": "adapter1.upconv2.1",
    "refiner.skip": "adapter1.skip_conv",
    "spatial_attention.output": "adapter2.output_proj",
    "point_head.layers": "adapter2.FF",
}
DECODER = {
    "mask_decoder.output": "cross_attention.out_proj",
    "mask_decoder.up1": "upsample.0",
    "mask_decoder.up2": "upsample.2",
    "mask_decoder.head": "upsample.4",
    "mask_decoder.point_norm": "norm1",
    "mask_decoder.similarity_norm": "norm2",
}


def load_weights(name: str) -> Any:
    return torch.load(STAGE2 / name, weights_only=True)


def renamed(stored: Weights, prefixes: dict[str, str]) -> Weights:
    return {
        ours + name.removeprefix(theirs): value
        for ours, theirs in prefixes.items()
        for name, value in stored.items()
        if name.startswith(f"{theirs}.")
    }


def released_state() -> Weights:
    """The state dict of `RasaloreModel` from the three released files."""
    encoder, decoder = load_weights("Encoder_Model.pth"), load_weights("Decoder_Model.pth")
    state = renamed(encoder, ENCODER) | renamed(decoder, DECODER)
    for kind in ("weight", "bias"):
        joint = decoder[f"cross_attention.in_proj_{kind}"].chunk(3)
        for part, projection in zip(("query", "key", "value"), joint, strict=True):
            heads = [encoder[f"adapter2.{part}_projections.{head}.{kind}"] for head in range(4)]
            state[f"spatial_attention.{part}.{kind}"] = torch.cat(heads)
            state[f"mask_decoder.{part}.{kind}"] = projection
    state["spatial_attention.noise.noise"] = encoder["adapter2.positional_noise_encoding"]
    state["mask_decoder.noise.noise"] = decoder["positional_encoding"].flatten(2)[0].T
    state["location_embeddings.table"] = load_weights("Candidate_Prompt_Embedding.pt")
    return state


Stage2 = tuple[RasaloreModel, Weights, RasaloreOutput]


@pytest.fixture(scope="module")
def stage2() -> Stage2:
    """The model, what was stored, and the model's output without losses."""
    golden = load_file(STAGE2 / "golden.safetensors")
    model = RasaloreModel(RasaloreConfig.preset("released")).eval().requires_grad_(False)
    model.load_state_dict(released_state())
    return model, golden, model(golden["image_0_255"])


def test_stage_2_gives_the_released_outputs(stage2: Stage2) -> None:
    _, golden, output = stage2
    assert_same(output.logits, golden["mask_logits"])
    assert_same(output.point_embeddings, golden["point_embeddings"])
    assert_same(output.point_activations, golden["point_activation_probability"])


def test_stage_2_gives_the_released_image_features(stage2: Stage2) -> None:
    model, golden, _ = stage2
    features = model.encoder(golden["image_0_255"])[1]
    assert_same(features[:, ::16], golden["encoder_features"])


@pytest.mark.parametrize("form", ["el_tversky", "el_dice"])
def test_stage_2_gives_the_released_losses(
    form: str, stage2: Stage2, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, golden, output = stage2
    monkeypatch.setattr(model.config, "decoder_loss", form)
    model.add_losses(output, golden["ddpt_mask_256"], golden["sam_mask_256"])
    for value, name in (
        (output.decoder_loss, f"loss_decoder_{form}"),
        (output.point_activation_loss, "loss_point_activation"),
        (output.structural_loss, "loss_structural"),
    ):
        torch.testing.assert_close(value, golden[name].reshape(()), rtol=1e-4, atol=0)


def test_masks_are_read_at_the_released_points() -> None:
    golden = load_file(STAGE2 / "golden.safetensors")
    points = sample_at_points(golden["ddpt_mask_256"], 32)
    assert torch.equal(points, golden["point_mask"].reshape(points.shape))


# --- Stage 1 ----------------------------------------------------------------------------------
CLASS_AWARE = {
    "query.": "meta_nets.0.",
    "query_projection.": "attns.0.qmlp.",
    "key_projection.": "attns.0.kmlp.",
    "value_projection.": "attns.0.vmlp.",
    "classifier_norm.": "lns.0.",
    "classifier.": "classfiers.0.",
    "prompt_norm.": "lns2.0.",
}


def load_prompts(name: str) -> Weights:
    stored = torch.load(STAGE1 / name / "model.pth.tar-60", weights_only=True)
    return stored["state_dict"]


@torch.no_grad()
def load_stage1(position: str) -> DdptModel:
    config = DdptConfig.from_clip(str(STAGE1 / "clip"), class_token_position=position)
    model = DdptModel.from_backbone(config).eval()
    class_aware = load_prompts("image_encoder.transformer.extractor")
    model.text_prompts.context.copy_(load_prompts("prompt_learner")["ctx"])
    model.visual_prompts.copy_(load_prompts("image_encoder.transformer.ctx_learner")["ctx"])
    model.class_aware_prompts.load_state_dict(
        {"free_tokens": class_aware["ctx"][0]}
        | {
            name: class_aware[theirs + name.removeprefix(ours)]
            for name in model.class_aware_prompts.state_dict()
            for ours, theirs in CLASS_AWARE.items()
            if name.startswith(ours)
        }
    )
    return model


def stored_prompts(position: str) -> list[Tensor]:
    """Learned prompts around the word embeddings that the released file stores beside them."""
    stored = load_prompts("prompt_learner")
    context = stored["ctx"]
    split = len(context) // 2 if position == "middle" else len(context)
    return [
        torch.cat([start, context[:split], word[:1], context[split:], word[1:3]])
        for start, word in zip(stored["token_prefix"], stored["token_suffix"], strict=True)
    ]


@pytest.fixture(scope="module", params=["end", "middle"])
def stage1(request: pytest.FixtureRequest) -> tuple[DdptModel, Weights, Tensor]:
    """The model, what was stored for its class token position, and its text features."""
    position = request.param
    golden = load_file(STAGE1 / "golden.safetensors")
    expected = {name.removeprefix(f"{position}."): value for name, value in golden.items()}
    model = load_stage1(position).requires_grad_(False)
    return model, expected, model.encode_text(stored_prompts(position))


Stage1 = tuple[DdptModel, Weights, Tensor]


def test_stage_1_gives_the_released_text_features(stage1: Stage1) -> None:
    _, golden, text = stage1
    assert_same(text, golden["text_features"])


def test_stage_1_gives_the_released_logits(stage1: Stage1) -> None:
    model, golden, text = stage1
    image = model.encode_image(golden["pixel_values"], text)[0]
    assert_same(model.similarity(image, text), golden["logits"])
    sentences = model.template_text_features()
    assert_same(model.similarity(image, sentences), golden["logits_template_text"])


def test_stage_1_gives_the_released_zero_shot_logits(stage1: Stage1) -> None:
    model, golden, text = stage1
    image = model.clip.get_image_features(golden["pixel_values"]).pooler_output
    assert_same(model.similarity(image, text), golden["zero_shot_logits_learned_text"])


def test_stage_1_gives_the_released_class_prompts(stage1: Stage1) -> None:
    model, golden, text = stage1
    _, logits, attention = model.encode_image(golden["pixel_values"], text)
    order = golden["class_prompt_order"]  # (B, 2): ours stand in class order
    rows = torch.arange(len(order))[:, None]
    assert_same(logits[rows, order], golden["class_prompt_logits"])
    assert_same(attention[rows, order], golden["class_prompt_attention"])


def test_stage_1_gives_the_released_heatmap(stage1: Stage1) -> None:
    model, golden, text = stage1
    attentions: list[Tensor] = []
    model.encode_image(golden["pixel_values"], text, attentions)
    length = 1 + golden["cls_attention"].shape[1]
    row = cls_attention(attentions, length, torch.zeros(1))
    assert_same(row[:, 1:], golden["cls_attention"])
