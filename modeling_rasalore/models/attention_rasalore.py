"""Turn candidate points into embeddings by region-aware spatial attention (poster, Figure 2).

Letters in shapes: B batch, k candidate points, d embedding width, N cells of the refined map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rasalore import RasaloreConfig


class LocationEmbeddings(nn.Module):
    """E_cpp: fixed random Fourier features of the candidate points plus a constant row, (k, d)."""

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        self.kind = config.location_embeddings
        self.grid_size, self.seed = config.grid_size, config.location_seed
        self.scale, self.width = config.location_scale, config.embedding_dim
        table = torch.empty(self.grid_size**2, self.width)
        if self.kind == "learned":
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=True)

    def make_table(self) -> Tensor:
        """The seeded table, (k, d); rows follow the grid row by row, first coordinate = row."""
        if self.kind == "none":
            return torch.zeros(self.grid_size**2, self.width)
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        frequencies = self.scale * torch.randn(
            2, self.width // 2, generator=generator, device="cpu"
        )
        if self.kind == "aliased":  # whole waves per half slice: points half a slice apart agree
            frequencies = frequencies.floor()
        offset = torch.randn(1, self.width, generator=generator, device="cpu")
        side = torch.arange(self.grid_size, device="cpu") / self.grid_size * 2 - 1  # [-1, 1)
        points = torch.cartesian_prod(side, side)  # (k, 2): row, column
        phase = 2 * math.pi * points @ frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1) + offset

    def forward(self) -> Tensor:
        return self.table


class RegionAwareSpatialAttention(nn.Module):
    """RASA: location embeddings attend to R(X), (B, N, d) -> point embeddings (B, k, d)."""

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        width, self.heads = config.embedding_dim, config.num_attention_heads
        self.head_dim = config.attention_head_dim or width // self.heads
        self.query = nn.Linear(width, self.heads * self.head_dim)
        self.key = nn.Linear(width, self.heads * self.head_dim)
        self.value = nn.Linear(width, self.heads * self.head_dim)
        self.output = nn.Linear(self.heads * self.head_dim, width)
        self.noise = ValueNoise(config, config.refiner_grid**2)

    def forward(self, location_embeddings: Tensor, cells: Tensor) -> Tensor:
        values = self.noise(cells)
        # Two orders of one function: projecting N cells is cheap where a head is narrow.
        narrow = self.head_dim < cells.shape[-1]
        attend = self.project_then_attend if narrow else self.attend_then_project
        return location_embeddings + attend(location_embeddings, cells, values)

    def project_then_attend(self, locations: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The textbook order: locations (k, d), keys and values (B, N, d) -> (B, k, d)."""
        queries = self.split_heads(self.query(locations))  # (heads, k, e), e = head_dim
        attended = F.scaled_dot_product_attention(
            queries.expand(len(keys), -1, -1, -1),
            self.split_heads(self.key(keys)),  # (B, heads, N, e)
            self.split_heads(self.value(values)),
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def attend_then_project(self, locations: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same function with neither keys nor values projected, for heads of full width.

        (E W_q)(R W_k)^T = ((E W_q) W_k^T) R^T: the keys' weights fold into the fixed queries, and
        what the keys' bias adds is one constant per query, which the softmax drops. A weighted
        mean of projected values is the projected weighted mean, so W_v and W_o fold into one
        matrix per head that is applied to k points instead of N cells.
        """
        key_weight = self.key.weight.unflatten(0, (self.heads, self.head_dim))  # (heads, e, d)
        queries = self.split_heads(self.query(locations)) @ key_weight  # (heads, k, d)
        queries = queries.flatten(0, 1)  # all heads as one longer list, (heads * k, d)
        attended = F.scaled_dot_product_attention(
            queries.expand(len(keys), 1, -1, -1),
            keys[:, None],  # (B, 1, N, d)
            values[:, None],
            scale=self.head_dim**-0.5,
        )
        attended = attended[:, 0].unflatten(1, (self.heads, -1))  # (B, heads, k, d)
        value_weight = self.value.weight.unflatten(0, (self.heads, self.head_dim))  # (heads, e, d)
        output_weight = self.output.weight.unflatten(1, (self.heads, self.head_dim))
        joined = torch.einsum("ohe,hed->hdo", output_weight, value_weight).flatten(0, 1)
        # The keys' bias enters with weight 0: it changes nothing, and training in several processes
        # wants a gradient for every parameter.
        bias = self.output(self.value.bias) + 0 * self.key.bias.sum()
        return attended.transpose(1, 2).flatten(2) @ joined + bias  # joined: (heads * d, d)

    def split_heads(self, projected: Tensor) -> Tensor:
        """(..., n, heads * head_dim) -> (..., heads, n, head_dim)."""
        return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)


class ValueNoise(nn.Module):
    """Adds epsilon to attention values (B, N, d): drawn in training, learned, or none."""

    def __init__(self, config: RasaloreConfig, tokens: int):
        super().__init__()
        self.kind, self.std = config.value_noise, config.value_noise_std
        # Set to draw Gaussian noise in evaluation too: repeated forwards then give uncertainty.
        self.sample_in_eval = False
        if self.kind == "learned":
            self.noise = nn.Parameter(torch.empty(tokens, config.embedding_dim))

    def forward(self, values: Tensor) -> Tensor:
        if self.kind == "learned":
            return values + self.noise
        if self.kind == "gaussian" and (self.training or self.sample_in_eval):
            # Not randn_like: it fills in memory order, and strides must not decide the outcome.
            noise = torch.randn(values.shape, dtype=values.dtype, device=values.device)
            return values + self.std * noise
        return values
