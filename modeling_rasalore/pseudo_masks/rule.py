"""Heatmap -> pseudo-mask -> box or points -> mask of a prompted segmenter (SAM, MedSAM, SAM 2).

All masks are in the slice's own pixel frame: prompts are made where they are used, so no
coordinate is ever passed between frames of different size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

# How a heatmap is scaled before its threshold. The poster divides by the maximum; rollout and
# relevance have no zero of their own, so their range inside the brain is used.
SCALING = {"cls_attention": "maximum", "attention_rollout": "geometric", "relevance": "range"}


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
        filter_reach: of the guided filter; 0 leaves it out, as the poster does.
    """

    scaling: str
    threshold: float = 0.5
    filter_reach: float = 0.0

    def scores(
        self, heatmap: NDArray[np.float32], image: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Scores (H, W) of one slice and its heatmap, both (H, W); 0 outside the brain."""
        brain = image > 0
        heat = scale_heatmap(heatmap, brain, self.scaling)
        if self.filter_reach:
            heat = guided_filter(heat, image, brain, self.filter_reach)
        # Straight from 0 over the threshold to 1: the order of pixels stays.
        return np.interp(heat, (0, self.threshold, 1), (0, 0.5, 1)).astype(np.float32)
