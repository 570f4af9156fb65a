"""Paint lesions into healthy slices and their neighbours, on the batch's device, with their masks.

Slice labels say which slices are healthy, so a network can learn where a lesion ends before it sees
a real one, and no pixel label is used. Learning from invented anomalies goes back to CutPaste (Li
et al. 2021), Foreign Patch Interpolation (Tan et al. 2020), NSA (Schlueter et al. 2022) and DRAEM
(Zavrtanik et al. 2021). A lesion here is an ellipsoid through all slices with a rough, soft outline
that may follow the tissue it begins in, and in some a core and a rim; fluid stays fluid.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .lesion_recipes import LesionRecipe, lesion_recipe
from .lesion_shapes import Draw, Healthy, Shapes, draw_shapes

BRIGHTEST = 4.0  # relative intensities end here, in medians of the scan's brain
BRAIN_BOX_MM = 160.0  # side of a brain's box, where slices come without a scale
# Slices without their scan have 64 pixels in `tiny`, of which small, faint or ragged lesions fill
# too few: with those it learned nothing (soft Dice on painted lesions 0.03; 0.35 without them). No
# field of brightness either: slices that stay blank are elsewhere, and it would tell them apart.
ALONE: dict[str, Any] = {
    **{"sizes": (0.12, 0.8), "small_share": 0.0, "scattered_share": 0.0, "clear": 0.15},
    **{"softness": (0.05, 0.5), "reluctance": (0.0, 0.5), "bias": 0.0},
}


@dataclass
class SyntheticLesionRecipe:
    """Healthy training slices with painted lesions. Poster and released: none.

    Attributes:
        share: of all training slices; 1: nothing else, and no pseudo-mask is needed.
        blank_share: of those slices, left without lesion: what healthy brain looks like. Stage 1
            needs some.
        minimum_brain_area: mm2 of brain on a slice that is painted on.
    """

    share: float = 0.0
    blank_share: float = 0.0
    minimum_brain_area: float = 4000.0


class PaintedSlices(NamedTuple):
    """Slices with lesions.

    Attributes:
        x: like the slices given.
        target: (B, 2 S, 2 S) uint8, the lesions of the middle slice, without the faint ones.
        faint: (B, 2 S, 2 S) uint8, lesions that are too faint to be asked for, or to be denied.
    """

    x: Tensor
    target: Tensor
    faint: Tensor


def paint_lesions(
    x: Tensor,
    brain: Tensor,
    pixel_mm: Tensor,
    recipe: LesionRecipe,
    generator: torch.Generator | None = None,
) -> PaintedSlices:
    """Return slices with lesions, none in a share of them, and the lesions' masks.

    All slices, also those without lesion, get a smooth field of brightness. Outside the brain
    nothing changes. The middle slice does not depend on whether its neighbours are given.

    Args:
        x: healthy slices (B, n, S, S), n = 1 or 3: below, this and above; intensities relative to
            the median of the scan's brain. Several sequences: (B, C, n, S, S), one look each.
        brain: (B, n, S, S) bool.
        pixel_mm: side of a pixel, (B,).
        recipe: of `lesion_recipe`.
        generator: of the slices' device; None for torch's own.
    """
    values = x if x.ndim == 5 else x[:, None]
    draw = Draw(x.device, generator)
    bias = draw.field(len(values), 3, values.shape[-1])[:, None] * recipe.bias
    ceiling = values.clamp(min=BRIGHTEST)
    values = torch.where(brain[:, None], torch.minimum(values * bias.exp(), ceiling), values)
    healthy = Healthy.of(values, brain, pixel_mm, recipe.looks)
    strength = values.new_zeros(len(values), 1, *values.shape[-2:])
    share = strength.clone()
    before, middle = values, values.shape[2] // 2
    counts, scattered = draw_counts(draw, healthy, recipe)
    values = values.clone()
    for turn in range(int(counts.max())):
        rows = (counts > turn).nonzero()[:, 0]
        here = healthy.rows(rows)
        shapes = draw_shapes(draw, here, recipe, scattered[rows], first=turn == 0)
        values[rows], seen, strong = blend(draw, values[rows], here, shapes, recipe)
        seen, strong = seen[:, :, middle], strong[:, :, middle]
        share[rows] = share[rows] + seen * (1 - share[rows])
        strength[rows] = torch.maximum(strength[rows], strong)
    target, faint = mark_lesions(share[:, 0], strength[:, 0], recipe)
    empty = ~(target | faint).flatten(1).any(1)[:, None, None, None, None]
    painted = torch.where(empty, before, values)
    return PaintedSlices(painted.view_as(x), target.to(torch.uint8), faint.to(torch.uint8))


def mark_lesions(share: Tensor, strength: Tensor, recipe: LesionRecipe) -> tuple[Tensor, Tensor]:
    """Return where clear and where faint lesions are, (B, 2 S, 2 S) bool.

    Args:
        share, strength: of the lesions, (B, S, S).
    """
    planes = torch.stack([share, strength], 1)
    fine = F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=False)
    lesion, clear = fine[:, 0] >= 0.5, fine[:, 1] >= recipe.clear
    return lesion & clear, lesion & ~clear


def draw_counts(draw: Draw, healthy: Healthy, recipe: LesionRecipe) -> tuple[Tensor, Tensor]:
    """Return how many lesions each slice gets, (B,), and whether they are scattered, (B,) bool."""
    size = healthy.size
    count = 1 + sum((draw.uniform(size) < p).long() for p in recipe.further)
    fewest, most = recipe.scattered_count
    scattered = draw.uniform(size) < recipe.scattered_share
    many = draw.uniform(size, (fewest, most + 1)).long()
    blank = (draw.uniform(size) < recipe.blank_share) | ~healthy.present
    return torch.where(scattered, many, count) * ~blank, scattered


def blend(
    draw: Draw, values: Tensor, healthy: Healthy, shapes: Shapes, recipe: LesionRecipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix one lesion into each slice.

    Returns:
        Slices (L, C, n, S, S); share of each pixel that is visibly lesion in any sequence, and how
        strong it is there, (L, 1, n, S, S).
    """
    count = len(values)

    def even(name: str) -> Tensor:
        return draw.even(count, values.new_tensor([getattr(look, name) for look in recipe.looks]))

    def chance(name: str) -> Tensor:  # one number for all sequences: most cores are cores in all
        shares = values.new_tensor([getattr(look, name) for look in recipe.looks])
        return draw.column(count) < shares[:, None, None, None]

    strength, core_factor, rim_factor = even("strength"), even("core"), even("rim")
    replaced = draw.column(count) < recipe.blended
    least = values.new_tensor([look.core_mm for look in recipe.looks])[:, None, None, None]
    core = shapes.core * healthy.solid * (chance("core_share") & (shapes.core_mm >= least))
    rim = core * shapes.rim * chance("rim_share")
    room = torch.where(replaced, healthy.solid, healthy.open)
    lesion = torch.maximum(shapes.lesion * room, core)
    texture = healthy.texture.flip(-2).roll((7, 11), (-2, -1)) * draw.column(count, (0.6, 1.2))
    elsewhere = healthy.level + texture - values
    change = (lesion - core) * (strength * shapes.mottle + replaced * elsewhere) + core * elsewhere
    core_change = (core - rim) * (core_factor - 1) + rim * (rim_factor - 1)
    painted = values + change + core_change * shapes.mottle * healthy.level
    painted = torch.where(lesion > 0, painted.clamp(0, BRIGHTEST), values)
    shares = torch.stack([lesion - core, core - rim, rim])
    strengths = torch.stack([strength, core_factor - 1, rim_factor - 1]).abs()
    visible = (shares * (strengths >= recipe.visible)).sum(0)
    strong = (shares * strengths).sum(0) / lesion.clamp(min=1e-3)
    return painted, visible.amax(1, keepdim=True), strong.amax(1, keepdim=True)


