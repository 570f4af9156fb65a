"""Score slices: candidate points attend to a slice, and what they learn is decoded as a map.

The attention over fixed queries and the mask decoder are computed in a factorised form: the numbers
of the formulas with less work. Each docstring says which identity it uses; `train/plain` in the
repository of the code has the plain form, and tests compare the two.

Letters in shapes: B batch, k candidate points, d embedding width, S = image_size, N cells of the
refined map for the attention, and image tokens for the decoder.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_rasalore import RasaloreConfig
from .encoder_rasalore import ENCODERS, CheckpointedLayer, Refiner


@dataclass
class RasaloreOutput(ModelOutput):
    """What `RasaloreModel` returns.

    loss: sum of the three parts, batch mean; only with `labels`.
    logits: (B, 1, 2 S, 2 S), sigmoid gives the anomaly score of each pixel.
    point_activations: probability that each candidate point lies on an anomaly, (B, k).
    point_embeddings: enriched spatial point embeddings, (B, k, d).
    decoder_loss, point_activation_loss, structural_loss: the parts, batch means.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]
    point_activations: Tensor = None  # type: ignore[assignment]
    point_embeddings: Tensor = None  # type: ignore[assignment]
    decoder_loss: Tensor | None = None
    point_activation_loss: Tensor | None = None
    structural_loss: Tensor | None = None


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


