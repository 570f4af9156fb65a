"""Refine pseudo-masks with a prompted segmenter (SAM, MedSAM): box or points -> mask."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..remote_files import without_waiting_for_hub
from ..scans.background import index_box

Mask = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x of left, y of top, x of right, y of bottom in px


def bounding_box(mask: Mask, margin: float = 0.05) -> Box | None:
    """Return the box of a mask plus `margin` of its longer side, inside the slice; None if empty.

    The released code adds 0 to 19 px drawn without a seed; a fixed share gives the same box twice.
    """
    box = index_box(mask)
    if box is None:
        return None
    height, width = mask.shape
    top, bottom, left, right = box[0].start, box[0].stop, box[1].start, box[1].stop
    pad = margin * max(bottom - top, right - left)
    return (
        float(max(left - pad, 0)),
        float(max(top - pad, 0)),
        float(min(right + pad, width)),
        float(min(bottom + pad, height)),
    )


def sample_points(mask: Mask, count: int, seed: int) -> NDArray[np.float32] | None:
    """Return `count` seeded points (x, y) in px on a mask, (count, 2); None if it is empty."""
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

        with without_waiting_for_hub(name_or_path):
            model = SamModel.from_pretrained(name_or_path, revision=revision or "main")
            processor = SamImageProcessorPil.from_pretrained(
                name_or_path, revision=revision or "main"
            )
        return cls(model, processor, prompt, seed)

    def segment(self, image: NDArray[np.float32], pseudo_mask: Mask) -> Mask:
        """Return the mask (H, W) of a slice (H, W), from a prompt made of its pseudo-mask.

        Raises:
            ValueError: for a pseudo-mask of another shape than the slice.
        """
        # Above 0.5 as it is. The released code stretches each mask to [0, 1] first, which makes an
        # empty mask impossible.
        return (self.score(image, pseudo_mask) > 0.5).astype(np.uint8)

    @torch.inference_mode()
    def score(self, image: NDArray[np.float32], pseudo_mask: Mask) -> NDArray[np.float32]:
        """Return each pixel's probability (H, W) to lie in the mask; arguments as `segment`."""
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
        """Return box or points of a pseudo-mask in the pixels of the segmenter's resized input."""
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
    """Return a slice (H, W) of any scale as 8-bit grey RGB (H, W, 3), as SAM expects it."""
    low, high = float(image.min()), float(image.max())
    unit = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.repeat((255 * unit).astype(np.uint8)[..., None], 3, axis=2)
