"""Stage 1's network: prompts around a CLIP, what is saved of it, and the heatmaps it gives."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPModel

from modeling_rasalore import DdptConfig, DdptModel
from modeling_rasalore.heatmaps_ddpt import (
    HEATMAPS,
    attention_rollout,
    cls_attention,
    mean_over_views,
    relevance,
)

# 16 patches; word ids: 1..8 words, 10 start, 11 end (the highest, where CLIP looks for it).
CLIP: dict[str, Any] = {
    "projection_dim": 12,
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
    "text_config": {
        "vocab_size": 12,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 20,
        "bos_token_id": 10,
        "eos_token_id": 11,
        "pad_token_id": 0,
    },
}
SMALL: dict[str, Any] = {
    "clip_config": CLIP,
    "base_model_name_or_path": None,
    "base_model_revision": None,
    "num_context_tokens": 4,
    "num_visual_prompts": 3,
    "num_free_tokens": 5,
    "class_attention_dim": 6,
    "class_token_ids": [[4], [5, 6]],  # one class word is a single token, one is two
    "template_token_ids": [[1, 2], [3]],
    "full_stop_token_id": 7,
    "start_token_id": 10,
    "end_token_id": 11,
}
TRAINED = {"freeze_backbone": False, "save_backbone": True}
LABELS = torch.tensor([0, 1])


def small_config(**fields: Any) -> DdptConfig:
    return DdptConfig(**{**SMALL, **fields})


def shake(model: torch.nn.Module) -> None:
    """Move every weight off its round or tiny start, so that no two paths agree by accident."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def make_model(**fields: Any) -> DdptModel:
    model = DdptModel(small_config(**fields)).eval()
    shake(model)
    return model


def make_slices(batch: int = 2) -> Tensor:
    return torch.rand((batch, 3, 32, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    clip = CLIPModel(CLIPConfig(**CLIP))
    shake(clip)
    clip.save_pretrained(folder)
    return folder


def tune_prompts(backbone: Path, folder: Path) -> DdptModel:
    """Save a model whose prompts differ from their start; its backbone stays in `backbone`."""
    model = DdptModel.from_backbone(small_config(base_model_name_or_path=str(backbone)))
    with torch.no_grad():
        model.visual_prompts.normal_()
        model.text_prompts.context.normal_()
    model.eval().save_pretrained(folder)
    return model


# --- Size, shapes, gradients ------------------------------------------------------------------
@pytest.mark.parametrize("name", ["poster", "released"])
def test_prompts_for_vit_b_32_have_the_documented_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = DdptModel(DdptConfig.preset(name))
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(trainable.values()) == 1_137_920
    assert not [n for n in trainable if n.startswith("clip.")]


def test_outputs_have_the_documented_shapes() -> None:
    output = make_model()(make_slices(3))
    assert output.loss is None
    assert output.logits.shape == (3, 2)
    assert output.class_prompt_logits.shape == (3, 2, 2)
    assert output.class_prompt_attention.shape == (3, 2, 1 + 16 + 5)
    assert output.image_embeds.shape == (3, 12)
    assert output.text_embeds.shape == (2, 12)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("fields", [{}, TRAINED])
def test_the_gradient_reaches_every_trainable_parameter(
    fields: dict[str, Any], guidance: bool
) -> None:
    model = make_model(**fields).train()
    model(make_slices(), labels=LABELS, guidance=guidance).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # A softmax drops what the keys' bias adds, so its gradient is 0 but for rounding.
            assert parameter.grad.any() or name.endswith("k_proj.bias"), name
        else:
            assert parameter.grad is None, name


def test_the_inputs_are_left_alone() -> None:
    model, slices, labels = make_model(), make_slices(), LABELS.clone()
    model(slices, labels=labels, guidance=True).loss.backward()
    model.heatmaps(slices, "relevance")
    assert torch.equal(slices, make_slices()) and not slices.requires_grad
    assert torch.equal(labels, LABELS)


def test_every_slice_is_scored_on_its_own() -> None:
    model, slices = make_model(), make_slices(3)
    torch.testing.assert_close(model(slices).logits[1:2], model(slices[1:2]).logits)


def test_mixed_precision_keeps_the_logits_and_gives_every_heatmap() -> None:
    model, slices = make_model(), make_slices()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(slices).logits.float()
        heatmaps = [model.heatmaps(slices, kind) for kind in HEATMAPS]
    torch.testing.assert_close(logits, model(slices).logits, rtol=0.1, atol=0.5)
    assert all(heatmap.isfinite().all() for heatmap in heatmaps)


# --- Text -------------------------------------------------------------------------------------
def test_fixed_sentences_are_encoded_as_clip_encodes_them() -> None:
    model = make_model()
    sentences = ([10, 1, 2, 4, 3, 7, 11], [10, 1, 2, 5, 6, 3, 7, 11])
    features = model.template_text_features()
    for feature, ids in zip(features, sentences, strict=True):
        expected = model.clip.get_text_features(torch.tensor([ids])).pooler_output[0]
        torch.testing.assert_close(feature, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "order"),
    [("middle", "s 0 1 word word 2 3 . e"), ("end", "s 0 1 2 3 word word . e")],
)
def test_the_class_word_stands_where_the_configuration_says(position: str, order: str) -> None:
    model = make_model(class_token_position=position)
    embed = model.clip.text_model.embeddings.token_embedding
    word = iter(embed(torch.tensor([5, 6])))
    known = {"s": embed.weight[10], ".": embed.weight[7], "e": embed.weight[11]}
    known |= {str(i): vector for i, vector in enumerate(model.text_prompts.context)}
    expected = [next(word) if name == "word" else known[name] for name in order.split()]
    assert torch.equal(model.text_prompts.learned(embed)[1], torch.stack(expected))


def test_learned_prompts_equal_a_sentence_whose_words_they_copy() -> None:
    model = make_model(class_token_position="end", class_token_ids=[[4], [5]])
    embed = model.clip.text_model.embeddings.token_embedding
    with torch.no_grad():
        model.text_prompts.context.copy_(embed(torch.tensor([1, 2, 1, 3])))
    expected = model.clip.get_text_features(
        torch.tensor([[10, 1, 2, 1, 3, w, 7, 11] for w in (4, 5)])
    )
    torch.testing.assert_close(
        model.learned_text_features(), expected.pooler_output, rtol=1e-5, atol=1e-5
    )


class StubTokenizer:
    """Gives each word, and the full stop, an id of its own."""

    bos_token_id, eos_token_id = 10, 11
    words = ("<pad>", "a", "scan", "of", "calm", "very", "ill", "tissue", ".")

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[self.words.index(word) for word in text.split()])


