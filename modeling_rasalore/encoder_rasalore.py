"""RASALoRE's convolutional parts: the slice encoder U(X) and the refiner R(X) (poster, Figure 2).

Letters in shapes: B batch, c = base_channels, d = 8 c, S = image_size, s = refiner_grid.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rasalore import RasaloreConfig


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with ReLU, LayerNorm over channels, channel dropout."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.LayerNorm(out_channels, eps=1e-6)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = F.relu(self.conv2(F.relu(self.conv1(hidden))))
        hidden = self.norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.dropout(hidden)


class SliceEncoder(nn.Module):
    """U(X): (B, C, S, S) -> first block's map (B, c, S, S) and features (B, d, S/2, S/2)."""

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        widths = [config.num_channels, *(config.base_channels * m for m in (1, 2, 4, 8))]
        self.blocks = nn.ModuleList(
            ConvBlock(widths[i], widths[i + 1], config.dropout) for i in range(4)
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        first = self.blocks[0](pixel_values)
        # As in the released code, blocks 2 and 3 keep the full resolution.
        hidden = self.blocks[2](self.blocks[1](first))
        return first, self.blocks[3](F.max_pool2d(hidden, 2))


class Refiner(nn.Module):
    """R(X): the first block's map refined to one cell per candidate point, (B, d, s, s)."""

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
        stride = config.image_size // config.refiner_grid
        # Released (S = 128, grid 64): windows of 4 px every 2 px, zeros beyond the border counted.
        # Poster: one cell per candidate point, windows side by side.
        kernel = 4 if stride == 2 else stride
        self.pool = nn.AvgPool2d(kernel, stride, padding=(kernel - stride) // 2)

    def forward(self, first: Tensor) -> Tensor:
        hidden = F.relu(self.conv_norm(self.conv(first)))
        hidden = F.relu(self.up1_norm(self.up1(hidden)))
        hidden = F.relu(self.up2_norm(self.up2(hidden)))
        return self.pool(hidden + self.skip(first))
