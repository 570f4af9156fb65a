"""Choose between runs without masks, by what their score maps of validation patients show.

Each criterion sees one thing and is blind to others: a run that marks nothing raises no false
alarm, and runs that make the same mistake agree. So a table shows them side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.metrics import auroc
from ..evaluation.tables import DASH, markdown_table
from ..models.loss_rasalore import soft_dice
from .deletion import deletion_scores

Map = NDArray[np.float32]
Values = dict[str, float | None]  # by name of a criterion; None for what cannot be had
# A hundredth of a slice's brain is 100 to 200 mm2, about the least that makes a slice unhealthy.
# The highest pixel alone would follow noise, and the mean over the brain drowns a small lesion.
TOP_SHARE = 0.01


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
