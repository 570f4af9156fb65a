"""Released files -> models: every number in its place, and what does not fit is listed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from released_files import (
    TABLE,
    Prompts,
    Weights,
    random_prompts,
    random_rasalore,
    released_files,
    save_clip,
    save_prompts,
    save_rasalore,
)
from small_ddpt import SMALL, make_slices
from torch import Tensor, nn
from transformers import AutoModel, CLIPModel

from modeling_rasalore import DdptConfig, DdptModel, RasaloreModel
from modeling_rasalore.publishing.released_checkpoints import (
    load_released_ddpt,
    load_released_rasalore,
)

WORDS = ((4,), (5, 6))  # as in `small_ddpt`: one class word is a single token, one is two
FIELDS = {
    name: value
    for name, value in SMALL.items()
    if name not in ("clip_config", "base_model_name_or_path", "base_model_revision")
}
Stage2 = tuple[RasaloreModel, list[Path]]


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> Stage2:
    """A model, and its weights as released files."""
    model = random_rasalore()
    return model, save_rasalore(tmp_path_factory.mktemp("released"), *released_files(model))


@pytest.fixture(scope="module")
def converted(stage2: Stage2) -> RasaloreModel:
    return load_released_rasalore(*stage2[1])


# --- Stage 2: values --------------------------------------------------------------------------
def test_every_tensor_of_stage_2_arrives_in_its_place(
    stage2: Stage2, converted: RasaloreModel
) -> None:
    expected, found = stage2[0].state_dict(), converted.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert converted.config.to_diff_dict() == stage2[0].config.to_diff_dict()
    assert not converted.training


@torch.no_grad()
def test_the_decoder_attends_as_the_stored_multihead_attention(
    stage2: Stage2, converted: RasaloreModel
) -> None:
    stored = torch.load(stage2[1][1], weights_only=True)
    name = "cross_attention."
    attention = nn.MultiheadAttention(256, 4, batch_first=True)
    attention.load_state_dict(
        {key.removeprefix(name): value for key, value in stored.items() if key.startswith(name)}
    )
    generator = torch.Generator().manual_seed(4)
    points = torch.randn(1, 5, 256, generator=generator)
    features = torch.randn(1, 256, 64, 64, generator=generator)
    noisy = features + stored["positional_encoding"]
    tokens, values = (maps.flatten(2).transpose(1, 2) for maps in (features, noisy))
    attended = converted.mask_decoder.attend(points, tokens)
    expected = attention(points, tokens, values)[0]
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_point_embeddings_come_from_the_stored_heads_one_by_one(
    stage2: Stage2, converted: RasaloreModel
) -> None:
    stored = torch.load(stage2[1][0], weights_only=True)
    generator = torch.Generator().manual_seed(5)
    cells = torch.randn(1, 4096, 256, generator=generator)
    locations = torch.randn(6, 256, generator=generator)

    def project(part: str, head: int, tokens: Tensor) -> Tensor:
        name = f"adapter2.{part}_projections.{head}"
        return F.linear(tokens, stored[f"{name}.weight"], stored[f"{name}.bias"])

    noisy, heads = cells[0] + stored["adapter2.positional_noise_encoding"], []
    for head in range(4):
        scores = project("query", head, locations) @ project("key", head, cells[0]).T / 16
        heads.append(scores.softmax(-1) @ project("value", head, noisy))
    output = [stored[f"adapter2.output_proj.{kind}"] for kind in ("weight", "bias")]
    expected = locations + F.linear(torch.cat(heads, dim=-1), *output)
    found = converted.spatial_attention(locations, cells)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- Stage 1: values --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def load_prompts(folder: Path, clip: Path, **fields: Any) -> DdptModel:
    return load_released_ddpt(folder, clip, **{**FIELDS, **fields})


def assemble(prompts: Prompts, clip: Path, split: int) -> Callable[[Tensor], Tensor]:
    """The logits of these prompts on this CLIP, written out by hand."""
    backbone = CLIPModel.from_pretrained(clip).eval()
    text, visual, aware = prompts.values()
    context, vision = text["ctx"], backbone.vision_model

    def text_feature(word: int) -> Tensor:
        start, rest = text["token_prefix"][word], text["token_suffix"][word]
        length = len(WORDS[word])
        sentence = [start, context[:split], rest[:length], context[split:], rest[length:]]
        hidden = torch.cat(sentence)[None]  # with its padding, as CLIP sees it
        hidden = hidden + backbone.text_model.embeddings.position_embedding.weight
        causal = torch.full((20, 20), float("-inf")).triu(1)[None, None]
        for layer in backbone.text_model.encoder.layers:
            hidden = layer(hidden, causal)
        end = 1 + len(context) + length + 1
        return backbone.text_projection(backbone.text_model.final_layer_norm(hidden)[0, end])

    def logits(pixel_values: Tensor) -> Tensor:
        features = torch.stack([text_feature(0), text_feature(1)])
        hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
        length, batch = hidden.shape[1], len(hidden)
        *layers, last = vision.encoder.layers
        for layer, tokens in zip(layers, visual["ctx"], strict=True):
            prompted = torch.cat([hidden, tokens.expand(batch, -1, -1)], dim=1)
            hidden = layer(prompted, None)[:, :length]
        query = F.linear(features, aware["meta_nets.0.weight"], aware["meta_nets.0.bias"])
        seen = torch.cat([hidden, aware["ctx"].expand(batch, -1, -1)], dim=1)
        scores = (query @ aware["attns.0.qmlp.weight"].T) @ (
            seen @ aware["attns.0.kmlp.weight"].T
        ).transpose(1, 2)
        attended = (scores / 6**0.5).softmax(-1) @ seen @ aware["attns.0.vmlp.weight"].T
        norm = aware["lns2.0.weight"], aware["lns2.0.bias"]
        own = F.layer_norm(attended + query, (16,), *norm)
        hidden = last(torch.cat([hidden, own], dim=1), None)
        image = backbone.visual_projection(vision.post_layernorm(hidden[:, 0]))
        cosine = F.cosine_similarity(image[:, None], features[None], dim=-1)
        return backbone.logit_scale.exp() * cosine

    return logits


@pytest.mark.parametrize(("position", "split"), [("end", 4), ("middle", 2)])
@torch.no_grad()
def test_stage_1_gives_the_logits_of_the_stored_prompts(
    position: str, split: int, clip: Path, tmp_path: Path
) -> None:
    prompts = random_prompts()
    folder = save_prompts(tmp_path / "released", prompts)
    model = load_prompts(folder, clip, class_token_position=position)
    expected = assemble(prompts, clip, split)(make_slices())
    torch.testing.assert_close(model(make_slices()).logits, expected, rtol=1e-4, atol=1e-4)
    assert not model.training


@torch.no_grad()
def test_class_prompt_logits_come_from_the_stored_classifier(clip: Path, tmp_path: Path) -> None:
    prompts = random_prompts()
    aware = prompts["image_encoder.transformer.extractor"]
    aware["lns.0.weight"].zero_()  # leaves the classifier its norm's bias alone
    model = load_prompts(save_prompts(tmp_path, prompts), clip)
    expected = aware["classfiers.0.weight"] @ aware["lns.0.bias"]
    found = model(make_slices()).class_prompt_logits
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fixed_sentences_use_the_backbones_words(clip: Path, tmp_path: Path) -> None:
    model = load_prompts(save_prompts(tmp_path, random_prompts()), clip)
    backbone = CLIPModel.from_pretrained(clip)
    ids = torch.tensor([[10, 1, 2, 4, 3, 7, 11]])
    expected = backbone.get_text_features(ids).pooler_output[0]
    torch.testing.assert_close(model.template_text_features()[0], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_prompts_are_read(clip: Path, tmp_path: Path) -> None:
    prompts = random_prompts()
    halves = {name: {k: v.half() for k, v in w.items()} for name, w in prompts.items()}
    model = load_prompts(save_prompts(tmp_path, halves), clip)
    assert torch.equal(model.text_prompts.context, prompts["prompt_learner"]["ctx"].half().float())


def test_the_latest_epoch_that_every_folder_has_is_read(clip: Path, tmp_path: Path) -> None:
    early, late = random_prompts(), random_prompts()
    late["prompt_learner"]["ctx"].zero_()
    save_prompts(save_prompts(tmp_path, early, 9), late, 10)
    shutil.copy(
        tmp_path / "prompt_learner" / "model.pth.tar-9",
        tmp_path / "prompt_learner" / "model.pth.tar-11",
    )
    assert not load_prompts(tmp_path, clip).text_prompts.context.any()


def test_prompts_of_different_epochs_are_not_mixed(clip: Path, tmp_path: Path) -> None:
    save_prompts(tmp_path, random_prompts(), 9)
    path = tmp_path / "prompt_learner" / "model.pth.tar-9"
    path.rename(path.with_name("model.pth.tar-60"))
    with pytest.raises(OSError, match=r"of one epoch, found epochs \[60\], \[9\], \[9\]"):
        load_prompts(tmp_path, clip)


# --- Stored words -----------------------------------------------------------------------------
@pytest.mark.parametrize("load", [DdptModel.from_pretrained, AutoModel.from_pretrained])
@torch.no_grad()
def test_stored_words_are_saved_with_the_prompts(
    load: Callable[..., DdptModel], clip: Path, tmp_path: Path
) -> None:
    model = load_prompts(save_prompts(tmp_path / "released", random_prompts()), clip)
    model.save_pretrained(tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert torch.equal(loaded.text_prompts.words, model.text_prompts.words)
    assert torch.equal(loaded(make_slices()).logits, model(make_slices()).logits)


@torch.no_grad()
def test_new_prompts_with_stored_words_start_with_the_backbones(clip: Path) -> None:
    models = []
    for stored in (False, True):
        torch.manual_seed(0)
        config = DdptConfig.from_clip(str(clip), stored_prompt_words=stored, **FIELDS)
        models.append(DdptModel.from_backbone(config))
    models[1].text_prompts.context.copy_(models[0].text_prompts.context)
    assert torch.equal(models[0].learned_text_features(), models[1].learned_text_features())


# --- Files that do not fit --------------------------------------------------------------------
def change(weights: Weights) -> Weights:
    """Without the first name, with one more, and with the last transposed or cut."""
    first, *_, last = weights
    changed = {name: value for name, value in weights.items() if name != first}
    return changed | {"extra.weight": torch.ones(2), last: torch.ones(3, 1)}


@pytest.mark.parametrize("broken", [0, 1])
def test_everything_that_does_not_fit_is_listed(
    broken: int, stage2: Stage2, tmp_path: Path
) -> None:
    files: list[Any] = list(released_files(stage2[0]))
    first, *_, last = files[broken]
    shape = tuple(files[broken][last].shape)
    files[broken] = change(files[broken])
    paths = save_rasalore(tmp_path, *files)
    with pytest.raises(ValueError) as error:
        load_released_rasalore(*paths)
    assert str(error.value) == (
        f"{paths[broken]} does not fit the released layout. missing: {first}; "
        f"surplus: extra.weight; misshaped: {last} (3, 1) instead of {shape}."
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.ones(1024, 128), r"misshaped: table \(1024, 128\) instead of \(1024, 256\)"),
        ([1.0, 2.0], "no tensor: table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    table: Any, message: str, stage2: Stage2, tmp_path: Path
) -> None:
    torch.save(table, tmp_path / TABLE)
    with pytest.raises(ValueError, match=message):
        load_released_rasalore(*stage2[1][:2], tmp_path / TABLE)


def test_a_single_tensor_is_no_state_dict(stage2: Stage2) -> None:
    _, decoder, table = stage2[1]
    with pytest.raises(ValueError, match="must hold named tensors, got Tensor"):
        load_released_rasalore(table, decoder, table)


@pytest.mark.parametrize("folder", random_prompts())
def test_prompts_that_do_not_fit_are_listed(folder: str, clip: Path, tmp_path: Path) -> None:
    prompts = random_prompts()
    prompts[folder] |= {"extra": torch.ones(2), "ctx": torch.ones(3, 1)}
    with pytest.raises(ValueError, match=rf"{folder}.* surplus: extra; misshaped: ctx \(3, 1\)"):
        load_prompts(save_prompts(tmp_path, prompts), clip)


def test_another_number_of_context_tokens_must_be_said(clip: Path, tmp_path: Path) -> None:
    folder = save_prompts(tmp_path, random_prompts())
    with pytest.raises(ValueError, match=r"misshaped: ctx \(4, 8\) instead of \(6, 8\)"):
        load_prompts(folder, clip, num_context_tokens=6)


def test_an_array_is_no_tensor(clip: Path, tmp_path: Path) -> None:
    prompts: dict[str, Any] = random_prompts()
    prompts["prompt_learner"]["ctx"] = np.ones((4, 8))
    with pytest.raises(ValueError, match="no tensor: ctx"):
        load_prompts(save_prompts(tmp_path, prompts), clip)


def test_a_checkpoint_needs_a_state_dict(clip: Path, tmp_path: Path) -> None:
    folder = save_prompts(tmp_path, random_prompts())
    torch.save({"weights": {}}, folder / "prompt_learner" / "model.pth.tar-60")
    with pytest.raises(ValueError, match="must hold a 'state_dict'"):
        load_prompts(folder, clip)