def test_other_words_are_taken_from_a_tokenizer() -> None:
    config = small_config()
    config.set_words(StubTokenizer(), "calm", "very ill", "a scan of {} tissue")
    assert config.class_token_ids == [[4], [5, 6]]
    assert config.template_token_ids == [[1, 2, 3], [7]]
    assert (config.full_stop_token_id, config.start_token_id, config.end_token_id) == (8, 10, 11)


@pytest.mark.parametrize("template", ["a scan", "a {} of {}"])
def test_a_template_needs_exactly_one_place_for_the_class_word(template: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one \{\}"):
        small_config().set_words(StubTokenizer(), "calm", "ill", template)


# --- Losses -----------------------------------------------------------------------------------
def test_the_loss_is_the_classification_plus_a_share_of_the_class_prompts() -> None:
    output = make_model()(make_slices(), labels=LABELS)
    own_prompt = torch.stack([output.class_prompt_logits[0, 0], output.class_prompt_logits[1, 1]])
    assert output.classification_loss == F.cross_entropy(output.logits, LABELS)
    assert output.class_prompt_loss == F.cross_entropy(own_prompt, LABELS)
    expected = output.classification_loss + 0.3 * output.class_prompt_loss
    torch.testing.assert_close(output.loss, expected)


def test_guidance_adds_the_frozen_image_and_the_fixed_sentences() -> None:
    model, slices = make_model(), make_slices()
    output = model(slices, labels=LABELS, guidance=True)
    images = model.clip.get_image_features(slices).pooler_output
    sentences = model.template_text_features()
    scale = model.clip.logit_scale.exp()

    def loss(image: Tensor, text: Tensor) -> Tensor:
        cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
        return F.cross_entropy(scale * cosine, LABELS)

    expected = loss(images, output.text_embeds) + loss(output.image_embeds, sentences)
    expected = expected + 0.1 * F.cross_entropy(output.logits, LABELS)
    torch.testing.assert_close(output.classification_loss, expected, rtol=1e-5, atol=1e-5)


def test_class_aware_prompts_do_not_pull_on_the_visual_tokens() -> None:
    model = make_model()
    model(make_slices(), labels=LABELS).class_prompt_loss.backward()
    assert model.visual_prompts.grad is None
    assert model.class_aware_prompts.free_tokens.grad is not None


# --- Saving and loading -----------------------------------------------------------------------
def test_only_the_prompts_of_a_frozen_backbone_are_saved(backbone: Path, tmp_path: Path) -> None:
    model = tune_prompts(backbone, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    own = {n: p for n, p in model.named_parameters() if not n.startswith("clip.")}
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in saved)


@pytest.mark.parametrize("load", [DdptModel.from_pretrained, AutoModel.from_pretrained])
def test_prompts_come_back_on_the_backbone_they_were_tuned_on(
    load: Callable[..., DdptModel], backbone: Path, tmp_path: Path
) -> None:
    model = tune_prompts(backbone, tmp_path)
    loaded = load(tmp_path)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    assert torch.equal(model(make_slices()).logits, loaded(make_slices()).logits)


@pytest.mark.parametrize("load", [DdptModel.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("source", [None, "nobody/no-such-clip"])
def test_prompts_without_their_backbone_need_to_be_told_where_it_is(
    load: Callable[..., DdptModel], source: str | None, backbone: Path, tmp_path: Path
) -> None:
    model = tune_prompts(backbone, tmp_path)
    model.config.base_model_name_or_path = source
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"(names none|{source}).*pass clip_name_or_path="):
        load(tmp_path)
    loaded = load(tmp_path, clip_name_or_path=str(backbone))
    assert torch.equal(model(make_slices()).logits, loaded(make_slices()).logits)


def test_loading_can_report_what_was_in_the_file(backbone: Path, tmp_path: Path) -> None:
    tune_prompts(backbone, tmp_path)
    loaded: Any = DdptModel.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_a_frozen_backbone_stays_frozen_after_loading(backbone: Path, tmp_path: Path) -> None:
    tune_prompts(backbone, tmp_path)
    model = DdptModel.from_pretrained(tmp_path).train()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if not n.startswith("clip.")}
    assert model.training and not any(module.training for module in model.clip.modules())


def test_a_trained_backbone_is_saved_with_the_prompts(tmp_path: Path) -> None:
    model = make_model(**TRAINED)
    model.save_pretrained(tmp_path)
    loaded = DdptModel.from_pretrained(tmp_path)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)
    assert torch.equal(model(make_slices()).logits, loaded(make_slices()).logits)
    assert all(p.requires_grad for p in loaded.parameters())
    assert loaded.train().clip.training


