"""Classify and localise with DDPT, stage 1: a CLIP tuned by prompts (poster, "Stage 1").

Learned context for the text tower, learned tokens in every layer of the vision tower, class-aware
prompts in its last layer, and the heatmaps that come out of the tuned attention.

Letters in shapes: B batch, P patches, D width of the vision tower, J width of the joint space.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_ddpt import DdptConfig
from .heatmaps_ddpt import HEATMAPS, mean_over_turned_copies, read_cls_token, run_layer
from .prompts_ddpt import ClassAwarePrompts, TextPrompts

HEALTHY, UNHEALTHY = 0, 1


@dataclass
class DdptOutput(ModelOutput):
    """What `DdptModel` returns.

    loss: classification_loss + eta * class_prompt_loss, batch mean; only with `labels`.
    logits: (B, 2), healthy and unhealthy.
    classification_loss: cross entropy of the logits, or its guided form.
    class_prompt_loss: auxiliary cross entropy of the class-aware prompts.
    class_prompt_logits: (B, 2 prompts, 2 classes), prompts in class order.
    class_prompt_attention: what each prompt attends to, (B, 2, 1 + P + free tokens).
    image_embeds: (B, J), not normalised.
    text_embeds: learned text features of the two classes, (2, J), not normalised.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]
    classification_loss: Tensor | None = None
    class_prompt_loss: Tensor | None = None
    class_prompt_logits: Tensor = None  # type: ignore[assignment]
    class_prompt_attention: Tensor = None  # type: ignore[assignment]
    image_embeds: Tensor = None  # type: ignore[assignment]
    text_embeds: Tensor = None  # type: ignore[assignment]


class EncodedImage(NamedTuple):
    """What the prompted vision tower makes of slices.

    features: (B, J), not normalised.
    prompt_logits: class logits of the class-aware prompts, (B, 2 prompts, 2 classes).
    prompt_attention: what each of these prompts attends to, (B, 2, 1 + P + free tokens).
    """

    features: Tensor
    prompt_logits: Tensor
    prompt_attention: Tensor


class DdptPreTrainedModel(PreTrainedModel):
    """Initialisation shared by DDPT models; the backbone brings its own."""

    config_class = DdptConfig
    base_model_prefix = "ddpt"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, TextPrompts):
            init.normal_(module.context, std=std)
            if self.config.stored_prompt_words:
                init.normal_(module.words, std=std)  # a new backbone's are drawn alike
        elif isinstance(module, ClassAwarePrompts):
            init.normal_(module.free_tokens, std=std)
        elif isinstance(module, DdptModel):
            init.normal_(module.visual_prompts, std=std)


