"""Teaches a tiny SAM what a prompt means, from image regions alone: a stand-in, never a result.

Regions are connected pixels above a random intensity of a slice's brain, of any slice: no slice
label and no mask is used, and nothing tells lesions from tissue.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from modeling_rasalore.benchmark.systems import Image
from modeling_rasalore.pseudo_masks.segmenter import Mask, PromptedSegmenter, to_rgb
from modeling_rasalore.scans.background import brain_of

from .interface import step

BATCH = 8
SMALLEST = 12  # pixels of a region


def learn_regions(
    segmenter: PromptedSegmenter, slices: Sequence[Image], steps: int, seed: int
) -> None:
    """Train a segmenter's model on prompts of random regions, of the kind it will get."""
    generator = np.random.default_rng(seed)
    model = segmenter.model.train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        losses = []
        for _ in range(BATCH):
            image = slices[int(generator.integers(len(slices)))]
            region = random_region(image, generator)
            if region is not None:
                losses.append(region_loss(segmenter, image, region))
        if losses:
            step(optimizer, torch.stack(losses).mean())
    model.eval()


def region_loss(segmenter: PromptedSegmenter, image: Image, region: Mask) -> Tensor:
    """Cross-entropy plus soft Dice of the prompted mask with the region, at the mask's own grid."""
    inputs = segmenter.processor(to_rgb(image), return_tensors="pt")
    device = next(segmenter.model.parameters()).device
    prompts = segmenter.prompts(region, inputs, device)
    pixel_values = inputs["pixel_values"].to(device)
    output = segmenter.model(pixel_values=pixel_values, **prompts, multimask_output=False)
    logits = output.pred_masks[0, 0]
    truth = in_model_frame(region, inputs).to(device)
    truth = F.interpolate(truth, logits.shape[-2:], mode="bilinear", antialias=True)[0]
    chance = logits.sigmoid()
    overlap = 2 * (chance * truth).sum() / (chance.sum() + truth.sum()).clamp(min=1e-6)
    return F.binary_cross_entropy_with_logits(logits, truth) + 1 - overlap


def in_model_frame(region: Mask, inputs: Any) -> Tensor:
    """A region (H, W) where the model sees it, (1, 1, p, p): resized and padded as its slice."""
    height, width = (int(side) for side in inputs["reshaped_input_sizes"][0])
    rows, columns = inputs["pixel_values"].shape[-2:]
    plane = torch.from_numpy(region.astype(np.float32))[None, None]
    resized = F.interpolate(plane, (height, width), mode="bilinear", antialias=True)
    return F.pad(resized, (0, columns - width, 0, rows - height))


def random_region(image: Image, generator: np.random.Generator) -> Mask | None:
    """One connected region above a random intensity of the brain; None if none is large."""
    brain = brain_of(image)
    if not brain.any():
        return None
    level = np.quantile(image[brain], generator.uniform(0.5, 0.95))
    labelled, count = ndimage.label(ndimage.gaussian_filter(image, 1) > level)
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(sizes >= SMALLEST) + 1
    return (labelled == generator.choice(large)).astype(np.uint8) if len(large) else None
