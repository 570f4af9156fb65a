"""Heatmap -> pseudo-mask -> box or points -> mask of a prompted segmenter (SAM, MedSAM, SAM 2).

All masks are in the slice's own pixel frame: prompts are made where they are used, so no
coordinate is ever passed between frames of different size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

Mask = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x of left, y of top, x of right, y of bottom in px

# How a heatmap is scaled before its threshold. The poster divides by the maximum; rollout and
# relevance have no zero of their own, so their range inside the brain is used.
SCALING = {"cls_attention": "maximum", "attention_rollout": "geometric", "relevance": "range"}
DELETED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)


def scale_heatmap(
    heatmap: NDArray[np.float32], brain: NDArray[np.bool_], scaling: str
) -> NDArray[np.float32]:
    """Heatmap (H, W) scaled to [0, 1] and 0 outside the brain.

    Args:
        brain: True where the slice shows brain, (H, W).
        scaling: "maximum" (divide by it), "range" (minimum to maximum inside the brain) or
            "geometric" (median to maximum of the logarithm, 0 below: rollout multiplies attention
            through the layers, so its scale is multiplicative, and half of a brain is healthy).

    Raises:
        ValueError: for another scaling.
    """
    if scaling not in ("maximum", "range", "geometric"):
        raise ValueError(f"scaling must be 'maximum', 'range' or 'geometric', got {scaling!r}.")
    if not brain.any():
        return np.zeros_like(heatmap)
    if scaling == "geometric":
        # Brain just outside the processor's box has heat 0: it counts as the coldest inside.
        positive = heatmap[brain & (heatmap > 0)]
        heatmap = np.log(np.maximum(heatmap, positive.min() if len(positive) else 1))
    low = {"maximum": 0.0, "range": heatmap[brain].min(), "geometric": np.median(heatmap[brain])}[
        scaling
    ]
    spread = heatmap[brain].max() - low
    scaled = (heatmap - low) / spread if spread > 0 else np.zeros_like(heatmap)
    return np.where(brain, scaled.clip(min=0), 0).astype(np.float32)


def guided_filter(
    heatmap: NDArray[np.float32],
    image: NDArray[np.float32],
    brain: NDArray[np.bool_],
    reach: float,
    epsilon: float = 0.003,
) -> NDArray[np.float32]:
    """Heatmap (H, W) whose edges follow the slice's own: a guided filter (He, Sun, Tang 2013).

    Around every pixel the heat is fitted as a linear function of intensity, so it keeps its place
    but takes over outlines that patches are too coarse for. Bright and dark lesions count alike,
    and no mask is needed.

    Args:
        image: the slice, (H, W), any scale.
        brain: True where the slice shows brain, (H, W); all else is left out of the fit and 0.
        reach: standard deviation of the fit's window, in shares of the square root of the brain's
            area: 0.06 is about 9 mm, a little more than half a patch of the tiny backbone.
        epsilon: variance of intensity in [0, 1] below which an edge is taken for noise.
    """
    if not brain.any():
        return np.zeros_like(heatmap)
    sigma = reach * float(np.sqrt(brain.sum()))
    guide = (image - image[brain].min()) / max(float(np.ptp(image[brain])), 1e-12)
    weight = gaussian_filter(brain.astype(np.float32), sigma) + 1e-6

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return gaussian_filter(np.where(brain, values, 0), sigma) / weight

    mean_guide, mean_heat = mean(guide), mean(heatmap)
    covariance = mean(guide * heatmap) - mean_guide * mean_heat
    slope = covariance / (mean(guide**2) - mean_guide**2 + epsilon)
    filtered = mean(slope) * guide + mean(mean_heat - slope * mean_guide)
    return np.where(brain, filtered.clip(0, 1), 0).astype(np.float32)


@dataclass(frozen=True)
class PseudoMaskRule:
    """From a heatmap to scores in [0, 1], and from scores above 0.5 to a pseudo-mask.

    Attributes:
        scaling: of the heatmap, see `scale_heatmap`.
        threshold: the scaled heat that becomes 0.5.
        guidance: reach of the guided filter; 0 leaves it out, as the poster does.
    """

    scaling: str
    threshold: float = 0.5
    guidance: float = 0.0

    def scores(
        self, heatmap: NDArray[np.float32], image: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Scores (H, W) of one slice and its heatmap, both (H, W); 0 outside the brain."""
        brain = image > 0
        heat = scale_heatmap(heatmap, brain, self.scaling)
        if self.guidance:
            heat = guided_filter(heat, image, brain, self.guidance)
        # Straight from 0 over the threshold to 1: the order of pixels stays.
        return np.interp(heat, (0, self.threshold, 1), (0, 0.5, 1)).astype(np.float32)


def deletion_scores(
    heatmaps: Tensor,
    pixel_values: Tensor,
    unhealthy_probability: Callable[[Tensor], Tensor],
    shares: Sequence[float] = DELETED_SHARES,
) -> Tensor:
    """How much the unhealthy probability falls when the hottest pixels are removed, (B,).

    The mean over `shares` of the brain's area; a faithful heatmap scores high. No mask is needed,
    so this may choose between heatmaps. Removed pixels take the slice's median brain value.

    Args:
        heatmaps: (B, h, w), any scale.
        pixel_values: (B, C, H, W), as given to the classifier.
        unhealthy_probability: (B, C, H, W) -> (B,).
    """
    size = pixel_values.shape[-2:]
    heat = F.interpolate(heatmaps[:, None].float(), size, mode="bilinear")[:, 0].flatten(1)
    brain = is_brain(pixel_values).flatten(1)
    heat = torch.where(brain, heat, -torch.inf)
    ranks = heat.argsort(1, descending=True).argsort(1)  # 0 = hottest
    values = torch.where(brain, pixel_values.mean(1).flatten(1), torch.nan)
    fill = values.nanmedian(1).values[:, None, None, None]
    before = unhealthy_probability(pixel_values)
    falls = []
    for share in shares:
        deleted = (ranks < share * brain.sum(1, keepdim=True)).unflatten(1, size)[:, None]
        falls.append(before - unhealthy_probability(torch.where(deleted, fill, pixel_values)))
    return torch.stack(falls).mean(0)


