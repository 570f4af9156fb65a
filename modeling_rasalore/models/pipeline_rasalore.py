"""Run `pipeline("brain-anomaly-segmentation", model=...)`: slices or scans in, scores out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from .image_processing_rasalore import as_slices, unit_range
from .scan_view_rasalore import FloatImage

try:
    from PIL import Image
except ImportError:  # arrays and .npy files need no Pillow
    Image = None  # type: ignore[assignment]

TASK = "brain-anomaly-segmentation"
AT_ONCE = 8  # slices of a scan that go through the model together


class BrainAnomalyPipeline(Pipeline):
    """Segment one slice, or a list of slices, in each slice's own pixel frame.

    A slice is an array or tensor (H, W) or (C, H, W), a PIL image, or the path of an image or
    .npy file; its background has the slice's least value. Each gives a dictionary:

    scores: (H, W) float32 in [0, 1], 0 outside the brain.
    mask: (H, W) uint8, 1 where the score is strictly above the threshold.
    label: "anomaly", or "no anomaly found" for an empty mask, which does not exclude disease.
    quality: soft Dice of scores and mask in [0, 1], near 1 where the scores are decided (Borges
        et al. 2024, soft Dice confidence; not a measured accuracy); None for an empty mask.

    A model that sees whole scans takes a scan instead, an array (S, H, W) whose background is 0,
    and gives scores and mask (S, H, W): `pipe(scan, spacing=(slice, row, column) in mm)`.

    Scores are the network's alone. The package's `predict_volume` also blurs them, joins them by
    the free map and takes the calibrated threshold, where these are saved beside the model.

    Keyword arguments, here or in a call: `threshold` in [0, 1], default 0.5; `batch_size`, how
    many slices of a list go through the model at once, scans go one by one.
    """

    _load_tokenizer = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_processor = False
    _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.eval()

    def _sanitize_parameters(
        self, threshold: float | None = None, spacing: Sequence[float] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading = {} if spacing is None else {"spacing": spacing}
        if threshold is None:
            return reading, {}, {}
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"threshold must lie in [0, 1], got {threshold}; 0.5 is the usual choice."
            )
        return reading, {}, {"threshold": threshold}

    def preprocess(self, image: Any, spacing: Sequence[float] | None = None) -> dict[str, Any]:
        slice_image = as_slice(image)
        if self.image_processor.see is not None:
            return self.preprocess_scan(slice_image, spacing)
        inputs = self.image_processor(slice_image, return_tensors="pt")
        # In a list: the library would add an axis to a bare array when it takes a batch apart.
        return {"pixel_values": inputs["pixel_values"], "image": [slice_image]}

    def preprocess_scan(self, scan: FloatImage, spacing: Sequence[float] | None) -> dict[str, Any]:
        """What the model sees of a scan (S, H, W); ValueError without its spacing."""
        if spacing is None:
            raise ValueError(
                "this model sees whole scans: pass an array (S, H, W), background 0, with "
                "spacing=(slice, row, column) in mm."
            )
        views = list(self.image_processor.see_scan(scan, spacing))
        inputs = self.image_processor(scan, views=views, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], "image": [scan], "views": [views]}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        pixel_values = inputs.pop("pixel_values").to(self.model.dtype)
        if len(inputs.get("views", ())) > 1:
            raise ValueError("a scan is a batch of its own; leave out batch_size.")
        # A scan has more slices than a batch should.
        parts = pixel_values.split(AT_ONCE) if "views" in inputs else [pixel_values]
        scores = [self.model(pixel_values=part).logits.float().sigmoid() for part in parts]
        return {"scores": torch.cat(scores), **inputs}

    def postprocess(self, outputs: dict[str, Any], threshold: float = 0.5) -> dict[str, Any]:
        image = outputs["image"][0]
        if "views" in outputs:
            scores = self.scores_in_scan(outputs["scores"], image, outputs["views"][0])
        else:
            scores = self.scores_in_slice(outputs["scores"], image)
        mask = (scores > threshold).astype(np.uint8)
        return {
            "scores": scores,
            "mask": mask,
            "label": "anomaly" if mask.any() else "no anomaly found",
            "quality": soft_dice_confidence(scores, mask),
        }

    def scores_in_slice(self, scores: Tensor, image: FloatImage) -> FloatImage:
        """Scores (1, 1, h, w) of the crop in the frame of the slice (C, H, W), 0 off the brain."""
        whole = self.image_processor.post_process_maps(scores, [image])[0]
        brain = (unit_range(image) > 0).any(axis=0)
        return np.where(brain, whole, np.float32(0))

    def scores_in_scan(self, scores: Tensor, scan: FloatImage, views: list[Any]) -> FloatImage:
        """Scores (S, 1, h, w) of the square in the frame of the scan (S, H, W), 0 off the brain."""
        maps = self.image_processor.post_process_maps(scores, scan, views=views)
        return np.where(scan > 0, np.stack(maps), np.float32(0))


def as_slice(image: Any) -> FloatImage:
    """Array, tensor, PIL image or path -> slice (C, H, W) float32.

    Raises:
        ValueError: neither of these, no such file, a NIfTI file or a folder, or not one slice.
    """
    if isinstance(image, str | os.PathLike):
        image = read_image(Path(image))
    if Image is not None and isinstance(image, Image.Image) and len(image.getbands()) > 1:
        image = image.convert("L")  # a coloured picture of a grey slice
    if isinstance(image, Tensor):
        image = image.detach().cpu().float().numpy()
    if not hasattr(image, "ndim") and not hasattr(image, "getpixel"):
        raise ValueError(
            f"a slice must be an array, a PIL image or a path, got {type(image).__name__}."
        )
    return as_slices([image])[0]


def read_image(path: Path) -> Any:
    """Array of a .npy file, or PIL image of an image file; ValueError in one sentence."""
    if not path.is_file():
        raise ValueError(f"a slice must be an existing file, got {path}; nothing is downloaded.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"{path.name} is a volume; pass its array, with spacing= where the model sees whole "
            "scans, or use predict_volume of the package."
        )
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if Image is None:
        raise ValueError(f"reading {path.name} needs Pillow; install it or pass an array.")
    try:
        with Image.open(path) as image:
            return image.copy()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read as an image.") from error


def soft_dice_confidence(scores: FloatImage, mask: np.ndarray) -> float | None:
    """Return 2 sum(scores mask) / (sum(scores) + sum(mask)), None where the mask is empty."""
    if not mask.any():
        return None
    return float(2 * scores[mask > 0].sum() / (scores.sum() + mask.sum()))


# With the package installed the task is known by name; a saved pipeline names this file itself.
PIPELINE_REGISTRY.register_pipeline(TASK, BrainAnomalyPipeline, pt_model=AutoModel, type="image")
