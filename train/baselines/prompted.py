"""SAM, MedSAM and MedSAM2 prompted by stage 1: its pseudo-mask gives a box or points.

Native for SAM (Kirillov et al., ICCV 2023) and MedSAM (Ma et al., Nature Communications 15:654,
2024, made for boxes); adapted for MedSAM2, whose published weights (arXiv 2504.03600 and
2408.00874) are not in transformers' format: give a converted folder, or a Sam2Model repo id.
Follows: prompts from stage 1's thresholded heatmap in the slice's own frame; the map is the
sigmoid.
Leaves out: min-max of the mask and random boxes of the released code. MedSAM's training data may
hold BraTS masks, so its row may carry hidden pixel supervision: read it beside the plain SAM row.
Where no weights can be loaded, a tiny model of the same class is trained in place on image regions,
without any label, and the row says "stand-in".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model, SamConfig, SamImageProcessorPil, SamModel

from modeling_rasalore.pseudo_masks.segmenter import PromptedSegmenter
from modeling_rasalore.scans.background import brain_of
from modeling_rasalore.studies.systems import Image, ScanSlices
from modeling_rasalore.studies.trained import Stage1Heatmap

from .stand_in import learn_regions
from .ts_cam import IMAGENET_MEAN, IMAGENET_STD

STAND_IN_PIXELS = 64
STAND_IN_STEPS = 120


class PromptedByStage1:
    """A prompted segmenter that follows stage 1's heatmaps.

    Args:
        heatmaps: stage 1, whose scores above 0.5 become prompts.
        repo: repo id or folder of a `SamModel` or `Sam2Model`.
        second: whether it is a SAM 2.
        prompt: "box" or "points".
        seed: of the points, and of a stand-in.
    """

    ALL_SEQUENCES: ClassVar[bool] = False
    WHOLE_SCANS: ClassVar[bool] = False
    seconds: float | None = None
    peak_mib: float | None = None

    def __init__(
        self, heatmaps: Stage1Heatmap, repo: str, second: bool, prompt: str, seed: int = 0
    ):
        self.heatmaps, self.see = heatmaps, getattr(heatmaps, "see", None)
        self.weights, self.seed = repo, seed
        try:
            model: nn.Module = (Sam2Model if second else SamModel).from_pretrained(repo)
            processor = SquareProcessor(model) if second else load_processor(repo)
        except (OSError, ValueError):  # no such repo, none reachable, or another format
            self.weights = "stand-in"
            torch.manual_seed(seed)
            model = tiny_sam2() if second else tiny_sam()
            model.config.stand_in = True
            processor = SquareProcessor(model) if second else tiny_processor()
        self.segmenter = PromptedSegmenter(model, processor, prompt, seed)

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """A stand-in learns to outline image regions; published weights stay as they are."""
        if self.weights == "stand-in":
            learn_regions(self.segmenter, slices, STAND_IN_STEPS, self.seed)

    def score(self, slices: ScanSlices) -> list[Image]:
        scores = []
        for image, heatmap in zip(slices, self.heatmaps.score(slices), strict=True):
            pseudo_mask = (heatmap > 0.5).astype(np.uint8)
            score = self.segmenter.score(image, pseudo_mask)
            scores.append(np.where(brain_of(image), score, 0).astype(np.float32))
        return scores

    def save(self, folder: Path) -> None:
        """Write a stand-in; that of a SAM can refine pseudo-masks too (`segmenter=<folder>`)."""
        if self.weights == "stand-in":
            model, processor = self.segmenter.model, self.segmenter.processor
            assert isinstance(model, SamModel | Sam2Model)
            model.save_pretrained(folder)
            if isinstance(processor, SamImageProcessorPil):
                processor.save_pretrained(folder)


class SquareProcessor:
    """Image processor of SAM 2 (its own needs torchvision): resized to a square, no padding."""

    def __init__(self, model: nn.Module):
        config: Any = model.config
        self.pixels = int(config.prompt_encoder_config.image_size)

    def __call__(self, image: np.ndarray, return_tensors: str = "pt") -> dict[str, Any]:
        """`image` (H, W, 3) uint8 as pixel_values (1, 3, p, p), with both sizes."""
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        square = F.interpolate(planes, (self.pixels,) * 2, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return {
            "pixel_values": (square - mean) / std,
            "original_sizes": torch.tensor([image.shape[:2]]),
            "reshaped_input_sizes": torch.tensor([[self.pixels, self.pixels]]),
        }

    def post_process_masks(
        self, masks: Tensor, original_sizes: Tensor, *_: Any, binarize: bool = False
    ) -> list[Tensor]:
        """Logits (1, objects, masks, h, w) -> [(objects, masks, H, W)] in the slice's frame."""
        height, width = (int(side) for side in original_sizes[0])
        return [F.interpolate(masks[0], (height, width), mode="bilinear")]


def load_processor(repo: str) -> Any:
    """The image processor of a SAM repo."""
    return SamImageProcessorPil.from_pretrained(repo)


def tiny_processor() -> SamImageProcessorPil:
    """SAM's own image processor for the tiny model's 64 x 64 pixels."""
    return SamImageProcessorPil(
        size={"longest_edge": STAND_IN_PIXELS},
        pad_size={"height": STAND_IN_PIXELS, "width": STAND_IN_PIXELS},
        mask_size={"longest_edge": STAND_IN_PIXELS},
        mask_pad_size={"height": STAND_IN_PIXELS, "width": STAND_IN_PIXELS},
    )


def tiny_sam() -> SamModel:
    """A SAM of some ten thousand random parameters that looks at 64 x 64 pixels."""
    side = {"image_size": STAND_IN_PIXELS, "patch_size": 8}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = {
        **small,
        **side,
        "output_channels": 32,
        "mlp_dim": 64,
        "num_pos_feats": 16,
    }
    vision |= {"window_size": 4, "global_attn_indexes": [1]}
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, **side, "mask_input_channels": 4},
        mask_decoder_config={**small, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    )
    return SamModel(config)


def tiny_sam2() -> Sam2Model:
    """A SAM 2 of some ten thousand random parameters that looks at 64 x 64 pixels."""
    widths = [8, 16, 32, 64]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "image_size": [STAND_IN_PIXELS] * 2,
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3],  # no first block of a stage: those pool within windows
        "window_positional_embedding_background_size": [4, 4],
    }
    sides = [[STAND_IN_PIXELS // scale] * 2 for scale in (4, 8, 16)]
    vision: dict[str, Any] = {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    vision |= {"backbone_feature_sizes": sides, "fpn_hidden_size": 32}
    decoder: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder |= {"mlp_dim": 64, "iou_head_hidden_dim": 32}
    # Else evaluation swaps a mask without sharp borders for one of three that nothing has trained.
    decoder["dynamic_multimask_via_stability"] = False
    prompts = {"hidden_size": 32, "image_size": STAND_IN_PIXELS, "mask_input_channels": 4}
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    return Sam2Model(config)
