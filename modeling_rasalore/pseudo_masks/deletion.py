"""Score heatmaps without masks: deleting the hottest pixels lowers the unhealthy probability."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.scan_view_rasalore import Levels

DELETED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)


def deletion_scores(
    heatmaps: Tensor,
    pixel_values: Tensor,
    unhealthy_probability: Callable[[Tensor], Tensor],
    shares: Sequence[float] = DELETED_SHARES,
    levels: Levels | None = None,
) -> Tensor:
    """Return how much the unhealthy probability falls without the hottest pixels, (B,).

    The mean over `shares` of the brain's area; a faithful heatmap scores high. No mask is needed,
    so this may choose between heatmaps. Removed pixels take the slice's median brain value.

    Args:
        heatmaps: (B, h, w), any scale.
        pixel_values: (B, C, H, W), as given to the classifier.
        unhealthy_probability: (B, C, H, W) -> (B,).
        levels: as for `is_brain`; channels then are no copies of each other, and each takes its
            own median.
    """
    size = pixel_values.shape[-2:]
    heat = F.interpolate(heatmaps[:, None].float(), size, mode="bilinear")[:, 0].flatten(1)
    brain = is_brain(pixel_values, levels).flatten(1)
    heat = torch.where(brain, heat, -torch.inf)
    ranks = heat.argsort(1, descending=True).argsort(1)  # 0 = hottest
    shown = pixel_values.mean(1, keepdim=True) if levels is None else pixel_values
    values = torch.where(brain[:, None], shown.flatten(2), torch.nan)
    fill = values.nanmedian(2).values[:, :, None, None]
    before = unhealthy_probability(pixel_values)
    drops = []
    for share in shares:
        deleted = (ranks < share * brain.sum(1, keepdim=True)).unflatten(1, size)[:, None]
        drops.append(before - unhealthy_probability(torch.where(deleted, fill, pixel_values)))
    return torch.stack(drops).mean(0)


def is_brain(pixel_values: Tensor, levels: Levels | None = None) -> Tensor:
    """Return pixels above a slice's darkest value, (B, H, W): stripped background is constant.

    Args:
        levels: of slices seen with their scan, whose background has values of its own.
    """
    if levels is not None:
        return (pixel_values != levels.outside.to(pixel_values)).any(1)
    intensity = pixel_values.mean(1)
    low = intensity.amin((1, 2), keepdim=True)
    spread = intensity.amax((1, 2), keepdim=True) - low
    return intensity > low + 1e-3 * spread


def choose_heatmap(scores: dict[str, float]) -> str:
    """Return the kind of heatmap with the highest deletion score; ties go to the first."""
    return max(scores, key=lambda kind: scores[kind])
