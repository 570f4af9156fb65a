"""Slice classifiers of the systems that start from one: training, Grad-CAM and RISE."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frames import stretch
from .interface import LearnedSystem, step


def train_classifier(
    system: LearnedSystem,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    batch_size: int,
    rate: float = 1e-3,
) -> None:
    """Cross-entropy on slices (N, C, p, p), each flipped left to right half of the time."""
    optimizer = torch.optim.AdamW(classifier.parameters(), rate, weight_decay=1e-2)
    for chosen in system.batches(labels, steps, batch_size):
        batch = images[chosen]
        flipped = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
        logits = classifier(torch.where(flipped, batch.flip(-1), batch)).logits
        step(optimizer, F.cross_entropy(logits, labels[chosen]))


def unhealthy_logit(classifier: nn.Module, images: Tensor) -> Tensor:
    """Logit of unhealthy against healthy, (N,)."""
    logits = classifier(images).logits
    return logits[:, 1] - logits[:, 0]


def grad_cam(classifier: nn.Module, images: Tensor, stage: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the unhealthy class, (N, p, p) in [0, 1].

    Args:
        stage: which of the ResNet's four stages, from 1 on.
    """
    with torch.enable_grad():
        output = classifier(images.detach().requires_grad_(), output_hidden_states=True)
        features = output.hidden_states[stage]
        (slope,) = torch.autograd.grad(output.logits[:, 1].sum(), features)
    weighted = (slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().detach()
    return stretch(F.interpolate(weighted, images.shape[-2:], mode="bilinear")[:, 0])


@torch.no_grad()
def rise(classifier: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018): mean mask (M, p, p) by unhealthy probability, (N, p, p)."""
    heatmaps = []
    for image in images:
        chances = [
            torch.sigmoid(unhealthy_logit(classifier, image[None] * part[:, None]))
            for part in masks.split(128)
        ]
        heatmaps.append(torch.einsum("m,mrc->rc", torch.cat(chances), masks))
    return stretch(torch.stack(heatmaps) / masks.sum(0).clamp(min=1e-6))


def rise_masks(count: int, pixels: int, seed: int, grid: int = 7) -> Tensor:
    """Random smooth masks (count, pixels, pixels): a grid of ones and zeros, enlarged, shifted."""
    generator = torch.Generator().manual_seed(seed)
    cell = -(-pixels // grid)
    coarse = (torch.rand(count, 1, grid, grid, generator=generator) < 0.5).float()
    fine = F.interpolate(coarse, ((grid + 1) * cell,) * 2, mode="bilinear")[:, 0]
    shifts = torch.randint(cell, (count, 2), generator=generator).tolist()
    cut = [m[r : r + pixels, c : c + pixels] for m, (r, c) in zip(fine, shifts, strict=True)]
    return torch.stack(cut)