def paint_chosen(
    pixel_values: Tensor, chosen: Tensor, processor: Any, modality: str, grey: bool = False
) -> tuple[Tensor, Tensor]:
    """Paint lesions into some slices of a batch, in place; return target and faint of them.

    Args:
        pixel_values: (B, C, S, S) from `processor`.
        chosen: which of them, (B,) bool.
        modality: the sequence, or all of them as channels.
        grey: the channels are one sequence repeated, as backbones of photographs want it, and stay
            equal.
    """
    images = processor.to_intensities(pixel_values[chosen])
    painted, target, faint = paint_unit_range(images[:, :1] if grey else images, modality)
    pixel_values[chosen] = processor.from_intensities(painted.expand_as(images))
    return target, faint


def paint_unit_range(images: Tensor, modality: str) -> PaintedSlices:
    """Paint slices (B, C, S, S) in [0, 1], 0 outside the brain."""
    brain = images.amax(1, keepdim=True) > 0.02
    inside = torch.where(brain, images, torch.nan).flatten(2)
    median = inside.nanmedian(2).values.nan_to_num(1)[:, :, None, None].clamp(min=1e-3)
    pixel_mm = images.new_full((len(images),), BRAIN_BOX_MM / images.shape[-1])
    recipe = replace(lesion_recipe(modality, blank_share=0.0), **ALONE)
    x = (images / median)[:, :, None]
    painted, target, faint = paint_lesions(x, brain, pixel_mm, recipe)
    back = painted[:, :, 0] * median
    back = back / back.amax((2, 3), keepdim=True).clamp(min=1)  # slices are in [0, 1]
    return PaintedSlices(back, target, faint)
