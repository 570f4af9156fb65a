"""Files of the released layout, for the tests of the converter: random numbers, true names."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_ddpt import CLIP, shake
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from modeling_rasalore import RasaloreConfig, RasaloreModel

Weights = dict[str, Tensor]
Prompts = dict[str, Weights]
ENCODER, DECODER, TABLE = "Encoder_Model.pth", "Decoder_Model.pth", "Candidate_Prompt_Embedding.pt"


# --- Stage 2 ----------------------------------------------------------------------------------
def random_rasalore() -> RasaloreModel:
    """The released preset, every number of it random."""
    model = RasaloreModel(RasaloreConfig.preset("released")).eval()
    generator = torch.Generator().manual_seed(3)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.1 * torch.rand(value.shape, generator=generator) + 0.01)
        else:
            value.fill_(7)
    return model


# Our names -> the released ones, as regular expressions.
RELEASED_NAMES = [
    (r"^encoder\.blocks\.(\d)\.norm", lambda m: f"e{int(m[1]) + 1}.norm"),
    (r"^encoder\.blocks\.(\d)\.(conv.)", lambda m: f"e{int(m[1]) + 1}.conv.{m[2]}"),
    (r"^refiner\.conv_norm", "adapter1.conv.1"),
    (r"^refiner\.conv\b", "adapter1.conv.0"),
    (r"^refiner\.up(\d)_norm", r"adapter1.upconv\1.1"),
    (r"^refiner\.up(\d)", r"adapter1.upconv\1.0"),
    (r"^refiner\.skip", "adapter1.skip_conv"),
    (r"^point_head\.layers", "adapter2.FF"),
    (r"^spatial_attention\.output", "adapter2.output_proj"),
    (r"^spatial_attention\.noise\.noise", "adapter2.positional_noise_encoding"),
    (r"^mask_decoder\.output", "cross_attention.out_proj"),
    (r"^mask_decoder\.up1", "upsample.0"),
    (r"^mask_decoder\.up2", "upsample.2"),
    (r"^mask_decoder\.head", "upsample.4"),
    (r"^mask_decoder\.point_norm", "norm1"),
    (r"^mask_decoder\.similarity_norm", "norm2"),
]


def released_files(model: RasaloreModel) -> tuple[Weights, Weights, Tensor]:
    """What the released training would store of these weights: encoder, decoder and table."""
    files: dict[str, Weights] = {"encoder": {}, "decoder": {}}
    state = model.state_dict()
    table = state.pop("location_embeddings.table")
    files["decoder"]["positional_encoding"] = (
        state.pop("mask_decoder.noise.noise").reshape(1, 64, 64, 256).permute(0, 3, 1, 2)
    )
    for kind in ("weight", "bias"):
        joint = [state.pop(f"mask_decoder.{part}.{kind}") for part in ("query", "key", "value")]
        files["decoder"][f"cross_attention.in_proj_{kind}"] = torch.cat(joint)
        for part in ("query", "key", "value"):
            rows = state.pop(f"spatial_attention.{part}.{kind}")
            for head in range(4):
                name = f"adapter2.{part}_projections.{head}.{kind}"
                files["encoder"][name] = rows[256 * head : 256 * (head + 1)]
    for name, value in state.items():
        released = name
        for pattern, replacement in RELEASED_NAMES:
            released = re.sub(pattern, replacement, released)
        files["decoder" if name.startswith("mask_decoder") else "encoder"][released] = value
    return files["encoder"], files["decoder"], table


def save_rasalore(folder: Path, encoder: Any, decoder: Any, table: Any) -> list[Path]:
    for name, value in ((ENCODER, encoder), (DECODER, decoder), (TABLE, table)):
        torch.save(value, folder / name)
    return [folder / name for name in (ENCODER, DECODER, TABLE)]


# --- Stage 1 ----------------------------------------------------------------------------------
def save_clip(folder: Path, **text_fields: Any) -> Path:
    """A small random CLIP."""
    text_config = {**CLIP["text_config"], **text_fields}
    model = CLIPModel(CLIPConfig(**{**CLIP, "text_config": text_config}))
    shake(model)
    model.save_pretrained(folder)
    return folder


def random_prompts(context: int = 4, visual: int = 3, free: int = 5, inner: int = 6) -> Prompts:
    """The three released state dicts for the small CLIP, every number random."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "prompt_learner": {
            "ctx": (context, 8),
            "token_prefix": (2, 1, 8),
            "token_suffix": (2, 20 - 1 - context, 8),
        },
        "image_encoder.transformer.ctx_learner": {"ctx": (2, visual, 16)},
        "image_encoder.transformer.extractor": {
            "ctx": (1, free, 16),
            "meta_nets.0.weight": (16, 12),
            "meta_nets.0.bias": (16,),
            "attns.0.kmlp.weight": (inner, 16),
            "attns.0.qmlp.weight": (inner, 16),
            "attns.0.vmlp.weight": (16, 16),
            "lns.0.weight": (16,),
            "lns.0.bias": (16,),
            "classfiers.0.weight": (2, 16),
            "lns2.0.weight": (16,),
            "lns2.0.bias": (16,),
        },
    }
    generator = torch.Generator().manual_seed(6)
    return {
        folder: {name: torch.randn(shape, generator=generator) for name, shape in tensors.items()}
        for folder, tensors in shapes.items()
    }


def training_state() -> dict[str, Any]:
    """What the released training keeps beside the weights: optimizer, schedulers, a score."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.step()
    following = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60.0)
    return {
        "optimizer": optimizer.state_dict(),
        # A warm-up scheduler's state holds the scheduler that follows, as a whole object.
        "scheduler": {"successor": following, "warmup_epoch": 1, "base_lrs": [0.1]},
        "val_result": np.float64(0.9),
    }


def save_prompts(folder: Path, prompts: dict[str, Any], epoch: int = 60) -> Path:
    for name, weights in prompts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        content = {"state_dict": weights, "epoch": epoch, **training_state()}
        torch.save(content, folder / name / f"model.pth.tar-{epoch}")
    return folder
