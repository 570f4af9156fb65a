"""Train, save and share RASALoRE, stage 2, as a transformers model (poster, "Stage 2").

Letters in shapes: B batch, C channels, S = image_size.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_rasalore import RasaloreConfig
from .loss_rasalore import (
    cross_entropy_and_dice,
    decoder_loss,
    point_activation_loss,
    resize_masks,
    sample_at_points,
    structural_loss,
)
from .network_rasalore import (
    LocationEmbeddings,
    RasaloreNetwork,
    RasaloreOutput,
    ScoreHead,
    ValueNoise,
)


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


class RasaloreModel(RasaloreNetwork, RasalorePreTrainedModel):
    """Region-aware spatial attention over location-based random embeddings, slice -> scores."""

    def __init__(self, config: RasaloreConfig):
        RasalorePreTrainedModel.__init__(self, config)
        self.add_layers(config)
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
        output = super().forward(pixel_values)
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


# A saved model carries its own files and loads elsewhere with trust_remote_code=True.
RasaloreConfig.register_for_auto_class()
RasaloreModel.register_for_auto_class("AutoModel")
