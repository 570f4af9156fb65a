"""GP-UNet-like MIL: a U-Net whose map of logits is pooled to the slice's label.

Adapted. Dubost, Bortsova, Adams, Ikram, Niessen, Vernooij, de Bruijne, "GP-Unet: Lesion Detection
from Weak Labels with a 3D Regression Network", MICCAI 2017 (arXiv 1705.07999); pooling by the mean
of the highest values after Durand, Thome, Cord, "WELDON: Weakly Supervised Learning of Deep
Convolutional Neural Networks", CVPR 2016.
Follows: a U-Net of full resolution, one number per pixel, pooled globally to what the label says;
without the pooling, the map is the answer.
Leaves out: lesion counts (the label is healthy or unhealthy, so cross-entropy), the third
dimension, and the lowest values that WELDON pools as well.
Departs: only brain is pooled, since no lesion lies outside. The network starts almost certain that
a pixel is healthy. Views of a slice are turned by any angle. Few convolutions and no normalisation,
so that a pixel sees its surroundings only: else any pixel can carry the slice's label, and on toy
slices the map missed what the label came from.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_rasalore.models.scan_view_rasalore import CHANNELS

from .frames import BRAIN, random_views
from .interface import LearnedSystem, step

FIRST_PROBABILITY = 0.01  # of a pixel to be lesion, before anything is learned


@dataclass(frozen=True)
class GpUnetSettings:
    pixels: int
    widths: tuple[int, ...]  # of the U-Net's levels
    steps: int
    batch_size: int
    rate: float
    top_share: float = 0.02  # of a slice's brain that is pooled; 0: its highest pixel alone


class GpUnet(LearnedSystem):
    """U-Net trained through a pooling over its own segmentation map."""

    SIZES = {  # noqa: RUF012 - constant
        "small": GpUnetSettings(64, (16, 32, 64), 300, 32, 2e-3),
        "paper": GpUnetSettings(128, (32, 64, 128, 256), 10_000, 32, 1e-3),
    }
    SCAN_CHANNELS = CHANNELS

    def build(self) -> dict[str, nn.Module]:
        unet = LocalUNet(self.channels, self.settings.widths)
        assert unet.output.bias is not None
        nn.init.constant_(unet.output.bias, math.log(FIRST_PROBABILITY / (1 - FIRST_PROBABILITY)))
        return {"unet": unet}

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.networks["unet"].parameters(), settings.rate, weight_decay=1e-2
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for chosen in self.batches(labels, settings.steps, settings.batch_size):
            views = random_views(images[chosen])
            logits = self.networks["unet"](views)
            pooled = pool(logits, views[:, 0] > BRAIN, settings.top_share)
            step(optimizer, F.binary_cross_entropy_with_logits(pooled, labels[chosen].float()))
            schedule.step()

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.networks["unet"](images).sigmoid()
        return probabilities


class LocalUNet(nn.Module):
    """Slices (B, C, p, p) -> logits (B, p, p); one 3x3 convolution per level and direction."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        inward = list(zip(widths[1:], widths, strict=False))
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip((channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, 2) for deep, wide in inward)
        self.merge = nn.ModuleList(nn.Conv2d(2 * w, w, 3, padding=1) for _, w in inward)
        self.output = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for level, convolution in enumerate(self.down):
            features = F.relu(convolution(F.avg_pool2d(features, 2) if level else features))
            skips.append(features)
        for level in reversed(range(len(self.up))):
            joined = torch.cat([self.up[level](features), skips[level]], 1)
            features = F.relu(self.merge[level](joined))
        logits: Tensor = self.output(features)[:, 0]
        return logits


def pool(logits: Tensor, brain: Tensor, top_share: float) -> Tensor:
    """Mean of the highest logits (B, p, p) inside the brain (B, p, p), (B,).

    Args:
        top_share: how many, as a share of the slice's brain pixels, at least one.
    """
    inside = logits.flatten(1).masked_fill(~brain.flatten(1), -torch.inf)
    sizes = brain.flatten(1).sum(1)
    counts = (sizes * top_share).round().long().clamp(min=1)
    highest = inside.topk(int(counts.max()), dim=1).values
    surplus = torch.arange(highest.shape[1], device=highest.device) >= counts[:, None]
    # A view that shows no brain has 0, whatever the network says, and teaches nothing.
    return highest.masked_fill(surplus | highest.isneginf(), 0).sum(1) / counts
