"""Network parts that more than one system uses."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose kernels have mean 0 and variance 1 (weight standardisation)."""

    def forward(self, features: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        kernel = (self.weight - mean) / (std + 1e-5)
        if isinstance(self.padding, tuple) and any(self.padding):
            pad = self.padding[0]
            features = F.pad(features, (pad, pad, pad, pad), mode="reflect")
        return F.conv2d(features, kernel, self.bias, self.stride)


class UNet(nn.Module):
    """U-Net (B, C, p, p) -> (B, C, p, p): average-pool down, transposed convolution up, skips."""

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        pairs = list(zip((channels, *widths), widths, strict=False))
        self.down = nn.ModuleList(_double_convolution(*pair) for pair in pairs)
        inward = list(zip(widths[1:], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, 2) for deep, wide in inward)
        self.merge = nn.ModuleList(_double_convolution(2 * wide, wide) for _, wide in inward)
        self.output = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for level, block in enumerate(self.down):
            features = block(F.avg_pool2d(features, 2) if level else features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            features = torch.cat([self.up[level](features), skips[level]], 1)
            features = self.merge[level](features)
        return self.output(features)


def resnet_config(channels: int, width: int, labels: int = 2, **fields: Any) -> ResNetConfig:
    """ResNet-18's layout from `width` features on; the paper's has 64."""
    # Its signature lacks the fields that every configuration has.
    return ResNetConfig(  # type: ignore[call-arg]
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=labels,
        **fields,
    )


def resnet_classifier(channels: int, width: int, labels: int = 2) -> ResNetForImageClassification:
    """ResNet-18 with random weights: (B, channels, p, p) -> logits (B, labels)."""
    return ResNetForImageClassification(resnet_config(channels, width, labels))


def _double_convolution(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [StandardisedConv2d(width, after, 3, padding=1), nn.SiLU()]
        layers.append(nn.GroupNorm(min(8, after), after))
    return nn.Sequential(*layers)
