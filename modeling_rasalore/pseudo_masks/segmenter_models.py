"""Load a prompted segmenter's model and image processor, of the class that its config.json names.

SAM (Kirillov et al., ICCV 2023), also with MedSAM's weights; SAM 2; and LiteMedSAM.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Sam2Model,
    SamImageProcessorPil,
    SamModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..remote_files import without_waiting_for_hub
from .lite_medsam import LiteMedSamModel

MODELS: dict[str, type[PreTrainedModel]] = {
    "sam": SamModel,
    "sam2": Sam2Model,
    "sam2_video": Sam2Model,  # what the published SAM 2 folders call themselves
    "lite_medsam": LiteMedSamModel,
}


class SquareProcessor:
    """Image processor of SAM 2 (its own needs torchvision): resized to a square, no padding."""

    def __init__(self, model: PreTrainedModel):
        config: Any = model.config
        self.pixels = int(config.prompt_encoder_config.image_size)

    def __call__(self, image: NDArray[np.uint8], return_tensors: str = "pt") -> dict[str, Any]:
        """Return `image` (H, W, 3) as pixel_values (1, 3, p, p), with both sizes."""
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        square = F.interpolate(planes, (self.pixels,) * 2, mode="bilinear", antialias=True)
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        return {
            "pixel_values": (square - mean) / std,
            "original_sizes": torch.tensor([image.shape[:2]]),
            "reshaped_input_sizes": torch.tensor([[self.pixels, self.pixels]]),
        }

    def post_process_masks(
        self, masks: Tensor, original_sizes: Tensor, *_: Any, binarize: bool = False
    ) -> list[Tensor]:
        """Return logits (1, objects, masks, h, w) as [(objects, masks, H, W)] in slice pixels."""
        height, width = (int(side) for side in original_sizes[0])
        return [F.interpolate(masks[0], (height, width), mode="bilinear")]


def load_segmenter_model(name: str, revision: str | None = None) -> tuple[PreTrainedModel, Any]:
    """Return model, in evaluation mode, and image processor of a repo id or folder.

    Raises:
        OSError: there is none, or it cannot be reached.
        ValueError: it holds another kind of model.
    """
    revision = revision or "main"
    with without_waiting_for_hub(name):
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        kind = config.get("model_type")
        if kind not in MODELS:
            raise ValueError(
                f"a segmenter is one of {', '.join(MODELS)}, by model_type of its config.json, got "
                f"{kind!r} in {name}."
            )
        model = MODELS[kind].from_pretrained(name, revision=revision)
        if isinstance(model, Sam2Model):
            return model.eval(), SquareProcessor(model)
        processor = SamImageProcessorPil.from_pretrained(name, revision=revision)
    return model.eval(), processor