def test_a_new_model_starts_on_its_backbone(backbone: Path) -> None:
    model = DdptModel.from_backbone(small_config(base_model_name_or_path=str(backbone)))
    clip = CLIPModel.from_pretrained(backbone)
    assert all(torch.equal(v, model.clip.state_dict()[k]) for k, v in clip.state_dict().items())
    assert not any(p.requires_grad for p in model.clip.parameters())


def test_a_half_precision_checkpoint_gets_a_half_precision_backbone(
    backbone: Path, tmp_path: Path
) -> None:
    tune_prompts(backbone, tmp_path).bfloat16().save_pretrained(tmp_path)
    loaded = DdptModel.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    assert loaded(make_slices().bfloat16()).logits.isfinite().all()


# --- Heatmaps ---------------------------------------------------------------------------------
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
    assert [tuple(a.shape) for a in attentions] == [(2, 2, 20, 20), (2, 2, 20, 20), (2, 2, 19, 19)]
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


def test_views_of_something_that_turns_with_the_slice_agree() -> None:
    slices = make_slices()
    torch.testing.assert_close(mean_over_views(lambda view: view[:, 0], slices), slices[:, 0])


def test_what_stays_in_place_when_the_slice_turns_is_averaged_away() -> None:
    corner = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    mean = mean_over_views(lambda view: corner, torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(mean, torch.full((1, 2, 2), 64**0.25))  # geometric


def test_heatmaps_over_all_views_turn_with_the_slice() -> None:
    model, slices = make_model(heatmap_views=8), make_slices()
    one_view = make_model().heatmaps(slices, "attention_rollout")
    heatmaps = model.heatmaps(slices, "attention_rollout")
    turned = model.heatmaps(slices.flip(-1).rot90(1, (2, 3)), "attention_rollout")
    torch.testing.assert_close(turned, heatmaps.flip(-1).rot90(1, (1, 2)))
    assert not torch.allclose(heatmaps, one_view)


# --- User mistakes ----------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 16, 16), (3, 32, 32)])
def test_pixel_values_of_another_shape_are_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^pixel_values must be [^.]*\.$") as error:
        make_model()(torch.rand(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_contxt_tokens": 8}, "did you mean 'num_context_tokens'"),
        ({"class_token_position": "start"}, "class_token_position must be one of"),
        ({"heatmap": "rollout"}, "heatmap must be one of"),
        ({"heatmap_views": 4}, "heatmap_views must be one of"),
        ({"num_context_tokens": 5}, "must be even"),
        ({"num_context_tokens": 16}, "need 21 tokens, but the backbone's text tower has 20"),
        ({"freeze_backbone": False}, "set save_backbone=True"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"\['poster', 'released', 'tiny'\], got 'huge'"):
        DdptConfig.preset("huge")