def is_brain(pixel_values: Tensor) -> Tensor:
    """Pixels above a slice's darkest value, (B, H, W): skull-stripped background is constant."""
    intensity = pixel_values.mean(1)
    low = intensity.amin((1, 2), keepdim=True)
    spread = intensity.amax((1, 2), keepdim=True) - low
    return intensity > low + 1e-3 * spread


def choose_heatmap(scores: dict[str, float]) -> str:
    """The kind of heatmap with the highest deletion score; ties go to the first."""
    return max(scores, key=lambda kind: scores[kind])


# --- Prompted segmentation --------------------------------------------------------------------


def bounding_box(mask: Mask, margin: float = 0.05) -> Box | None:
    """Box around a mask plus `margin` of its longer side, inside the slice; None if it is empty.

    The released code adds 0 to 19 px drawn without a seed; a fixed share gives the same box twice.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    pad = margin * max(bottom - top, right - left)
    return (
        float(max(left - pad, 0)),
        float(max(top - pad, 0)),
        float(min(right + pad, width)),
        float(min(bottom + pad, height)),
    )


def sample_points(mask: Mask, count: int, seed: int) -> NDArray[np.float32] | None:
    """`count` seeded points (x, y) in px on a mask, (count, 2); None if it is empty."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=len(rows) < count)
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)


class PromptedSegmenter:
    """A SAM-like model prompted by pseudo-masks; an empty pseudo-mask gives an empty mask.

    Args:
        model: `SamModel` (also with MedSAM weights).
        processor: a SAM image processor, its own preprocessing untouched.
        prompt: "box" around the pseudo-mask, or "points" on it.
        seed: of the points.
    """

    POINTS = 10

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        prompt: str = "box",
        seed: int = 0,
    ):
        if prompt not in ("box", "points"):
            raise ValueError(f"prompt must be 'box' or 'points', got {prompt!r}.")
        self.model, self.processor = model.eval(), processor
        self.prompt, self.seed = prompt, seed

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        prompt: str = "box",
        seed: int = 0,
        revision: str | None = None,
    ) -> "PromptedSegmenter":
        """Load a `SamModel` repo id or folder, e.g. flaviagiammarino/medsam-vit-base."""
        from transformers import SamImageProcessorPil, SamModel

        return cls(
            SamModel.from_pretrained(name_or_path, revision=revision or "main"),
            SamImageProcessorPil.from_pretrained(name_or_path, revision=revision or "main"),
            prompt,
            seed,
        )

    def segment(self, image: NDArray[np.float32], pseudo_mask: Mask) -> Mask:
        """Mask (H, W) of one slice (H, W), from a prompt made of its pseudo-mask.

        Raises:
            ValueError: for a pseudo-mask of another shape than the slice.
        """
        # Above 0.5 as it is. The released code stretches each mask to [0, 1] first, which makes an
        # empty mask impossible.
        return (self.score(image, pseudo_mask) > 0.5).astype(np.uint8)

    @torch.inference_mode()
    def score(self, image: NDArray[np.float32], pseudo_mask: Mask) -> NDArray[np.float32]:
        """Probability of each pixel (H, W) to lie in the prompted mask; arguments as `segment`."""
        if pseudo_mask.shape != image.shape:
            raise ValueError(
                f"a pseudo-mask must have its slice's shape {image.shape}, got {pseudo_mask.shape}."
            )
        if not pseudo_mask.any():
            return np.zeros(image.shape, np.float32)
        inputs = self.processor(to_rgb(image), return_tensors="pt")
        device = next(self.model.parameters()).device
        outputs = self.model(
            pixel_values=inputs["pixel_values"].to(device, torch.float32),
            **self.prompts(pseudo_mask, inputs, device),
            multimask_output=False,
        )
        logits = self.processor.post_process_masks(
            outputs.pred_masks.float().cpu(),
            inputs["original_sizes"],
            inputs["reshaped_input_sizes"],
            binarize=False,
        )
        return logits[0][0, 0].sigmoid().numpy()

    def prompts(self, pseudo_mask: Mask, inputs: Any, device: torch.device) -> dict[str, Tensor]:
        """Box or points of a pseudo-mask in the pixels of the segmenter's resized input."""
        height, width = (float(v) for v in inputs["original_sizes"][0])
        new_height, new_width = (float(v) for v in inputs["reshaped_input_sizes"][0])
        scale = torch.tensor([new_width / width, new_height / height])
        if self.prompt == "box":
            box = torch.tensor(bounding_box(pseudo_mask)).view(2, 2) * scale
            return {"input_boxes": box.view(1, 1, 4).to(device)}
        points = torch.from_numpy(sample_points(pseudo_mask, self.POINTS, self.seed)) * scale
        labels = torch.ones(1, 1, self.POINTS, dtype=torch.long)
        return {
            "input_points": points.view(1, 1, -1, 2).to(device),
            "input_labels": labels.to(device),
        }


def to_rgb(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Slice (H, W) of any scale as 8-bit grey RGB (H, W, 3), which SAM's processors expect."""
    low, high = float(image.min()), float(image.max())
    unit = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.repeat((255 * unit).astype(np.uint8)[..., None], 3, axis=2)
