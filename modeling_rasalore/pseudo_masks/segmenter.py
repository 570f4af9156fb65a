"""Refine pseudo-masks with a prompted segmenter (SAM, MedSAM): box or points -> mask."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..scans.background import index_box
from .segmenter_models import load_segmenter_model

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x of left, y of top, x of right, y of bottom in px

MARGIN = 0.05  # of the box's longer side, where nothing chooses it
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)


def bounding_box(mask: Mask, margin: float = MARGIN) -> Box | None:
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


@dataclass(frozen=True)
class EmbeddedSlice:
    """What the segmenter's large encoder made of a slice, once for all prompts on it.

    Attributes:
        embeddings: as the model's `get_image_embeddings` returns them.
        sizes: original_sizes and reshaped_input_sizes of the image processor, each (1, 2).
    """

    embeddings: Any
    sizes: dict[str, Tensor]


class PromptedSegmenter:
    """A SAM-like model prompted by pseudo-masks; an empty pseudo-mask gives an empty mask.

    Args:
        model: `SamModel` (also with MedSAM weights), or one with the same calls.
        processor: a SAM image processor, its own preprocessing untouched.
        prompt: "box" around the pseudo-mask, or "points" on it.
        seed: of the points.
        margin: around the box, in shares of its longer side.
    """

    POINTS = 10

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        prompt: str = "box",
        seed: int = 0,
        margin: float = MARGIN,
    ):
        if prompt not in ("box", "points"):
            raise ValueError(f"prompt must be 'box' or 'points', got {prompt!r}.")
        if margin < 0:
            raise ValueError(f"margin must be at least 0, got {margin:g}.")
        self.model, self.processor = model.eval(), processor
        self.prompt, self.seed, self.margin = prompt, seed, margin

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        prompt: str = "box",
        seed: int = 0,
        revision: str | None = None,
        margin: float = MARGIN,
    ) -> "PromptedSegmenter":
        """Load a SAM, SAM 2 or LiteMedSAM, e.g. flaviagiammarino/medsam-vit-base."""
        return cls(*load_segmenter_model(name_or_path, revision), prompt, seed, margin)

    @property
    def contaminated(self) -> bool:
        """Whether it is known to have learned from true masks like those that results show."""
        return bool(getattr(getattr(self.model, "config", None), "contaminated", False))

    def segment(self, image: Image, pseudo_mask: Mask) -> Mask:
        """Return the mask (H, W) of a slice (H, W), from a prompt made of its pseudo-mask.

        Raises:
            ValueError: for a pseudo-mask of another shape than the slice.
        """
        # Above 0.5 as it is. The released code stretches each mask to [0, 1] first, which makes an
        # empty mask impossible.
        return (self.score(image, pseudo_mask) > 0.5).astype(np.uint8)

    def score(self, image: Image, pseudo_mask: Mask) -> Image:
        """Return each pixel's probability (H, W) to lie in the mask; arguments as `segment`."""
        if pseudo_mask.shape != image.shape:
            raise ValueError(
                f"a pseudo-mask must have its slice's shape {image.shape}, got {pseudo_mask.shape}."
            )
        if not pseudo_mask.any():
            return np.zeros(image.shape, np.float32)
        return self.decode(self.embed(image), pseudo_mask)[0]

    @torch.inference_mode()
    def embed(self, image: Image) -> EmbeddedSlice:
        """Return a slice (H, W) as the decoder takes it: nearly all of the computing."""
        inputs = self.processor(to_rgb(image), return_tensors="pt")
        device = next(self.model.parameters()).device
        encoder: Any = self.model
        embeddings = encoder.get_image_embeddings(inputs["pixel_values"].to(device, torch.float32))
        sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes")}
        return EmbeddedSlice(embeddings, sizes)

    @torch.inference_mode()
    def decode(
        self, embedded: EmbeddedSlice, pseudo_mask: Mask, margin: float | None = None
    ) -> tuple[Image, float]:
        """Return each pixel's probability (H, W), and the overlap (IoU) that the model expects.

        Args:
            pseudo_mask: of the same slice, not empty.
            margin: in place of the segmenter's own.
        """
        device = next(self.model.parameters()).device
        outputs = self.model(
            image_embeddings=embedded.embeddings,
            **self.prompts(pseudo_mask, embedded.sizes, device, margin),
            multimask_output=False,
        )
        logits = self.processor.post_process_masks(
            outputs.pred_masks.float().cpu(), *embedded.sizes.values(), binarize=False
        )
        return logits[0][0, 0].sigmoid().numpy(), float(outputs.iou_scores)

    def prompts(
        self, pseudo_mask: Mask, inputs: Any, device: torch.device, margin: float | None = None
    ) -> dict[str, Tensor]:
        """Return box or points of a pseudo-mask in the pixels of the segmenter's resized input."""
        height, width = (float(v) for v in inputs["original_sizes"][0])
        new_height, new_width = (float(v) for v in inputs["reshaped_input_sizes"][0])
        scale = torch.tensor([new_width / width, new_height / height])
        if self.prompt == "box":
            corners = bounding_box(pseudo_mask, self.margin if margin is None else margin)
            box = torch.tensor(corners).view(2, 2) * scale
            return {"input_boxes": box.view(1, 1, 4).to(device)}
        points = torch.from_numpy(sample_points(pseudo_mask, self.POINTS, self.seed)) * scale
        labels = torch.ones(1, 1, self.POINTS, dtype=torch.long)
        return {
            "input_points": points.view(1, 1, -1, 2).to(device),
            "input_labels": labels.to(device),
        }


def choose_margin(
    segmenter: PromptedSegmenter, prompted: Iterable[tuple[Image, Mask]]
) -> dict[float, float]:
    """Set the box margin whose masks the model expects to overlap best; return all expectations.

    No true mask is needed: SAM learned to estimate the overlap of its mask with the object. By
    agreement with the pseudo-mask the best segmenter would be one that corrects nothing.

    Args:
        prompted: slices and their pseudo-masks, (H, W) each; empty ones are passed over. Without
            any, and for points, the margin stays and nothing is returned.
    """
    rates: list[list[float]] = []
    for image, pseudo_mask in prompted if segmenter.prompt == "box" else ():
        if pseudo_mask.any():
            embedded = segmenter.embed(image)
            rates.append([segmenter.decode(embedded, pseudo_mask, m)[1] for m in MARGINS])
    if not rates:
        return {}
    expected = dict(zip(MARGINS, np.mean(rates, axis=0).tolist(), strict=True))
    segmenter.margin = max(expected, key=expected.__getitem__)
    return expected


def to_rgb(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a slice (H, W) of any scale as 8-bit grey RGB (H, W, 3), as SAM expects it."""
    low, high = float(image.min()), float(image.max())
    unit = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.repeat((255 * unit).astype(np.uint8)[..., None], 3, axis=2)
