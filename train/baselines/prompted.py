"""SAM, MedSAM, MedSAM2 and LiteMedSAM prompted by stage 1: its pseudo-mask gives a box or points.

Native for SAM (Kirillov et al., ICCV 2023) and MedSAM (Ma et al., Nature Communications 15:654,
2024, made for boxes); adapted for MedSAM2, whose published weights (arXiv 2504.03600 and
2408.00874) are not in transformers' format: give a converted folder, or a Sam2Model repo id.
LiteMedSAM is the folder of `rasalore convert-released --litemedsam`.
Follows: prompts from stage 1's thresholded heatmap in the slice's own frame; the map is the
sigmoid.
Leaves out: min-max of the mask and random boxes of the released code. The margin around a box is
the one whose masks the segmenter itself expects to overlap best, on unhealthy training slices.
MedSAM's training data may hold BraTS masks, so its row may carry hidden pixel supervision: read it
beside the plain SAM row. LiteMedSAM's very likely do, and its rows say so; it knows boxes only.
Where no weights can be loaded, a tiny model of the same class is trained in place on image regions,
without any label, and the row says "stand-in". LiteMedSAM has none.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import Sam2Config, Sam2Model, SamConfig, SamImageProcessorPil, SamModel

from modeling_rasalore.benchmark.systems import Image, ScanSlices, SeenSlices, select
from modeling_rasalore.benchmark.trained import Stage1Heatmap
from modeling_rasalore.data.labels import UNHEALTHY
from modeling_rasalore.evaluation.tables import CONTAMINATED
from modeling_rasalore.files import write_json
from modeling_rasalore.pseudo_masks.segmenter import Mask, PromptedSegmenter, choose_margin
from modeling_rasalore.pseudo_masks.segmenter_models import SquareProcessor
from modeling_rasalore.scans.background import brain_of

from .stand_in import learn_regions

STAND_IN_PIXELS = 64
STAND_IN_STEPS = 120
MARGIN_SLICES = 24  # that choose a box margin
MARGIN_FILE = "system.json"
StandIn = Callable[[], SamModel | Sam2Model]


class PromptedByStage1:
    """A prompted segmenter that follows stage 1's heatmaps.

    Args:
        heatmaps: stage 1, whose scores above 0.5 become prompts.
        repo: repo id or folder of a segmenter.
        stand_in: makes the tiny model that takes its place where it cannot be loaded; None: that is
            an error.
        prompt: "box" or "points".
        seed: of the points, and of a stand-in.
    """

    ALL_SEQUENCES: ClassVar[bool] = False
    whole_scans: bool = False
    seconds: float | None = None
    peak_mib: float | None = None

    def __init__(
        self,
        heatmaps: Stage1Heatmap,
        repo: str,
        stand_in: StandIn | None,
        prompt: str,
        seed: int = 0,
    ):
        self.heatmaps, self.see = heatmaps, heatmaps.see
        self.seed = seed
        self.expected_overlaps: dict[float, float] = {}
        try:
            self.segmenter = PromptedSegmenter.from_pretrained(repo, prompt, seed)
            self.weights = CONTAMINATED if self.segmenter.contaminated else repo
        except (OSError, ValueError):  # no such repo, none reachable, or another format
            if stand_in is None:
                raise
            self.weights = "stand-in"
            torch.manual_seed(seed)
            model = stand_in()
            model.config.stand_in = True
            processor = SquareProcessor(model) if isinstance(model, Sam2Model) else tiny_processor()
            self.segmenter = PromptedSegmenter(model, processor, prompt, seed)

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """Teach a stand-in to outline image regions; published weights choose their margin."""
        if self.weights == "stand-in":
            learn_regions(self.segmenter, slices, STAND_IN_STEPS, self.seed)
            return
        unhealthy = [number for number, label in enumerate(labels) if label == UNHEALTHY]
        chosen = unhealthy[:: max(1, len(unhealthy) // MARGIN_SLICES)][:MARGIN_SLICES]
        prompted = self.pseudo_masks(select(slices, chosen))
        self.expected_overlaps = choose_margin(self.segmenter, prompted)

    def pseudo_masks(self, slices: SeenSlices) -> Iterator[tuple[Image, Mask]]:
        """Yield slices with the masks that prompt on them."""
        for image, heatmap in zip(slices, self.heatmaps.score(slices), strict=True):
            yield image, (heatmap > 0.5).astype(np.uint8)

    def score(self, slices: ScanSlices) -> list[Image]:
        scores = []
        for image, pseudo_mask in self.pseudo_masks(slices):
            score = self.segmenter.score(image, pseudo_mask)
            scores.append(np.where(brain_of(image), score, 0).astype(np.float32))
        return scores

    def save(self, folder: Path) -> None:
        """Write a stand-in, which can refine pseudo-masks too (`segmenter=<folder>`), or a margin.

        The margin is written with the overlaps that chose it.
        """
        if self.weights != "stand-in":
            folder.mkdir(parents=True, exist_ok=True)
            chosen = {"margin": self.segmenter.margin, "expected_overlaps": self.expected_overlaps}
            write_json(folder / MARGIN_FILE, chosen)
            return
        model, processor = self.segmenter.model, self.segmenter.processor
        assert isinstance(model, SamModel | Sam2Model)
        model.save_pretrained(folder)
        if isinstance(processor, SamImageProcessorPil):
            processor.save_pretrained(folder)

    def read_margin(self, folder: Path) -> None:
        """Take the margin that `save` wrote."""
        self.segmenter.margin = json.loads((folder / MARGIN_FILE).read_text("utf-8"))["margin"]


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
