"""Choose between runs by what their score maps show without masks.

Each criterion sees one thing and is blind to others: a run that marks nothing raises no false
alarm, and runs that make the same mistake agree. So a table shows them side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.metrics import auroc
from ..evaluation.tables import DASH, markdown_table
from ..models.loss_rasalore import soft_dice
from ..models.scan_view_rasalore import Levels

Map = NDArray[np.float32]
Values = dict[str, float | None]  # by name of a criterion; None for what cannot be had
# A hundredth of a slice's brain is 100 to 200 mm2, about the least that makes a slice unhealthy.
# The highest pixel alone would follow noise, and the mean over the brain drowns a small lesion.
TOP_SHARE = 0.01
DELETED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the brain, the hottest pixels first


@dataclass(frozen=True)
class Criterion:
    """Title of its column, and whether the highest value chooses or the lowest."""

    title: str
    highest: bool = True


CRITERIA = {
    "slice_auroc": Criterion("AUROC of slices"),
    "false_alarms": Criterion("False alarms, share of healthy brain", highest=False),
    "deletion": Criterion("Deletion score"),
    "agreement": Criterion("Agreement with other runs"),
    "oracle": Criterion("Oracle: Dice with true masks (no claim)"),
}


@dataclass(frozen=True)
class SliceEvidence:
    """What one run's map of one validation slice shows.

    Attributes:
        unhealthy: the slice's label.
        score: of the slice, see `slice_score`.
        marked, brain: pixels of brain with a score above 0.5, and all pixels of brain.
        deletion: see `score_deletions`; None on a healthy slice.
        agreements: other run -> soft Dice with its map; empty on a healthy slice.
    """

    unhealthy: bool
    score: float
    marked: int
    brain: int
    deletion: float | None = None
    agreements: Mapping[str, float] = field(default_factory=dict)


def slice_score(scores: Map, brain: NDArray[np.bool_]) -> float:
    """Return the mean of the highest hundredth of a slice's brain pixels, at least one.

    Args:
        scores: (H, W); 0 stands for a slice without brain.
        brain: where the slice shows brain, (H, W).
    """
    inside = scores[brain]
    if not inside.size:
        return 0.0
    top = max(round(TOP_SHARE * inside.size), 1)
    return float(np.partition(inside, -top)[-top:].mean())


def score_deletions(
    maps: Sequence[Map],
    images: Sequence[Map],
    processor: Any,
    unhealthy_probability: Callable[[Tensor], Tensor],
    views: Sequence[Any] | None = None,
) -> list[float]:
    """Return how much stage 1's unhealthy probability falls without the highest scores, per map.

    Args:
        maps, images: score maps and their slices, (H, W) each.
        processor: stage 1's.
        unhealthy_probability: as for `deletion_scores`.
        views: of the slices, where the processor sees them as part of their scan.
    """
    pixel_values = processor(list(images), views=views, return_tensors="pt")["pixel_values"]
    heat = processor.crop_maps(maps, images, views=views)
    scores = deletion_scores(heat, pixel_values, unhealthy_probability, levels=processor.levels)
    return scores.tolist()


def agreement(first: Map, second: Map) -> float:
    """Return the soft Dice of two runs' maps of a slice, (H, W); 1 where both are 0 everywhere."""
    maps = [torch.from_numpy(np.asarray(scores))[None] for scores in (first, second)]
    return float(soft_dice(*maps))


def summarise(evidence: Sequence[SliceEvidence]) -> Values:
    """Return the value of each criterion over the validation slices of one run."""
    labels = np.array([shown.unhealthy for shown in evidence], bool)
    scores = np.array([shown.score for shown in evidence])
    both = labels.any() and not labels.all()
    healthy_brain = sum(shown.brain for shown in evidence if not shown.unhealthy)
    alarms = sum(shown.marked for shown in evidence if not shown.unhealthy)
    return {
        "slice_auroc": auroc(scores, labels) if both else None,
        "false_alarms": alarms / healthy_brain if healthy_brain else None,
        "deletion": mean([e.deletion for e in evidence if e.deletion is not None]),
        "agreement": mean([value for shown in evidence for value in shown.agreements.values()]),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing."""
    return sum(values) / len(values) if values else None


def choose(rows: Mapping[str, Values]) -> dict[str, str | None]:
    """Return the run that each criterion chooses; of equals the first, None without a value.

    Args:
        rows: run -> its values.
    """
    chosen: dict[str, str | None] = {}
    for name in next(iter(rows.values()), {}):
        sign = 1 if CRITERIA[name].highest else -1
        known = {run: sign * v for run, values in rows.items() if (v := values[name]) is not None}
        chosen[name] = max(known, key=known.__getitem__) if known else None
    return chosen


def choices_table(rows: Mapping[str, Values]) -> str:
    """Return Markdown: a line per run, a column per criterion, the run that it chooses in bold."""
    chosen = choose(rows)
    names = list(chosen)
    lines = [
        [run, *(_cell(values[name], run == chosen[name]) for name in names)]
        for run, values in rows.items()
    ]
    return markdown_table(["Run", *(CRITERIA[name].title for name in names)], lines)


def _cell(value: float | None, chosen: bool) -> str:
    text = DASH if value is None else f"{value:.4f}"
    return f"**{text}**" if chosen else text


# --- Heatmaps: deleting the hottest pixels lowers the unhealthy probability ---------------------
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
