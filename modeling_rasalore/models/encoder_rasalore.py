"""Encode a slice as features U(X) and refined cells R(X) by convolutions (poster, Figure 2).

Letters in shapes: B batch, c = base_channels, d = 8 c, S = image_size, s = refiner_grid.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rasalore import RasaloreConfig


class CheckpointedLayer(nn.Module):
    """A layer whose maps are computed again in the backward pass where that was asked for.

    `gradient_checkpointing_enable` of transformers' models knows it by its two attributes. The
    layer that transformers has for this would import all of its model code.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any]

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.compute, *inputs)
        return self.compute(*inputs)

    def compute(self, *inputs: Tensor) -> Tensor:
        """What the layer makes of its inputs."""
        raise NotImplementedError


class ConvBlock(CheckpointedLayer):
    """Two 3x3 convolutions with ReLU, LayerNorm over channels, channel dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)
        self.dropout = nn.Dropout2d(dropout)

    def compute(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self.conv1(hidden).relu_()
        hidden = rectify_and_normalise(self.conv2(hidden), self.norm)
        return order_for_gradients(self.dropout(hidden))


def rectify_and_normalise(maps: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the channels of ReLU(maps), (B, C, H, W)."""
    # Reordered before the ReLU, so that ReLU and LayerNorm keep one map for the gradients.
    maps = maps.contiguous(memory_format=torch.channels_last).relu_()
    return norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def order_for_gradients(maps: Tensor) -> Tensor:
    """The same maps (B, C, H, W), channel by channel where a CPU will ask for gradients.

    The LayerNorm leaves the channels of a pixel side by side. Forward that is the quicker order,
    but a CPU's weight gradient of a convolution takes 2.4 times as long in it.
    """
    if maps.device.type == "cpu" and torch.is_grad_enabled():
        return maps.contiguous()
    return maps


def make_blocks(config: RasaloreConfig) -> nn.ModuleList:
    """The four blocks of an encoder, each twice as wide as the one before."""
    widths = [config.num_channels, *(config.base_channels * m for m in (1, 2, 4, 8))]
    return nn.ModuleList(ConvBlock(widths[i], widths[i + 1], config.dropout) for i in range(4))


class SliceEncoder(nn.Module):
    """U(X): (B, C, S, S) -> first block's map (B, c, S, S) and features (B, d, S/2, S/2).

    A feature sees a square of 22 pixels.
    """

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        self.blocks = make_blocks(config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        first = self.blocks[0](pixel_values)
        # As in the released code, blocks 2 and 3 keep the full resolution.
        hidden = self.blocks[2](self.blocks[1](first))
        return first, self.blocks[3](F.max_pool2d(hidden, 2))


class PyramidEncoder(nn.Module):
    """U(X) with a wide view: (B, C, S, S) -> (B, c, S/2, S/2) and features (B, d, S/2, S/2).

    Each block after the first works at half the resolution of the one before; coarse maps come back
    up and join the finer ones (Lin et al. 2017, feature pyramid networks). A feature sees a square
    of 92 pixels, at fewer operations than in `SliceEncoder`.
    """

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        self.blocks, width = make_blocks(config), config.embedding_dim
        # From coarse to fine: sides S/4 and S/2.
        self.laterals = nn.ModuleList(nn.Conv2d(config.base_channels * m, width, 1) for m in (4, 2))
        self.joints = nn.ModuleList(Joint(width) for _ in self.laterals)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.blocks[0](pixel_values)]
        for block in self.blocks[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        features = maps[-1]
        for lateral, joint, finer in zip(self.laterals, self.joints, maps[2:0:-1], strict=True):
            coarse = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = joint(coarse + lateral(finer))
        return F.max_pool2d(maps[0], 2), features


class Joint(nn.Module):
    """One 3x3 convolution with ReLU and LayerNorm over channels, after maps were added."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        return order_for_gradients(rectify_and_normalise(self.conv(hidden), self.norm))


ENCODERS: dict[str, type[nn.Module]] = {"plain": SliceEncoder, "pyramid": PyramidEncoder}


class Refiner(nn.Module):
    """R(X): the first block's map refined to one cell per candidate point, (B, d, s, s).

    The map has the side S, or S/2 from `PyramidEncoder`.
    """

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        width = config.base_channels
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv_norm = nn.BatchNorm2d(2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, 4 * width, 3, padding=1)
        self.up1_norm = nn.BatchNorm2d(4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 8 * width, 3, padding=1)
        self.up2_norm = nn.BatchNorm2d(8 * width)
        self.skip = nn.Conv2d(width, 8 * width, 1)
        stride = config.first_map_size // config.refiner_grid
        # Released (S = 128, grid 64): windows of 4 px every 2 px, zeros beyond the border counted.
        # Poster: one cell per candidate point, windows side by side.
        kernel = 4 if stride == 2 else stride
        self.pool = nn.AvgPool2d(kernel, stride, padding=(kernel - stride) // 2)

    def forward(self, first: Tensor) -> Tensor:
        hidden = convolve_and_normalise(self.conv, self.conv_norm, first).relu_()
        hidden = convolve_and_normalise(self.up1, self.up1_norm, hidden).relu_()
        hidden = convolve_and_normalise(self.up2, self.up2_norm, hidden).relu_()
        # Pooling and the skip's 1x1 convolution commute: pool first, then convolve few pixels. The
        # bias is pooled too, because zeros beyond the border count.
        # Added in place: a new map of this size costs more than the sum.
        skipped = F.conv2d(self.pool(first), self.skip.weight)
        bias = self.skip.bias[:, None, None] * self.pool(torch.ones_like(first[:1, :1]))  # type: ignore[index]
        return self.pool(hidden).add_(skipped).add_(bias)


def convolve_and_normalise(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d, maps: Tensor
) -> Tensor:
    """norm(conv(maps)); in evaluation one convolution, whose weights take the fixed norm in."""
    if norm.training:
        return norm(conv(maps))
    assert norm.running_mean is not None and norm.running_var is not None  # statistics are tracked
    assert conv.bias is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = norm.bias + scale * (conv.bias - norm.running_mean)
    if isinstance(conv, nn.ConvTranspose2d):
        weight = conv.weight * scale[:, None, None]  # (in, out, 3, 3)
        return F.conv_transpose2d(maps, weight, bias, padding=conv.padding)  # type: ignore[arg-type]
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(maps, weight, bias, padding=conv.padding)
