"""The numbers of the authors' released modules, from their own weights.

Both stages are checked against outputs that were stored with the weights: 1e-4 on logits and
embeddings, 1e-4 relative on losses.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_rasalore import DdptModel, RasaloreModel
from modeling_rasalore.models.loss_rasalore import sample_at_points
from modeling_rasalore.models.network_rasalore import RasaloreOutput
from modeling_rasalore.publishing.released_checkpoints import (
    load_released_ddpt,
    load_released_rasalore,
)

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="needs the stored outputs of ../shared/golden"
)
STAGE1, STAGE2 = GOLDEN / "stage1_released", GOLDEN / "stage2_released"
Weights = dict[str, Tensor]


def assert_same(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


# --- Stage 2 ----------------------------------------------------------------------------------
Stage2 = tuple[RasaloreModel, Weights, RasaloreOutput]


@pytest.fixture(scope="module")
def stage2() -> Stage2:
    """The model, what was stored, and the model's output without losses."""
    golden = load_file(STAGE2 / "golden.safetensors")
    files = "Encoder_Model.pth", "Decoder_Model.pth", "Candidate_Prompt_Embedding.pt"
    model = load_released_rasalore(*(STAGE2 / name for name in files)).requires_grad_(False)
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
@pytest.fixture(scope="module", params=["end", "middle"])
def stage1(request: pytest.FixtureRequest) -> tuple[DdptModel, Weights, Tensor]:
    """The model, what was stored for its class token position, and its text features."""
    position = request.param
    golden = load_file(STAGE1 / "golden.safetensors")
    expected = {name.removeprefix(f"{position}."): value for name, value in golden.items()}
    model = load_released_ddpt(STAGE1, STAGE1 / "clip", class_token_position=position)
    return model.requires_grad_(False), expected, model.learned_text_features()


Stage1 = tuple[DdptModel, Weights, Tensor]


def test_stage_1_gives_the_released_text_features(stage1: Stage1) -> None:
    _, golden, text = stage1
    assert_same(text, golden["text_features"])


def test_stage_1_gives_the_released_logits(stage1: Stage1) -> None:
    model, golden, _ = stage1
    output = model(golden["pixel_values"])
    assert_same(output.logits, golden["logits"])
    sentences = model.template_text_features()
    assert_same(model.similarity(output.image_embeds, sentences), golden["logits_template_text"])


def test_stage_1_gives_the_released_zero_shot_logits(stage1: Stage1) -> None:
    model, golden, text = stage1
    image = model.clip.get_image_features(golden["pixel_values"]).pooler_output
    assert_same(model.similarity(image, text), golden["zero_shot_logits_learned_text"])


def test_stage_1_gives_the_released_class_prompts(stage1: Stage1) -> None:
    model, golden, _ = stage1
    output = model(golden["pixel_values"])
    order = golden["class_prompt_order"]  # (B, 2): ours stand in class order
    rows = torch.arange(len(order))[:, None]
    assert_same(output.class_prompt_logits[rows, order], golden["class_prompt_logits"])
    assert_same(output.class_prompt_attention[rows, order], golden["class_prompt_attention"])


def test_stage_1_gives_the_released_heatmap(stage1: Stage1) -> None:
    model, golden, _ = stage1
    heatmaps = model.heatmaps(golden["pixel_values"], "cls_attention")
    assert_same(heatmaps.flatten(1), golden["cls_attention"])
