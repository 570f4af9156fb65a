"""RASALoRE, stage 2: from a brain slice to a map of anomaly scores (poster, "Stage 2").

Location embeddings, region-aware spatial attention, mask decoder, and the whole. The
attention over fixed queries and the mask decoder are computed in a factorised form that gives the
same numbers as the formulas with less work; each place says which identity it uses.

Letters in shapes: B batch, k candidate points, d embedding width, N image tokens, S = image_size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_rasalore import RasaloreConfig
from .encoder_rasalore import Refiner, SliceEncoder
from .loss_rasalore import (
    decoder_loss,
    point_activation_loss,
    resize_masks,
    sample_at_points,
    structural_loss,
)


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
        if self.head_dim < cells.shape[-1]:
            enriched = self.project_then_attend(location_embeddings, cells, values)
        else:
            enriched = self.attend_then_project(location_embeddings, cells, values)
        return location_embeddings + enriched

    def split_heads(self, projected: Tensor) -> Tensor:
        """(..., n, heads * head_dim) -> (..., heads, n, head_dim)."""
        return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def project_then_attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The textbook order, cheapest where a head is narrower than d."""
        query = self.split_heads(self.query(queries)).expand(len(keys), -1, -1, -1)
        attended = F.scaled_dot_product_attention(
            query, self.split_heads(self.key(keys)), self.split_heads(self.value(values))
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def attend_then_project(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The same function with neither keys nor values projected, for heads of full width.

        (E W_q)(R W_k)^T = ((E W_q) W_k^T) R^T: the keys' weights fold into the fixed queries, and
        what the keys' bias adds is one constant per query, which the softmax drops. A weighted
        mean of projected values is the projected weighted mean, so W_v and W_o fold into one
        matrix per head that is applied to k points instead of N tokens.
        """
        key_weight = self.key.weight.unflatten(0, (self.heads, self.head_dim))  # (heads, e, d)
        folded = self.split_heads(self.query(queries)) @ key_weight  # (heads, k, d)
        query = folded.flatten(0, 1).expand(len(keys), 1, -1, -1)  # all heads as one longer list
        attended = F.scaled_dot_product_attention(
            query, keys[:, None], values[:, None], scale=self.head_dim**-0.5
        )
        attended = attended[:, 0].unflatten(1, (self.heads, -1))  # (B, heads, k, d)
        value_weight = self.value.weight.unflatten(0, (self.heads, self.head_dim))
        output_weight = self.output.weight.unflatten(1, (self.heads, self.head_dim))
        joined = torch.einsum("ohe,hed->hdo", output_weight, value_weight)  # (heads, d, d)
        # The keys' bias enters with weight 0: it changes nothing, and training in several processes
        # wants a gradient for every parameter.
        bias = self.output(self.value.bias) + 0 * self.key.bias.sum()
        width = attended.shape[-1]
        return attended.transpose(1, 2).flatten(2) @ joined.reshape(-1, width) + bias


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


class MaskDecoder(GradientCheckpointingLayer):
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

    def forward(self, point_embeddings: Tensor, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)  # (B, N, d)
        attended = self.dropout(self.attend(point_embeddings, tokens))
        points = self.point_norm(point_embeddings + attended)
        hidden = self.upsample_similarity(points, features).relu_()
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

    def upsample_similarity(self, points: Tensor, features: Tensor) -> Tensor:
        """up1(LayerNorm_k(F A^T)) for tokens F (B, N, d) and points A (B, k, d).

        The map F A^T has k channels but rank d. With A' = A minus its mean over k, the LayerNorm's
        centred value of token n and point j is F_n . A'_j and its variance F_n (A'^T A' / k) F_n^T,
        so nothing of width k is needed: scale the tokens, fold gain and A' into the transposed
        convolution's weights (d instead of k input channels, one set per slice), and let the
        LayerNorm's bias enter as one constant channel, which also gets the border right.
        """
        centred = points - points.mean(1, keepdim=True)
        covariance = centred.transpose(1, 2) @ centred / points.shape[1]  # (B, d, d)
        rows, columns = features.shape[-2:]
        tokens = features.flatten(2).transpose(1, 2)
        variance = ((tokens @ covariance) * tokens).sum(-1, keepdim=True).clamp(min=0)
        scaled = tokens * torch.rsqrt(variance + self.similarity_norm.eps)  # (B, N, d)
        weight = self.up1.weight.flatten(1)  # (k, wide * 4 * 4)
        gain, bias = self.similarity_norm.weight, self.similarity_norm.bias
        folded = (centred * gain[:, None]).transpose(1, 2) @ weight  # (B, d, wide * 16)
        maps = scaled.transpose(1, 2).unflatten(2, (rows, columns))
        constant = F.conv_transpose2d(
            torch.ones_like(maps[:1, :1]),
            (bias @ weight).unflatten(0, self.up1.weight.shape[1:])[None],
            self.up1.bias,
            stride=2,
            padding=1,
        )
        return upsample_each(maps, folded.unflatten(2, self.up1.weight.shape[1:])) + constant


def upsample_each(maps: Tensor, weights: Tensor) -> Tensor:
    """Transposed 4x4 convolution, stride 2, padding 1, of each map with weights of its own.

    Maps (B, d, h, w) and weights (B, d, C, 4, 4) -> (B, C, 2 h, 2 w); one group per sample.
    """
    batch = len(maps)
    grouped = maps.flatten(0, 1)[None], weights.flatten(0, 1)
    upsampled = F.conv_transpose2d(*grouped, stride=2, padding=1, groups=batch)
    return upsampled[0].unflatten(0, (batch, -1))


class RasalorePreTrainedModel(PreTrainedModel):
    """Initialisation and loading shared by RASALoRE models."""

    config_class = RasaloreConfig
    base_model_prefix = "rasalore"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            if isinstance(module, ScoreHead):
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LocationEmbeddings):
            init.copy_(module.table, module.make_table())
        elif isinstance(module, ValueNoise) and module.kind == "learned":
            init.normal_(module.noise, std=module.std)


class RasaloreModel(RasalorePreTrainedModel):
    """Region-aware spatial attention over location-based random embeddings, slice -> scores."""

    def __init__(self, config: RasaloreConfig):
        super().__init__(config)
        self.encoder = SliceEncoder(config)
        self.refiner = Refiner(config)
        self.location_embeddings = LocationEmbeddings(config)
        self.spatial_attention = RegionAwareSpatialAttention(config)
        self.point_head = PointHead(config)
        self.mask_decoder = MaskDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        sam_masks: Tensor | None = None,
    ) -> RasaloreOutput:
        """Score every pixel of a batch of slices.

        Args:
            pixel_values: (B, C, S, S) from `RasaloreImageProcessor`.
            labels: pseudo-masks M_DDPT, 0 or 1, (B, H, W) or (B, 1, H, W) in the same crop as
                `pixel_values`; any H and W, 2 S is used as it is.
            sam_masks: M_SAM of the same slices, same shapes; None without a prompted segmenter.

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
        cells = self.refiner(first).flatten(2).transpose(1, 2)  # (B, s * s, d)
        point_embeddings = self.spatial_attention(self.location_embeddings(), cells)
        point_logits = self.point_head(point_embeddings)
        output = RasaloreOutput(
            logits=self.mask_decoder(point_embeddings, features),
            point_activations=point_logits.sigmoid(),
            point_embeddings=point_embeddings,
        )
        if labels is not None:
            self.add_losses(output, labels, sam_masks)
        return output

    def add_losses(self, output: RasaloreOutput, labels: Tensor, sam_masks: Tensor | None) -> None:
        """Fill the output's losses in place: total and parts, batch means in float32."""
        config = self.config
        with torch.autocast(labels.device.type, enabled=False):
            scores = output.logits.float().sigmoid()
            pseudo_masks = resize_masks(labels, config.output_size)
            if sam_masks is not None:
                sam_masks = resize_masks(sam_masks, config.output_size)
            scale = config.output_size / 256  # the blurs are stated for 256-pixel maps
            output.decoder_loss = decoder_loss(
                scores,
                pseudo_masks,
                sam_masks,
                overlap_loss=config.decoder_loss,
                false_positive_weight=config.false_positive_weight,
                background_weight=config.background_weight,
                sam_weight=config.sam_weight,
                foreground_sigma=scale * config.foreground_sigma,
                background_sigma=scale * config.background_sigma,
            ).mean()
            points = sample_at_points(pseudo_masks, config.grid_size)
            output.point_activation_loss = point_activation_loss(
                output.point_activations.float(), points
            ).mean()
            output.structural_loss = structural_loss(output.point_embeddings.float(), points).mean()
        output.loss = (
            output.decoder_loss
            + config.point_activation_weight * output.point_activation_loss
            + config.structural_weight * output.structural_loss
        )