class PointHead(nn.Module):
    """Point embeddings (B, k, d) -> logit that each point lies on an anomaly, (B, k)."""

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        width = config.embedding_dim
        self.layers = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.LayerNorm(width // 2),
            nn.Linear(width // 2, width // 4),
            nn.ReLU(),
            nn.LayerNorm(width // 4),
            nn.Linear(width // 4, 1),
        )

    def forward(self, point_embeddings: Tensor) -> Tensor:
        return self.layers(point_embeddings).squeeze(-1)


class ScoreHead(nn.Conv2d):
    """1x1 convolution to the one channel of scores.

    Its weights start small: Kaiming's fan-out rule, as in the released code, gives one channel a
    standard deviation of 1.4, so that scores start saturated and small models never learn.
    """


class MaskDecoder(CheckpointedLayer):
    """Point embeddings (B, k, d) and image features (B, d, S/2, S/2) -> logits (B, 1, 2 S, 2 S)."""

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        width, points = config.embedding_dim, config.grid_size**2
        wide, narrow = 4 * config.base_channels, 2 * config.base_channels
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.noise = ValueNoise(config, (config.image_size // 2) ** 2)
        self.dropout = nn.Dropout(config.dropout)
        self.point_norm = nn.LayerNorm(width)
        self.similarity_norm = nn.LayerNorm(points)
        self.up1 = nn.ConvTranspose2d(points, wide, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)
        self.head = ScoreHead(narrow, 1, 1)

    def compute(self, point_embeddings: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        tokens = as_tokens(features)
        attended = self.dropout(self.attend(point_embeddings, tokens))
        points = self.point_norm(point_embeddings + attended)
        hidden = self.upsample_similarity(points, tokens, features).relu_()
        return self.head(self.up2(hidden).relu_())

    def attend(self, point_embeddings: Tensor, tokens: Tensor) -> Tensor:
        """MHA_Dec(Q = point embeddings, K = U, V = U + noise), (B, k, d)."""
        query, key, value = (
            projection(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, source in (
                (self.query, point_embeddings),
                (self.key, tokens),
                (self.value, self.noise(tokens)),
            )
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.output(attended.transpose(1, 2).flatten(2))

    def upsample_similarity(self, points: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
        """up1(LayerNorm_k(F A^T)) for points A (B, k, d) and tokens F (B, N, d), maps of which
        are `features` (B, d, h, w).

        The map F A^T has k channels but rank d. With A' = A minus its mean over k, the LayerNorm's
        centred value of token n and point j is F_n . A'_j and its variance F_n (A'^T A' / k) F_n^T,
        so nothing of width k is needed: scale the tokens, fold gain and A' into the transposed
        convolution's weights (d instead of k input channels, one set per slice), and let the
        LayerNorm's bias enter as one constant channel, which also gets the border right.
        """
        centred = points - points.mean(1, keepdim=True)
        covariance = centred.transpose(1, 2) @ centred / points.shape[1]  # (B, d, d)
        variance = ((tokens @ covariance) * tokens).sum(-1).clamp(min=0)  # (B, N)
        deviation = (variance + self.similarity_norm.eps).sqrt().unflatten(1, features.shape[-2:])
        maps = features / deviation[:, None]  # (B, d, h, w)
        weight = self.up1.weight.flatten(1)  # (k, wide * 4 * 4)
        gain, bias = self.similarity_norm.weight, self.similarity_norm.bias
        folded = (centred * gain[:, None]).transpose(1, 2) @ weight  # (B, d, wide * 16)
        shape = self.up1.weight.shape[1:]
        constant = upsample(
            torch.ones_like(maps[:1, :1]), (bias @ weight).unflatten(0, shape)[None], self.up1.bias
        )
        # One by one: one convolution with a group per slice takes a CPU up to 1.6 times as long.
        upsampled = [
            upsample(maps[i : i + 1], folded[i].unflatten(1, shape)) for i in range(len(maps))
        ]
        return torch.cat(upsampled).add_(constant)


def as_tokens(maps: Tensor) -> Tensor:
    """Maps (B, d, h, w) as tokens (B, h * w, d).

    Contiguous, because fused attention falls back to building its (B, k, N) table otherwise.
    """
    return maps.flatten(2).transpose(1, 2).contiguous()


def upsample(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed 4x4 convolution, stride 2, padding 1: (B, d, h, w) -> (B, C, 2 h, 2 w)."""
    return F.conv_transpose2d(maps, weight, bias, stride=2, padding=1)


class RasaloreNetwork(nn.Module):
    """The layers of a `RasaloreModel` and the way through them, which is all that scoring needs.

    It is a plain module: `PreTrainedModel` comes with generation, a compiler and much else that
    takes two seconds to import, as long as a scan.
    """

    config: Any  # RasaloreConfig; Any, as transformers' models declare theirs otherwise
    name_or_path: Any  # folder or repo id that it was loaded from

    def __init__(self, config: RasaloreConfig):
        super().__init__()
        self.config, self.name_or_path = config, config.name_or_path
        self.add_layers(config)

    def add_layers(self, config: RasaloreConfig) -> None:
        """Make the layers; their weights are whatever torch draws."""
        self.encoder = ENCODERS[config.encoder](config)
        self.refiner = Refiner(config)
        self.location_embeddings = LocationEmbeddings(config)
        self.spatial_attention = RegionAwareSpatialAttention(config)
        self.point_head = PointHead(config)
        self.mask_decoder = MaskDecoder(config)

    def forward(self, pixel_values: Tensor) -> RasaloreOutput:
        """Score every pixel of slices (B, C, S, S) from `RasaloreImageProcessor`.

        Raises:
            ValueError: for pixel values of another shape than the configuration's.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(
                f"pixel_values must be (batch, {', '.join(map(str, expected))}), got "
                f"{tuple(pixel_values.shape)}; prepare slices with RasaloreImageProcessor."
            )
        first, features = self.encoder(pixel_values)
        cells = as_tokens(self.refiner(first))
        point_embeddings = self.spatial_attention(self.location_embeddings(), cells)
        point_logits = self.point_head(point_embeddings)
        logits = self.mask_decoder(point_embeddings, features)
        if not self.training and self.config.temperature != 1:
            logits = logits / self.config.temperature
        return RasaloreOutput(
            logits=logits,
            point_activations=point_logits.sigmoid(),
            point_embeddings=point_embeddings,
        )
