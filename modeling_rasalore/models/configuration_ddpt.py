"""Define a DDPT network, stage 1: its fields, words, presets and checks (poster, "Stage 1")."""

from typing import Any, Literal

from transformers import CLIPConfig, PreTrainedConfig

from .configuration_rasalore import reject_misspelt_fields, reject_unknown_choices

# Token ids of CLIP's own vocabulary, so that no tokenizer file is needed to load a model.
CLIP_TOKENS: dict[str, Any] = {
    "class_token_ids": [[3782], [30994]],  # "healthy", "unhealthy"
    "template_token_ids": [[320, 1125, 539, 320], [4812]],  # "a photo of a {} brain"
    "full_stop_token_id": 269,
    "start_token_id": 49406,
    "end_token_id": 49407,
}


class DdptConfig(PreTrainedConfig):
    """Prompts, backbone and loss of `DdptModel`.

    The defaults are the `poster` preset on `openai/clip-vit-base-patch32`.
    `DdptConfig.preset(name)` returns `poster`, `released`, `base` or `tiny`; the last two have a
    small backbone of their own that is trained from scratch and saved with the prompts, and `base`
    sees a slice with its neighbours.

    Raises:
        ValueError: for a misspelt field or a combination that cannot be built.
    """

    model_type = "ddpt"
    sub_configs = {"clip_config": CLIPConfig}  # noqa: RUF012 - the library's own declaration

    # --- Backbone ---------------------------------------------------------------------------
    clip_config: Any = None  # a CLIPConfig or its fields; None: CLIP ViT-B/32
    # Where the frozen backbone comes from when it is not saved with the prompts: repo id or
    # folder, and the revision to pin.
    base_model_name_or_path: str | None = "openai/clip-vit-base-patch32"
    base_model_revision: str | None = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
    freeze_backbone: bool = True
    save_backbone: bool = False

    # --- Prompts ----------------------------------------------------------------------------
    # M learned context vectors, shared by both classes.
    num_context_tokens: int = 16
    # Poster: class word between the two halves of the context. Released: "end".
    class_token_position: Literal["middle", "end"] = "middle"
    # Whose embeddings of start, class word, full stop and end stand around the learned context:
    # the backbone's, or (True) rows stored with the prompts, as the released prompt files have
    # them. Fixed sentences always use the backbone's.
    stored_prompt_words: bool = False
    # Learned visual tokens in each layer but the last, which gets class-aware prompts instead.
    num_visual_prompts: int = 10
    # Free tokens beside the visual ones for the class-aware prompts to attend to, and the width
    # of that attention.
    num_free_tokens: int = 10
    class_attention_dim: int = 32

    # --- Words, as token ids of the backbone's vocabulary; None: CLIP_TOKENS --------------------
    class_token_ids: Any = None  # healthy, unhealthy: one list of ids each
    template_token_ids: Any = None  # ids before and after the class word
    full_stop_token_id: Any = None
    start_token_id: Any = None
    end_token_id: Any = None

    # --- Loss and heatmap -----------------------------------------------------------------------
    class_prompt_weight: float = 0.3  # eta
    # Weight of the cross entropy of the logits in epochs with guidance (released recipe).
    guided_logits_weight: float = 0.1
    heatmap: Literal["cls_attention", "attention_rollout", "relevance"] = "cls_attention"
    # 1, or 8 for the geometric mean over all flips and quarter turns of a slice. The poster and the
    # released code take 1; small backbones localise better when eight turned copies must agree.
    heatmap_views: Literal[1, 8] = 1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        reject_misspelt_fields(self, kwargs)
        if self.clip_config is None:
            self.clip_config = CLIPConfig()
        elif isinstance(self.clip_config, dict):
            self.clip_config = CLIPConfig(**self.clip_config)
        for name, value in CLIP_TOKENS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Check the combination of fields; raises ValueError with the offending values."""
        reject_unknown_choices(self)
        if self.num_context_tokens % 2:
            raise ValueError(
                f"num_context_tokens must be even to put the class word in the middle, got "
                f"{self.num_context_tokens}."
            )
        longest = max(len(ids) for ids in self.class_token_ids) + self.num_context_tokens + 3
        room = self.clip_config.text_config.max_position_embeddings
        if longest > room:
            raise ValueError(
                f"context, class word, full stop, start and end need {longest} tokens, but the "
                f"backbone's text tower has {room}; lower num_context_tokens."
            )
        if not self.freeze_backbone and not self.save_backbone:
            raise ValueError(
                "a trained backbone must be saved with the prompts: set save_backbone=True "
                "where freeze_backbone=False."
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "DdptConfig":
        """Return the preset `poster`, `released`, `base` or `tiny`, some fields replaced."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}.")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_clip(
        cls, name_or_path: str, revision: str | None = None, **fields: Any
    ) -> "DdptConfig":
        """Return a configuration for any `CLIPModel` repo id or folder."""
        clip_config = CLIPConfig.from_pretrained(name_or_path, revision=revision or "main")
        return cls(
            clip_config=clip_config,
            base_model_name_or_path=name_or_path,
            base_model_revision=revision,
            **fields,
        )

    def set_words(self, tokenizer: Any, healthy: str, unhealthy: str, template: str) -> None:
        """Replace the words by others of a tokenizer; `template` holds one `{}`.

        Raises:
            ValueError: for a template without exactly one `{}`.
        """
        if template.count("{}") != 1:
            raise ValueError(f"the template must hold exactly one {{}}, got {template!r}.")

        def ids(text: str) -> list[int]:
            return list(tokenizer(text.strip(), add_special_tokens=False).input_ids)

        self.class_token_ids = [ids(healthy), ids(unhealthy)]
        self.template_token_ids = [ids(part) for part in template.split("{}")]
        self.full_stop_token_id = ids(".")[0]
        self.start_token_id = tokenizer.bos_token_id
        self.end_token_id = tokenizer.eos_token_id
        self.validate_architecture()


def tiny_clip_config(num_channels: int = 1) -> dict[str, Any]:
    """A backbone of about 0.4 M parameters that two cores can train from scratch."""
    return {
        "projection_dim": 64,
        "vision_config": {
            "image_size": 96,
            "patch_size": 8,
            "num_channels": num_channels,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "text_config": {
            "vocab_size": 9,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    }


TINY: dict[str, Any] = {
    "clip_config": tiny_clip_config(),
    "base_model_name_or_path": None,
    "base_model_revision": None,
    "freeze_backbone": False,
    "save_backbone": True,
    "num_visual_prompts": 4,
    "num_free_tokens": 4,
    "class_token_ids": [[4], [5]],
    "template_token_ids": [[6], [7]],
    "full_stop_token_id": 3,
    "start_token_id": 1,
    "end_token_id": 2,
    "heatmap": "attention_rollout",
    "heatmap_views": 8,
}
PRESETS: dict[str, dict[str, Any]] = {
    "poster": {},
    "released": {"class_token_position": "end"},
    "base": {**TINY, "clip_config": tiny_clip_config(num_channels=3)},
    "tiny": TINY,
}
