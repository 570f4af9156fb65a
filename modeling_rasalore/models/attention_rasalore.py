"""RASALoRE's location embeddings and region-aware spatial attention (poster, Figure 2).

Letters in shapes: B batch, k candidate points, d embedding width, N cells of the refined map.
"""

import math
from collections.abc import Callable
from typing import Any

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
        # The queries are the same for every slice, and so is all that depends on weights alone.
        self.constants = RememberedConstants()

    def train(self, mode: bool = True) -> "RegionAwareSpatialAttention":
        # Some optimizers write through `.data`, which PyTorch does not count.
        self.constants.forget()
        return super().train(mode)

    def forward(self, location_embeddings: Tensor, cells: Tensor) -> Tensor:
        values = self.noise(cells)
        projects_first = self.head_dim < cells.shape[-1]  # cheapest where a head is narrow
        constants = self.projected_queries if projects_first else self.folded_weights
        weights = [
            location_embeddings,
            *(p for layer in self.linears() for p in layer.parameters()),
        ]
        if self.training:
            fixed = constants(location_embeddings)
        else:
            fixed = self.constants.get(lambda: constants(location_embeddings), weights)
        attend = self.project_then_attend if projects_first else self.attend_then_project
        return location_embeddings + attend(fixed, cells, values)

    def linears(self) -> tuple[nn.Linear, ...]:
        return self.query, self.key, self.value, self.output

    def split_heads(self, projected: Tensor) -> Tensor:
        """(..., n, heads * head_dim) -> (..., heads, n, head_dim)."""
        return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def projected_queries(self, locations: Tensor) -> tuple[Tensor, ...]:
        """Queries of every head, (heads, k, head_dim)."""
        return (self.split_heads(self.query(locations)),)

    def project_then_attend(
        self, fixed: tuple[Tensor, ...], keys: Tensor, values: Tensor
    ) -> Tensor:
        """The textbook order."""
        attended = F.scaled_dot_product_attention(
            fixed[0].expand(len(keys), -1, -1, -1),
            self.split_heads(self.key(keys)),
            self.split_heads(self.value(values)),
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def folded_weights(self, locations: Tensor) -> tuple[Tensor, ...]:
        """Folded queries (heads * k, d), folded output weights (heads * d, d) and bias (d,).

        (E W_q)(R W_k)^T = ((E W_q) W_k^T) R^T: the keys' weights fold into the fixed queries, and
        what the keys' bias adds is one constant per query, which the softmax drops. A weighted
        mean of projected values is the projected weighted mean, so W_v and W_o fold into one
        matrix per head that is applied to k points instead of N tokens.
        """
        key_weight = self.key.weight.unflatten(0, (self.heads, self.head_dim))  # (heads, e, d)
        queries = self.split_heads(self.query(locations)) @ key_weight  # (heads, k, d)
        value_weight = self.value.weight.unflatten(0, (self.heads, self.head_dim))
        output_weight = self.output.weight.unflatten(1, (self.heads, self.head_dim))
        joined = torch.einsum("ohe,hed->hdo", output_weight, value_weight)  # (heads, d, d)
        # The keys' bias enters with weight 0: it changes nothing, and training in several processes
        # wants a gradient for every parameter.
        bias = self.output(self.value.bias) + 0 * self.key.bias.sum()
        return queries.flatten(0, 1), joined.flatten(0, 1), bias

    def attend_then_project(
        self, fixed: tuple[Tensor, ...], keys: Tensor, values: Tensor
    ) -> Tensor:
        """The same function with neither keys nor values projected, for heads of full width."""
        queries, joined, bias = fixed
        query = queries.expand(len(keys), 1, -1, -1)  # all heads as one longer list
        attended = F.scaled_dot_product_attention(
            query, keys[:, None], values[:, None], scale=self.head_dim**-0.5
        )
        attended = attended[:, 0].unflatten(1, (self.heads, -1))  # (B, heads, k, d)
        return attended.transpose(1, 2).flatten(2) @ joined + bias


class RememberedConstants:
    """Tensors that depend on weights alone, computed again only after a weight has changed.

    A weight has changed when another tensor stands in its place (loaded, moved, cast) or PyTorch
    has counted a write into it (loaded, trained on). Copies and files hold nothing.
    """

    kept: tuple[Any, list[Tensor], tuple[Tensor, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def forget(self) -> None:
        self.kept = None

    def get(
        self, compute: Callable[[], tuple[Tensor, ...]], weights: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """What `compute` makes of `weights`; anew wherever gradients or a compiler look on."""
        watched = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        if watched or torch.compiler.is_compiling() or any(w.is_inference() for w in weights):
            return compute()
        state = [describe(weight) for weight in weights], precision(weights[0].device)
        kept = self.kept  # read once: threads may share a model
        if kept is None or kept[0] != state:
            # Normal tensors, also in inference mode: later calls may ask for gradients.
            with torch.inference_mode(False), torch.no_grad():
                # The weights' memory is held, so that no later tensor can take its place unnoticed.
                kept = state, [weight.detach() for weight in weights], compute()
            self.kept = kept
        return kept[2]


def describe(weight: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies, how it is read, and how often it was written to."""
    layout = weight.device, weight.dtype, weight.shape, weight.stride()
    return weight.data_ptr(), weight._version, *layout


def precision(device: torch.device) -> Any:
    """The type that mixed precision computes in, None without it."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


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
