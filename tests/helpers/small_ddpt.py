"""A stage-1 model small enough to be checked by hand, and slices for it."""

from typing import Any

import torch
from torch import Tensor

from modeling_rasalore import DdptConfig, DdptModel

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
