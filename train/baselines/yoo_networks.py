"""Networks of deep superpixel generation: the superpixel network and its losses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SuperpixelNetwork(nn.Module):
    """(B, C, p, p) -> association (B, K, p, p): each pixel's share in each of K superpixels.

    K = (p / 2^levels)^2, one superpixel per cell of the coarsest features. Association implantation
    as in AINet: each pixel's embedding meets those of the 3x3 cells around it.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], pixels: int, embedding: int = 16):
        super().__init__()
        self.cells = pixels // 2 ** len(widths)
        inward = list(zip((channels, *widths), (*widths, 2 * widths[-1]), strict=True))
        self.down = nn.ModuleList(_double_convolution(*pair) for pair in inward)
        self.halve = nn.ModuleList(nn.Conv2d(w, w, 3, 2, 1) for w in widths)
        outward = list(zip((2 * widths[-1], *reversed(widths)), reversed(widths), strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in outward)
        self.merge = nn.ModuleList(_double_convolution(2 * b, b) for _, b in outward)
        self.pixel_embedding = nn.Conv2d(widths[0], embedding, 3, padding=1)
        self.cell_embedding = nn.Conv2d(2 * widths[-1], embedding, 1)
        self.implant = nn.Conv2d(9 * embedding, embedding, 1)
        self.output = nn.Conv2d(embedding, self.cells**2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for block, halve in zip(self.down, self.halve, strict=False):
            skips.append(block(features))
            features = halve(skips[-1])
        deepest = features = self.down[-1](features)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features = merge(torch.cat([up(features), skip], 1))
        pixel = self.pixel_embedding(features)
        around = F.unfold(self.cell_embedding(deepest), 3, padding=1)
        around = around.unflatten(2, (self.cells, self.cells)).unflatten(1, (-1, 9))
        around = F.interpolate(around.flatten(1, 2), images.shape[-2:]).unflatten(1, (-1, 9))
        centre = F.one_hot(torch.tensor(4, device=images.device), 9).view(1, 1, 9, 1, 1)
        implanted = self.implant((around + centre * pixel[:, :, None]).flatten(1, 2)).relu()
        return self.output(implanted).softmax(1)


def compactness_loss(images: Tensor, association: Tensor) -> Tensor:
    """How badly superpixel means describe colour and place of their pixels, per slice."""
    pixels, cells = images.shape[-1], association.shape[1] ** 0.5
    line = torch.arange(pixels, device=images.device, dtype=torch.float32)
    place = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(images), -1, -1, -1)
    colour = _distance(images, association).sum((1, 2))
    spread = _distance(place, association).sum((1, 2)) * (0.3 / (pixels / cells))
    return 0.005 * (colour + spread).mean()


def seed_loss(mask: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy of a mask (B, p, p) in [0, 1] on its seeds only."""
    logs = positive * mask.log().clamp(min=-100) + negative * (1 - mask).log().clamp(min=-100)
    return -(logs.sum() + 1) / ((positive + negative).sum() + 1)


def _distance(values: Tensor, association: Tensor) -> Tensor:
    """Distance of each pixel's value (B, V, p, p) from its reconstruction, (B, p, p)."""
    weights = association.flatten(2)
    means = torch.einsum("bvp,bkp->bvk", values.flatten(2), weights)
    means = means / weights.sum(2)[:, None].clamp(min=1e-6)
    rebuilt = torch.einsum("bvk,bkp->bvp", means, weights).unflatten(2, values.shape[-2:])
    return (values - rebuilt).square().sum(1).clamp(min=1e-12).sqrt()


def _double_convolution(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)
