"""Define LiteMedSAM: SAM's prompt encoder and mask decoder behind a TinyViT.

Ma, He, Li, Han, You, Wang, "Segment Anything in Medical Images", Nature Communications 15:654,
2024; the small version comes from the same authors (github.com/bowang-lab/MedSAM, LiteMedSAM). It
was trained on boxes around true masks, very likely those of BraTS, WMH and ISLES among them.
"""

from typing import Any, ClassVar

from transformers import SamConfig, SamImageProcessorPil, SamModel
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPreTrainedModel,
    SamPromptEncoder,
)

from .tiny_vit import TinyVitConfig, TinyVitEncoder


class LiteMedSamConfig(SamConfig):
    """A `SamConfig` whose `vision_config` is a TinyViT's; the defaults are the published sizes."""

    model_type = "lite_medsam"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        **SamConfig.sub_configs_defaults,
        "vision_config": TinyVitConfig,
    }
    vision_config: Any = None
    mask_decoder_config: Any = None
    contaminated: bool = True  # masks of test patients may be among what it learned from


class LiteMedSamModel(SamModel):
    """A `SamModel` with another vision encoder; arguments and outputs are SAM's."""

    config_class = LiteMedSamConfig

    def __init__(self, config: LiteMedSamConfig):
        SamPreTrainedModel.__init__(self, config)  # SAM's own would build its large encoder first
        self.shared_image_embedding = SamPositionalEmbedding(config.vision_config)
        self.vision_encoder = TinyVitEncoder(config.vision_config)  # type: ignore[assignment]
        self.prompt_encoder = SamPromptEncoder(config)
        config.mask_decoder_config._attn_implementation = config._attn_implementation
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.post_init()


def lite_medsam_config(**vision: Any) -> LiteMedSamConfig:
    """Return the published configuration, or one whose TinyViT has other sizes."""
    sizes = TinyVitConfig(**vision)
    prompts = {"image_size": sizes.image_size, "patch_size": sizes.reduction}
    return LiteMedSamConfig(
        vision_config=sizes,
        prompt_encoder_config={**prompts, "hidden_size": sizes.output_channels},
        # PyTorch's own epsilon: SAM's layers here were not those of SAM's vision encoder.
        mask_decoder_config={"hidden_size": sizes.output_channels, "layer_norm_eps": 1e-5},
    )


def lite_medsam_processor(config: SamConfig) -> SamImageProcessorPil:
    """Return what prepares slices: resized to fit the square, padded, from 0 to 1, unnormalised."""
    vision: Any = config.vision_config
    side = vision.image_size
    square = {"height": side, "width": side}
    return SamImageProcessorPil(
        size={"longest_edge": side},
        pad_size=square,
        mask_size={"longest_edge": side},
        mask_pad_size=square,
        do_normalize=False,
    )
