"""Stage 2 in its plain, obvious formulation, from the weights of a `RasaloreModel`.

Every key and value is projected for every head, the (B, k, N) similarity map is built and
normalised over its k channels, every map is pooled and added at full size, and the losses loop over
the samples, with blurs by scipy: as the formulas say, and as the released code computes them.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.models.loss_rasalore import (
    OVERLAP_LOSSES,
    el_dice,
    sample_at_points,
    soft_dice,
    where_not_empty,
)


def conv_block(block: Any, maps: Tensor) -> Tensor:
    """Two convolutions, LayerNorm over channels, dropout."""
    hidden = F.relu(block.conv2(F.relu(block.conv1(maps))))
    return block.dropout(block.norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def encode(model: RasaloreModel, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """First block's map (B, c, S, S), or (B, c, S/2, S/2), and features (B, d, S/2, S/2)."""
    blocks: Any = model.encoder.blocks
    first = conv_block(blocks[0], pixel_values)
    if model.config.encoder == "pyramid":
        return F.max_pool2d(first, 2), climb_pyramid(model.encoder, first)
    hidden = conv_block(blocks[2], conv_block(blocks[1], first))
    return first, conv_block(blocks[3], F.max_pool2d(hidden, 2))


def climb_pyramid(encoder: Any, first: Tensor) -> Tensor:
    """First block's map (B, c, S, S) down to S/8 and back up to features (B, d, S/2, S/2)."""
    half = conv_block(encoder.blocks[1], F.max_pool2d(first, 2))
    quarter = conv_block(encoder.blocks[2], F.max_pool2d(half, 2))
    features = conv_block(encoder.blocks[3], F.max_pool2d(quarter, 2))
    for lateral, joint, finer in zip(
        encoder.laterals, encoder.joints, (quarter, half), strict=True
    ):
        upsampled = F.interpolate(features, finer.shape[-2:], mode="bilinear")
        hidden = F.relu(joint.conv(upsampled + lateral(finer)))
        features = joint.norm(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return features


def refine(refiner: Any, first: Tensor) -> Tensor:
    """R(X), (B, d, s, s)."""
    hidden = F.relu(refiner.conv_norm(refiner.conv(first)))
    hidden = F.relu(refiner.up1_norm(refiner.up1(hidden)))
    hidden = F.relu(refiner.up2_norm(refiner.up2(hidden)))
    return refiner.pool(hidden + refiner.skip(first))


def attend(module: Any, heads: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Multi-head attention of (B, k, d) to (B, N, d), one head after the other."""
    projected = (module.query(queries), module.key(keys), module.value(values))
    attended = []
    for query, key, value in zip(*(p.chunk(heads, dim=-1) for p in projected), strict=True):
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        attended.append(scores.softmax(-1) @ value)
    return module.output(torch.cat(attended, dim=-1))


def point_embeddings(model: RasaloreModel, first: Tensor) -> Tensor:
    """Region-aware spatial attention, first block's map -> (B, k, d)."""
    rasa = model.spatial_attention
    cells = refine(model.refiner, first).flatten(2).transpose(1, 2)
    locations = model.location_embeddings.table.expand(len(cells), -1, -1)
    return locations + attend(rasa, rasa.heads, locations, cells, rasa.noise(cells))


def mask_logits(model: RasaloreModel, points: Tensor, features: Tensor) -> Tensor:
    """Mask decoder, (B, k, d) and (B, d, h, w) -> (B, 1, 4 h, 4 w)."""
    decoder = model.mask_decoder
    tokens = features.flatten(2).transpose(1, 2)
    attended = attend(decoder, decoder.heads, points, tokens, decoder.noise(tokens))
    points = decoder.point_norm(points + decoder.dropout(attended))
    similarity = decoder.similarity_norm(tokens @ points.transpose(1, 2))  # (B, N, k)
    maps = similarity.transpose(1, 2).unflatten(2, features.shape[-2:])  # (B, k, h, w)
    return decoder.head(F.relu(decoder.up2(F.relu(decoder.up1(maps)))))


def plain_forward(model: RasaloreModel, pixel_values: Tensor) -> dict[str, Tensor]:
    """The tensors of `RasaloreOutput` without the losses, from the model's own weights."""
    first, features = encode(model, pixel_values)
    points = point_embeddings(model, first)
    return {
        "logits": mask_logits(model, points, features),
        "point_activations": model.point_head.layers(points)[..., 0].sigmoid(),
        "point_embeddings": points,
    }


# --- Losses, one sample after the other -------------------------------------------------------
def blurred(mask: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of one mask (1, 1, H, W) by scipy, divided by its maximum."""
    blur = gaussian_filter(mask[0, 0].cpu().numpy(), sigma, mode="reflect")
    blur = blur / max(float(blur.max()), float(np.finfo(np.float32).tiny))
    return torch.from_numpy(blur)[None, None].to(mask)


def decoder_loss(config: RasaloreConfig, scores: Tensor, pseudo: Tensor, sam: Tensor) -> Tensor:
    """Decoder loss of one sample, maps (1, 1, H, W) -> (1,)."""
    overlap, scale = OVERLAP_LOSSES[config.decoder_loss], config.output_size / 256
    background = 1 - pseudo
    centre = pseudo * blurred(pseudo, scale * config.foreground_sigma)
    border = sam * (1 - blurred(sam, scale * config.foreground_sigma))
    surroundings = background * blurred(background, scale * config.background_sigma)
    agreement = config.sam_weight * soft_dice(sam, pseudo)
    beside = where_not_empty(el_dice((1 - scores) * background, surroundings), surroundings)
    return (
        where_not_empty(overlap(scores, centre), centre)
        + agreement * where_not_empty(overlap(scores, border), border)
        + config.false_positive_weight * (scores * background).mean()
        + config.background_weight * beside
    )


def structural_loss(points: Tensor, active: Tensor) -> Tensor:
    """Structural loss of one sample, (k, d) and (k,) bool -> (); 0 for a half without points."""
    towards = ((points[active], 1.0), (points[~active], -1.0))
    halves = [F.mse_loss(half, torch.full_like(half, goal)) for half, goal in towards if len(half)]
    return torch.stack(halves).sum()


def plain_loss(
    config: RasaloreConfig, outputs: dict[str, Tensor], pseudo_masks: Tensor, sam_masks: Tensor
) -> Tensor:
    """Total loss, batch mean; masks (B, 1, 2 S, 2 S) float, 0 or 1."""
    scores, points = outputs["logits"].sigmoid(), sample_at_points(pseudo_masks, config.grid_size)
    total = torch.zeros(())
    for i in range(len(scores)):
        sample = slice(i, i + 1)
        activation = el_dice(outputs["point_activations"][sample], points[sample])
        total = total + (
            decoder_loss(config, scores[sample], pseudo_masks[sample], sam_masks[sample]).sum()
            + config.point_activation_weight * where_not_empty(activation, points[sample]).sum()
            + config.structural_weight
            * structural_loss(outputs["point_embeddings"][i], points[i] > 0)
        )
    return total / len(scores)
