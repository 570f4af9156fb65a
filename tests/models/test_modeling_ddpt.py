"""Stage 1's network: prompts around a CLIP, what is saved of it, and the heatmaps it gives."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_ddpt import CLIP, LABELS, TRAINED, make_model, make_slices, shake, small_config
from torch import Tensor
from transformers import AutoModel, CLIPConfig, CLIPModel

from modeling_rasalore import DdptConfig, DdptModel
from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS


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
    with pytest.raises(ValueError, match=r"\['base', 'poster', 'released', 'tiny'\], got 'huge'"):
        DdptConfig.preset("huge")
