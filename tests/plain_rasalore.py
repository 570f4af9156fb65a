"""Stage 2 in its plain, obvious formulation: the oracle of `modeling_rasalore`.

Every key and value is projected for every head, and the (B, k, N) similarity map is built and
normalised over its k channels, as the poster's formulas say.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_rasalore import RasaloreModel


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
    cells = model.refiner(first).flatten(2).transpose(1, 2)
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
    first, features = model.encoder(pixel_values)
    points = point_embeddings(model, first)
    return {
        "logits": mask_logits(model, points, features),
        "point_activations": model.point_head.layers(points)[..., 0].sigmoid(),
        "point_embeddings": points,
    }
