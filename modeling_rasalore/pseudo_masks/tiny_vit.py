"""Encode images with a TinyViT that keeps a quarter of their resolution, as LiteMedSAM's does.

Wu, Zhang, Peng, Liu, Xiao, Fu, Yuan, "TinyViT: Fast Pretraining Distillation for Small Vision
Transformers", ECCV 2022 (arXiv 2207.10666): a stage of inverted bottlenecks (MBConv), then three of
transformer blocks whose attention stays within windows and knows how far apart two pixels are.
Departs from the paper, as the published weights of LiteMedSAM do: the first layers look at single
pixels and keep the resolution, the last reduction does not halve it, and the neck is SAM's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.sam.modeling_sam import SamVisionNeck


class TinyVitConfig(PreTrainedConfig):
    """Sizes of a `TinyVitEncoder`; the defaults are LiteMedSAM's."""

    model_type = "lite_medsam_tiny_vit"
    base_config_key = "vision_config"

    image_size: int = 256
    num_channels: int = 3
    hidden_sizes: tuple[int, ...] | list[int] = (64, 128, 160, 320)  # of the four stages
    depths: tuple[int, ...] | list[int] = (2, 2, 6, 2)  # blocks of each stage
    # Of the three stages that attend: heads, and the window's side in pixels of the stage.
    num_attention_heads: tuple[int, ...] | list[int] = (4, 5, 10)
    window_sizes: tuple[int, ...] | list[int] = (7, 14, 7)
    expansion: int = 4  # of bottlenecks and of the layers behind the attention
    # --- Read by the neck and by SAM's embedding of positions -----------------------------------
    output_channels: int = 256
    num_pos_feats: int = 128
    scale: float = 1.0  # of random position embeddings; trained ones hold their own
    initializer_range: float = 0.02

    @property
    def hidden_size(self) -> int:
        """Width that enters the neck."""
        return self.hidden_sizes[-1]

    @property
    def reduction(self) -> int:
        """Pixels of the image per pixel of its embedding: the first two reductions halve."""
        return 4


class TinyVitEncoder(nn.Module):
    """Images (B, 3, p, p) -> embeddings (B, output_channels, p/4, p/4)."""

    def __init__(self, config: TinyVitConfig):
        super().__init__()
        first, *later = config.hidden_sizes
        self.stem = nn.Sequential(
            ConvNorm(config.num_channels, first // 2, 1), nn.GELU(), ConvNorm(first // 2, first, 1)
        )
        bottlenecks: list[nn.Module] = [
            Bottleneck(first, config.expansion) for _ in range(config.depths[0])
        ]
        self.stages = nn.ModuleList([nn.ModuleList(bottlenecks)])
        self.reductions = nn.ModuleList()
        widths = zip((first, *later), later, strict=False)
        for number, (before, after) in enumerate(widths):
            stride = 2 if number < 2 else 1
            self.reductions.append(Reduction(before, after, stride))
            heads, window = config.num_attention_heads[number], config.window_sizes[number]
            blocks: list[nn.Module] = [
                Block(after, heads, window, config.expansion)
                for _ in range(config.depths[number + 1])
            ]
            self.stages.append(nn.ModuleList(blocks))
        self.neck = SamVisionNeck(config)  # type: ignore[arg-type]  # reads two widths alone

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        features = self.stem(pixel_values)
        for number, blocks in enumerate(self.stages):
            if number:
                features = self.reductions[number - 1](features)
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList
                features = block(features)
        return BaseModelOutput(last_hidden_state=self.neck(features.permute(0, 2, 3, 1)))


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation; odd kernels keep the size."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(features))
        return normed


class Bottleneck(nn.Module):
    """MBConv: widen, look at 3x3 channel by channel, narrow; added to what came in."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        inner = expansion * width
        self.expand = ConvNorm(width, inner, 1)
        self.depthwise = ConvNorm(inner, inner, 3, groups=inner)
        self.project = ConvNorm(inner, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.gelu(self.depthwise(F.gelu(self.expand(features))))
        return F.gelu(features + self.project(inner))


class Reduction(nn.Module):
    """Between stages: (B, before, h, w) -> (B, after, h/stride, w/stride)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.expand = ConvNorm(before, after, 1)
        self.depthwise = ConvNorm(after, after, 3, stride, groups=after)
        self.project = ConvNorm(after, after, 1)

    def forward(self, features: Tensor) -> Tensor:
        reduced: Tensor = self.project(F.gelu(self.depthwise(F.gelu(self.expand(features)))))
        return reduced


class Block(nn.Module):
    """Attention within windows, a 3x3 convolution per channel, two layers: (B, C, h, w) -> same."""

    def __init__(self, width: int, heads: int, window: int, expansion: int):
        super().__init__()
        self.window = window
        self.attention = WindowAttention(width, heads, window)
        self.local = ConvNorm(width, width, 3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, features: Tensor) -> Tensor:
        attended = features + join_windows(
            self.attention(split_windows(features, self.window)), features.shape, self.window
        )
        pixels = self.local(attended).permute(0, 2, 3, 1)  # (B, h, w, C)
        pixels = pixels + self.narrow(F.gelu(self.widen(self.norm(pixels))))
        return pixels.permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention of a window's pixels with each other: (windows, n, C) -> the same shape.

    Attributes:
        distance_bias: added to the attention of two pixels |dy| rows and |dx| columns apart, at
            |dy| * window + |dx|, (heads, window * window).
    """

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} heads of {width}.")
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.distance_bias = nn.Parameter(torch.zeros(heads, window**2))

    def forward(self, pixels: Tensor) -> Tensor:
        count, length, width = pixels.shape
        joint = self.query_key_value(self.norm(pixels))
        # Each head's query, key and value stand side by side: (windows, heads, n, 3 C / heads).
        joint = joint.view(count, length, self.heads, -1).transpose(1, 2)
        query, key, value = joint.chunk(3, dim=-1)
        bias = self.distance_bias[:, self.distances()]  # (heads, n, n)
        mixed = F.scaled_dot_product_attention(query, key, value, bias.expand(count, -1, -1, -1))
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(count, length, width))
        return attended

    def distances(self) -> Tensor:
        """Return the index of each pair's distance, (n, n).

        Computed anew each time: `from_pretrained` leaves buffers that are not saved undefined.
        """
        steps = torch.arange(self.window, device=self.distance_bias.device)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        down = (rows.flatten()[:, None] - rows.flatten()).abs()
        across = (columns.flatten()[:, None] - columns.flatten()).abs()
        return down * self.window + across


def split_windows(features: Tensor, window: int) -> Tensor:
    """Return (B, C, h, w) as windows (B * windows, window * window, C), zeros below and right."""
    _, width, height, columns = features.shape
    padded = F.pad(features, (0, -columns % window, 0, -height % window))
    cells = padded.unflatten(3, (-1, window)).unflatten(2, (-1, window))
    # (B, C, down, window, across, window) -> (B, down, across, window, window, C)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(-1, window**2, width)


def join_windows(windows: Tensor, shape: torch.Size, window: int) -> Tensor:
    """Return windows of `split_windows` as (B, C, h, w) of the given shape, without the padding."""
    batch, width, height, columns = shape
    down, across = -(-height // window), -(-columns // window)
    cells = windows.view(batch, down, across, window, window, width)
    padded = cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, width, down * window, across * window)
    return padded[..., :height, :columns]