class DdptModel(DdptPreTrainedModel):
    """Slice classifier whose attention localises the anomaly; trained on slice labels alone."""

    def __init__(self, config: DdptConfig):
        super().__init__(config)
        vision = config.clip_config.vision_config
        self.gradient_checkpointing = False
        self.clip = CLIPModel._from_config(config.clip_config)
        self.text_prompts = TextPrompts(config)
        self.visual_prompts = nn.Parameter(
            torch.empty(vision.num_hidden_layers - 1, config.num_visual_prompts, vision.hidden_size)
        )
        self.class_aware_prompts = ClassAwarePrompts(config)
        if not config.save_backbone:
            backbone_keys = [f"clip.{name}" for name in self.clip.state_dict()]
            self._keys_to_ignore_on_save = backbone_keys
            self._keys_to_ignore_on_load_missing = [r"^clip\."]
        self.post_init()
        self.freeze()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        clip_name_or_path: str | None = None,
        **kwargs: Any,
    ) -> "DdptModel":
        """Load prompts and, unless it was saved with them, the backbone they were tuned on.

        Args:
            clip_name_or_path: repo id or folder of the backbone, in place of the configuration's.

        Raises:
            OSError: when the backbone cannot be had; prompts on a random backbone mean nothing.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not model.config.save_backbone:
            model.load_backbone(clip_name_or_path)
        model.freeze()  # loading makes new parameters, which ask for gradients again
        return loaded

    @classmethod
    def from_backbone(cls, config: DdptConfig) -> "DdptModel":
        """Return new prompts on the backbone that the configuration names, ready to be trained."""
        model = cls(config)
        if config.base_model_name_or_path is not None:
            model.load_backbone()
        if config.stored_prompt_words:
            prompts, text = model.text_prompts, model.clip.text_model
            with torch.no_grad():
                prompts.words.copy_(prompts.backbone_words(text.embeddings.token_embedding))
        return model

    def load_backbone(self, name_or_path: str | None = None) -> None:
        """Replace the backbone's weights by those of a repo id or folder; OSError if it cannot."""
        revision = self.config.base_model_revision if name_or_path is None else None
        source = name_or_path or self.config.base_model_name_or_path
        if not source:
            raise OSError(
                "the prompts were saved without their backbone and the configuration names none; "
                "pass clip_name_or_path=<repo id or folder of the CLIP they were tuned on>."
            )
        try:
            clip = CLIPModel.from_pretrained(source, revision=revision or "main", dtype=self.dtype)
        except OSError as error:
            raise OSError(
                f"the backbone {source!r} cannot be loaded; where there is no network, pass "
                "clip_name_or_path=<folder with a copy of it>."
            ) from error
        self.clip.load_state_dict(clip.state_dict())

    def freeze(self) -> None:
        """Take the gradients off the backbone where the configuration freezes it."""
        self.clip.requires_grad_(not self.config.freeze_backbone)

    def train(self, mode: bool = True) -> "DdptModel":
        super().train(mode)
        if self.config.freeze_backbone:
            self.clip.eval()
        return self

    # --- Text ---------------------------------------------------------------------------------
    def encode_text(self, prompts: list[Tensor]) -> Tensor:
        """Features (2, J) of embedded prompts (L, width), read at their end token."""
        tower = self.clip.text_model
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=prompts[0].device)
        hidden = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        length = hidden.shape[1]  # causal: what follows the end token cannot matter
        hidden = hidden + tower.embeddings.position_embedding.weight[:length]
        lowest = torch.finfo(hidden.dtype).min
        mask = torch.full((1, 1, length, length), lowest, device=hidden.device, dtype=hidden.dtype)
        mask = mask.triu(1)
        for layer in tower.encoder.layers:
            hidden = layer(hidden, mask)
        hidden = tower.final_layer_norm(hidden)
        return self.clip.text_projection(hidden[torch.arange(len(ends)), ends])

    def learned_text_features(self) -> Tensor:
        """Features of the two learned prompts, (2, J), not normalised."""
        return self.encode_text(
            self.text_prompts.learned(self.clip.text_model.embeddings.token_embedding)
        )

    @torch.no_grad()
    def template_text_features(self) -> Tensor:
        """Features of the two fixed sentences, (2, J), not normalised."""
        return self.encode_text(
            self.text_prompts.template(self.clip.text_model.embeddings.token_embedding)
        )

    # --- Image --------------------------------------------------------------------------------
    def encode_image(
        self, pixel_values: Tensor, text_features: Tensor, attentions: list[Tensor] | None = None
    ) -> EncodedImage:
        """Run slices (B, C, H, W) through the prompted vision tower.

        Prompts are appended before a layer and dropped after it. Pass a list as `attentions` to
        collect each layer's probabilities (B, heads, n, n); of the last layer those of the CLS
        token, (B, heads, 1, n).
        """
        tower, vision = self.clip.vision_model, self.config.clip_config.vision_config
        expected = (vision.num_channels, vision.image_size, vision.image_size)
        if pixel_values.shape[1:] != expected:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(pixel_values.shape)}; prepare slices with RasaloreImageProcessor."
            )
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        length = hidden.shape[1]
        *layers, last = tower.encoder.layers
        for layer, prompts in zip(layers, self.visual_prompts, strict=True):
            prompted = torch.cat([hidden, prompts.expand(len(hidden), -1, -1)], dim=1)
            hidden = self.run_vision_layer(layer, prompted, attentions)[:, :length]
        prompts, prompt_logits, prompt_attention = self.class_aware_prompts(text_features, hidden)
        prompted = torch.cat([hidden, prompts], dim=1)
        if attentions is None:
            hidden = self.run_vision_layer(last, prompted, None)
        else:  # in the open only what is read of the last layer is computed
            hidden = read_cls_token(last, prompted, attentions)
        features = self.clip.visual_projection(tower.post_layernorm(hidden[:, 0]))
        return EncodedImage(features, prompt_logits, prompt_attention)

    def run_vision_layer(
        self, layer: nn.Module, hidden: Tensor, attentions: list[Tensor] | None
    ) -> Tensor:
        """One layer of the vision tower, checkpointed where that was asked for.

        Layers in training mode checkpoint themselves; a frozen tower's are in evaluation mode, and
        yet the gradients of the prompts run through them.
        """
        checkpointed = self.gradient_checkpointing and self.training and not layer.training
        if checkpointed and attentions is None:
            return self._gradient_checkpointing_func(layer, hidden, None)
        return run_layer(layer, hidden, attentions)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """logit_scale * cosine similarity, (B, 2), not below float32: the scale enlarges errors."""
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        with torch.autocast(image_features.device.type, enabled=False):
            images = F.normalize(image_features.to(dtype), dim=-1)
            texts = F.normalize(text_features.to(dtype), dim=-1)
            return self.clip.logit_scale.exp() * images @ texts.T

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, guidance: bool = False
    ) -> DdptOutput:
        """Classify a batch of slices.

        Args:
            pixel_values: (B, C, H, W) from `RasaloreImageProcessor`.
            labels: slice labels, 0 healthy and 1 unhealthy, (B,).
            guidance: the released recipe's loss of its first epochs, which also pulls the learned
                text towards the frozen image features and the prompted image features towards the
                fixed sentences; it costs one more pass, through the frozen vision tower.
        """
        text_features = self.learned_text_features()
        image = self.encode_image(pixel_values, text_features)
        output = DdptOutput(
            logits=self.similarity(image.features, text_features),
            class_prompt_logits=image.prompt_logits,
            class_prompt_attention=image.prompt_attention,
            image_embeds=image.features,
            text_embeds=text_features,
        )
        if labels is not None:
            self.add_losses(output, pixel_values, labels, guidance)
        return output

    @torch.no_grad()
    def unhealthy_probability(self, pixel_values: Tensor) -> Tensor:
        """Probability that each slice is unhealthy, (B,); slices on any device."""
        return self(pixel_values.to(self.device)).logits.softmax(1)[:, UNHEALTHY]

    def add_losses(
        self, output: DdptOutput, pixel_values: Tensor, labels: Tensor, guidance: bool
    ) -> None:
        """Fill the output's losses in place; batch means."""
        classification = F.cross_entropy(output.logits, labels)
        if guidance:
            with torch.no_grad():
                frozen = self.clip.get_image_features(pixel_values).pooler_output
            classification = (
                F.cross_entropy(self.similarity(frozen, output.text_embeds), labels)
                + F.cross_entropy(
                    self.similarity(output.image_embeds, self.template_text_features()), labels
                )
                + self.config.guided_logits_weight * classification
            )
        own_prompt = output.class_prompt_logits[torch.arange(len(labels)), labels]  # (B, 2)
        output.classification_loss = classification
        output.class_prompt_loss = F.cross_entropy(own_prompt, labels)
        output.loss = classification + self.config.class_prompt_weight * output.class_prompt_loss

    # --- Heatmaps -----------------------------------------------------------------------------
    def heatmaps(self, pixel_values: Tensor, kind: str | None = None) -> Tensor:
        """Localisation maps over the patches, (B, rows, columns), values >= 0, own scale each.

        Args:
            kind: "cls_attention" (the poster's), "attention_rollout" (Abnar and Zuidema, 2020) or
                "relevance" (Chefer et al., 2021); None for the configuration's.

        Raises:
            ValueError: for another kind.
        """
        kind = kind or self.config.heatmap
        if kind not in HEATMAPS:
            raise ValueError(f"heatmap must be one of {sorted(HEATMAPS)}, got {kind!r}.")
        return self.score_and_locate(pixel_values, [kind])[1][:, 0]

    def score_and_locate(
        self, pixel_values: Tensor, kinds: Sequence[str], least: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return what `unhealthy_probability` and `heatmaps` do, of one pass.

        Args:
            pixel_values: (B, C, H, W) from `RasaloreImageProcessor`.
            kinds: K kinds of heatmap.
            least: slices with a lower probability have heatmaps of 0, and are not turned for them.

        Returns:
            Probabilities (B,), and heatmaps (B, K, rows, columns), values >= 0.
        """
        with torch.no_grad():
            text_features = self.learned_text_features()
        probability, heatmaps = self.look_once(pixel_values, text_features, kinds)
        recognised = probability >= least
        if self.config.heatmap_views > 1 and recognised.any():
            heatmaps[recognised] = mean_over_turned_copies(
                lambda copy: self.look_once(copy, text_features, kinds)[1],
                pixel_values[recognised],
                heatmaps[recognised],
            )
        heatmaps[~recognised] = 0
        return probability, heatmaps

    def look_once(
        self, pixel_values: Tensor, text_features: Tensor, kinds: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Unhealthy probabilities (B,) and heatmaps (B, K, rows, columns) of slices as they lie."""
        patch = self.config.clip_config.vision_config.patch_size
        height, width = (side // patch for side in pixel_values.shape[-2:])
        attentions: list[Tensor] = []
        with torch.set_grad_enabled("relevance" in kinds):
            if "relevance" in kinds:  # gradients start here also where every weight is frozen
                pixel_values = pixel_values.detach().requires_grad_(True)
            image = self.encode_image(pixel_values, text_features, attentions)
            logits = self.similarity(image.features, text_features)
            rows = [
                HEATMAPS[k](attentions, 1 + height * width, logits[:, UNHEALTHY]) for k in kinds
            ]
        heatmaps = torch.stack(rows, 1)[..., 1:].unflatten(2, (height, width))
        return logits.detach().softmax(1)[:, UNHEALTHY], heatmaps.detach().contiguous()


# A saved model carries its own files and loads elsewhere with trust_remote_code=True.
DdptConfig.register_for_auto_class()
DdptModel.register_for_auto_class("AutoModel")
