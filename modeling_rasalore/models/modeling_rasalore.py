"""Score every pixel of a brain slice with RASALoRE, stage 2 (poster, "Stage 2").

The mask decoder and the attention over fixed queries are computed in a factorised form: the numbers
of the formulas with less work. Each docstring says which identity it uses; `train/plain` in the
repository of the code has the plain form, and tests compare the two.

Letters in shapes: B batch, k candidate points, d embedding width, N image tokens, S = image_size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .attention_rasalore import LocationEmbeddings, RegionAwareSpatialAttention, ValueNoise
from .configuration_rasalore import RasaloreConfig
from .encoder_rasalore import Refiner, SliceEncoder
from .loss_rasalore import (
    cross_entropy_and_dice,
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
        ignored: Tensor | None = None,
    ) -> RasaloreOutput:
        """Score every pixel of a batch of slices.

        Args:
            pixel_values: (B, C, S, S) from `RasaloreImageProcessor`.
            labels: pseudo-masks M_DDPT, 0 or 1, (B, H, W) or (B, 1, H, W) in the same crop as
                `pixel_values`; any H and W, 2 S is used as it is.
            sam_masks: M_SAM of the same slices, same shapes; None without a prompted segmenter.
            ignored: 1 on pixels that no loss shall see, same shapes; None where there are none.

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
        output = RasaloreOutput(
            logits=logits,
            point_activations=point_logits.sigmoid(),
            point_embeddings=point_embeddings,
        )
        if labels is not None:
            self.add_losses(output, labels, sam_masks, ignored)
        return output

    def add_losses(
        self,
        output: RasaloreOutput,
        labels: Tensor,
        sam_masks: Tensor | None,
        ignored: Tensor | None = None,
    ) -> None:
        """Fill the output's losses in place: total and parts, batch means in float32."""
        config = self.config
        with torch.autocast(labels.device.type, enabled=False):
            pseudo_masks = resize_masks(labels, config.output_size)
            if sam_masks is not None:
                sam_masks = resize_masks(sam_masks, config.output_size)
            unknown_points = None
            if ignored is not None:
                ignored = resize_masks(ignored, config.output_size)
                unknown_points = sample_at_points(ignored, config.grid_size)
            if config.decoder_loss == "bce_dice":
                losses = cross_entropy_and_dice(
                    output.logits.float(), pseudo_masks, sam_masks, config.sam_weight, ignored
                )
            else:
                scale = config.output_size / 256  # the blurs are stated for 256-pixel maps
                losses = decoder_loss(
                    output.logits.float().sigmoid(),
                    pseudo_masks,
                    sam_masks,
                    overlap_loss=config.decoder_loss,
                    false_positive_weight=config.false_positive_weight,
                    background_weight=config.background_weight,
                    sam_weight=config.sam_weight,
                    foreground_sigma=scale * config.foreground_sigma,
                    background_sigma=scale * config.background_sigma,
                    ignored=ignored,
                )
            output.decoder_loss = losses.mean()
            points = sample_at_points(pseudo_masks, config.grid_size)
            output.point_activation_loss = point_activation_loss(
                output.point_activations.float(), points, unknown_points
            ).mean()
            output.structural_loss = structural_loss(
                output.point_embeddings.float(), points, unknown_points
            ).mean()
        output.loss = (
            output.decoder_loss
            + config.point_activation_weight * output.point_activation_loss
            + config.structural_weight * output.structural_loss
        )
