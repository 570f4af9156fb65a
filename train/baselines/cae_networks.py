"""Networks of class association embedding: two encoders, a decoder, a four-way discriminator."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassEncoder(nn.Module):
    """(B, 1, p, p) -> class code (B, code), no normalisation, at least 0."""

    def __init__(self, width: int, code: int):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [nn.Conv2d(1, width, 7, padding=3), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], code, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class IndividualEncoder(nn.Module):
    """(B, 1, p, p) -> individual code (B, 4 width, p/4, p/4)."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 7, padding=3)]
        layers += [nn.InstanceNorm2d(width), nn.ReLU()]
        for before in (width, 2 * width):
            layers += [nn.Conv2d(before, 2 * before, 4, 2, 1), nn.InstanceNorm2d(2 * before)]
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(ResidualBlock(4 * width) for _ in range(blocks))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images)
        for block in self.blocks:
            features = block(features, None)
        return features


class Decoder(nn.Module):
    """Individual code and class code -> image (B, 1, p, p) in [-1, 1]."""

    def __init__(self, width: int, blocks: int, code: int):
        super().__init__()
        deep = 4 * width
        self.blocks = nn.ModuleList(ResidualBlock(deep) for _ in range(blocks))
        # Per block two normalisations, per normalisation a scale and a shift for each feature.
        self.styles = nn.Sequential(
            nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, blocks * 4 * deep), nn.Unflatten(1, (blocks, 2, 2, deep)),
        )  # fmt: skip
        layers: list[nn.Module] = []
        for before in (deep, deep // 2):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before // 2, 5, padding=2)]
            layers += [nn.GroupNorm(1, before // 2), nn.ReLU()]
        layers += [nn.Conv2d(width, 1, 7, padding=3), nn.Tanh()]
        self.output = nn.Sequential(*layers)

    def forward(self, individual: Tensor, code: Tensor) -> Tensor:
        features = individual
        for block, style in zip(self.blocks, self.styles(code).unbind(1), strict=True):
            features = block(features, style)
        return self.output(features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance normalisation, scaled and shifted by a style (AdaIN)."""

    def __init__(self, width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, features: Tensor, style: Tensor | None) -> Tensor:
        change = features
        for index, convolution in enumerate(self.convolutions):
            change = F.instance_norm(convolution(change))
            if style is not None:
                scale, shift = style[:, index].unbind(1)
                change = change * (1 + scale[..., None, None]) + shift[..., None, None]
            change = change.relu() if index == 0 else change
        return features + change


class Discriminator(nn.Module):
    """(B, 1, p, p) -> logits (B, 2) of fake | real and (B, 2) of healthy | unhealthy."""

    def __init__(self, width: int):
        super().__init__()
        widths = (1, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(ResidualBlock(8 * width) for _ in range(2))
        self.head = nn.Sequential(
            nn.Linear(8 * width, 256), nn.LeakyReLU(0.2), nn.Dropout(0.4), nn.Linear(256, 4)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(images)
        for block in self.blocks:
            features = block(features, None)
        logits = self.head(features.amax((2, 3)))
        return logits[:, :2], logits[:, 2:]


class CodeBank(nn.Module):
    """Class codes of healthy training slices, (count, code), kept with the weights."""

    codes: Tensor

    def __init__(self, count: int, code: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(count, code))

    def nearest(self, code: Tensor) -> Tensor:
        """The nearest healthy code of each code (B, code)."""
        return self.codes[torch.cdist(code, self.codes).argmin(1)]
