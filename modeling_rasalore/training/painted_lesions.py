"""Paint lesions into healthy slices, on the batch's own device, with their exact masks.

Slice labels say which slices are healthy, so a network can learn where a lesion ends before it sees
a real one, and no pixel label is used. Learning from invented anomalies goes back to CutPaste (Li
et al. 2021), Foreign Patch Interpolation (Tan et al. 2020), NSA (Schlueter et al. 2022) and DRAEM
(Zavrtanik et al. 2021); what is painted here follows the tumours of `phantom_tumours.py`: a
perturbed ellipse that displaces its surroundings, a core with or without a rim, and oedema that
follows the tissue and leaves fluid alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST, LARGEST = 0.1, 0.8  # diameter of a lesion as a share of the slice's side
BRIGHTER = (1.2, 2.4)  # intensity of a lesion as a multiple of the brain's median
DARKER = (0.4, 0.85)


@dataclass
class SyntheticLesionRecipe:
    """Healthy training slices with painted lesions. Poster and released: none.

    Attributes:
        share: of all training slices; 1: nothing else, and no pseudo-mask is needed.
        blank_share: of those slices, left as they are: what healthy brain looks like. Stage 1
            needs some.
        darker_share: of the lesions, darker than tissue; 0 suits T2 and FLAIR.
        minimum_brain_area: mm2 of brain on a slice that is painted on.
    """

    share: float = 0.0
    blank_share: float = 0.0
    darker_share: float = 0.0
    minimum_brain_area: float = 4000.0


@dataclass(frozen=True)
class Shape:
    """Where each lesion of a batch is; maps are (B, 1, H, W).

    Attributes:
        lesion, core, rim: share of each pixel that they take up, in [0, 1]; the rim is part of the
            core and the core part of the lesion.
        distance: from the centre, 1 at the lesion's outline.
        offsets: (B, 2, H, W), (x, y) from the centre, in slices of width 2.
    """

    lesion: Tensor
    core: Tensor
    rim: Tensor
    distance: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Contrast:
    """Intensity of each part per channel, (B, C, 1, 1), and whether the lesion is brighter than
    brain, (B, 1, 1, 1) bool."""

    oedema: Tensor
    core: Tensor
    rim: Tensor
    brighter: Tensor


class Draw:
    """Random numbers for one batch, on its device, from torch's own generator of that device."""

    def __init__(self, batch: int, device: torch.device):
        self.batch, self.device = batch, device

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """Return (B, channels, 1, 1) between two numbers."""
        draws = torch.rand(self.batch, channels, 1, 1, device=self.device)
        return low + (high - low) * draws

    def log_uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """Return (B, channels, 1, 1) between two numbers, equal ratios equally often."""
        return low * (high / low) ** self.uniform(0, 1, channels)

    def happens(self, probability: float) -> Tensor:
        """Return (B, 1, 1, 1) bool."""
        return self.uniform(0, 1) < probability

    def field(self, knots: int, side: int, channels: int = 1) -> Tensor:
        """Return (B, channels, side, side), smooth, about standard normal, `knots` to a side."""
        coarse = torch.randn(self.batch, channels, knots + 2, knots + 2, device=self.device)
        fine = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
        return fine / 0.7  # between its knots interpolation averages


def paint_lesions(images: Tensor, darker_share: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return slices with one lesion each and the lesions' masks.

    Random numbers come from torch's generator of the slices' device: seed it for the same lesions.

    Args:
        images: healthy slices (B, C, S, S), each channel in [0, 1], 0 outside the brain; channels
            are sequences of the same slice and get the same lesion, each with its own contrast.
        darker_share: how many lesions are darker than the tissue around them.

    Returns:
        Slices like `images`, in [0, 1], and masks (B, 2 S, 2 S) uint8: at least half lesion. A
        slice without brain stays as it is, with an empty mask.
    """
    draw = Draw(len(images), images.device)
    fine = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    brain = fine.amax(1, keepdim=True) > 0.02
    shape = draw_shape(draw, fine, brain)
    fine = displace(draw, fine, shape) * brain
    contrast = draw_contrast(draw, fine, brain, darker_share)
    # Fluid that outshines the lesion stays what it is; a core replaces whatever was there.
    higher = (fine - contrast.oedema).mean(1, keepdim=True) > 0
    oedema = (shape.lesion - shape.core) * (higher != contrast.brighter)
    painted = paint(draw, fine, contrast, oedema, shape.core - shape.rim, shape.rim)
    mask = oedema + shape.core >= 0.5
    return F.avg_pool2d(painted, 2), mask[:, 0].to(torch.uint8)


def paint_chosen(
    pixel_values: Tensor, chosen: Tensor, processor: Any, darker_share: float, grey: bool = False
) -> Tensor:
    """Paint a lesion into some slices of a batch, in place; return their masks (n, 2 S, 2 S).

    Args:
        pixel_values: (B, C, S, S) from `processor`.
        chosen: which of them, (B,) bool.
        grey: the channels are one sequence repeated, as backbones of photographs want it, and stay
            equal.
    """
    images = processor.to_intensities(pixel_values[chosen])
    painted, masks = paint_lesions(images[:, :1] if grey else images, darker_share)
    pixel_values[chosen] = processor.from_intensities(painted.expand_as(images))
    return masks


def draw_shape(draw: Draw, fine: Tensor, brain: Tensor) -> Shape:
    """Return one perturbed ellipse per slice, inside its brain."""
    offsets = grid(fine) - draw_centres(brain)
    solid = draw_ellipse(draw, offsets)
    # Oedema prefers tissue like that where it began: it grows fingers and stops at fluid.
    smooth = F.avg_pool2d(fine.mean(1, keepdim=True), 5, stride=1, padding=2)
    nearest = solid.flatten(1).argmin(1)
    origin = smooth.flatten(1).gather(1, nearest[:, None])[:, :, None, None]
    spread = solid * (1 + draw.uniform(0, 2.5) * (smooth / origin.clamp(min=0.05) - 1).abs())

    core_radius = draw.uniform(0, 0.9) * draw.happens(0.8)
    rim_width = draw.uniform(0.1, 0.4) * draw.happens(0.5)
    core = inside(solid, core_radius, 0.1) * (core_radius > 0) * brain
    lesion = torch.maximum(core, inside(spread, 1.0, draw.uniform(0.05, 0.4)) * brain)
    rim = core * (1 - inside(solid, core_radius - rim_width, 0.1)) * (rim_width > 0)
    return Shape(lesion, core, rim, solid, offsets)


def draw_ellipse(draw: Draw, offsets: Tensor) -> Tensor:
    """Return distances from an ellipsoid's centre on a slice, 1 at its rough outline.

    Slices near its ends show little of it, without core and with a wide border.
    """
    side = offsets.shape[-1]
    # A diameter in shares is a radius in width 2; uniform in area: large ones are common.
    radius = draw.uniform(SMALLEST**2, LARGEST**2).sqrt()
    angle, stretch = draw.uniform(0, torch.pi), draw.uniform(-0.4, 0.4).exp()
    x, y = offsets[:, :1], offsets[:, 1:]
    along = (angle.cos() * x + angle.sin() * y) * stretch
    across = (angle.cos() * y - angle.sin() * x) / stretch
    rough = 0.25 * draw.field(5, side) + 0.1 * draw.field(12, side) + 0.04 * draw.field(30, side)
    height = draw.uniform(0, 0.95)  # of the slice above the centre, in radii
    flat = (along.square() + across.square()) / radius.square()
    return (flat + height.square()).sqrt() * rough.exp()


def draw_centres(brain: Tensor) -> Tensor:
    """Return a random point in each brain, away from its surface, (B, 2, 1, 1), (x, y)."""
    depth = F.avg_pool2d(brain.float(), 9, stride=1, padding=4)
    pixels = torch.multinomial(torch.where(depth > 0.9, depth, 1e-6).flatten(1), 1)[:, 0]
    height, width = brain.shape[-2:]
    column, row = pixels % width, pixels // width
    centres = [(2 * column + 1) / width - 1, (2 * row + 1) / height - 1]
    return torch.stack(centres, 1)[:, :, None, None]


def displace(draw: Draw, fine: Tensor, shape: Shape) -> Tensor:
    """Push the surroundings outwards by up to a fifth of the lesion's radius: mass effect."""
    fade = ((2.5 - shape.distance) / 1.5).clamp(0, 1).square()
    factor = draw.uniform(0, 0.2) * fade / shape.distance.clamp(min=1)
    source = grid(fine) - factor * shape.offsets
    return F.grid_sample(fine, source.permute(0, 2, 3, 1), align_corners=False)


def draw_contrast(draw: Draw, fine: Tensor, brain: Tensor, darker_share: float) -> Contrast:
    """Return contrasts brighter or darker than the median of each channel's brain."""
    channels = fine.shape[1]
    values = torch.where(brain, fine, torch.nan).flatten(2)
    median = values.nanmedian(2).values.nan_to_num()[:, :, None, None]
    brighter = ~draw.happens(darker_share)
    bright, dark = draw.log_uniform(*BRIGHTER, channels), draw.log_uniform(*DARKER, channels)
    oedema = median * torch.where(brighter, bright, dark)
    core = oedema * draw.log_uniform(0.6, 1.5, channels)
    rim = oedema * draw.log_uniform(0.7, 1.6, channels)
    return Contrast(oedema, core, rim, brighter)


def paint(
    draw: Draw, fine: Tensor, contrast: Contrast, oedema: Tensor, core: Tensor, rim: Tensor
) -> Tensor:
    """Mix the parts into slices; texture and noise of what was there partly show through."""
    mottle = 1 + draw.uniform(0.02, 0.12) * draw.field(12, fine.shape[-1], fine.shape[1])
    texture = draw.uniform(0.2, 1) * (fine - F.avg_pool2d(fine, 5, stride=1, padding=2))
    level = oedema * contrast.oedema + core * contrast.core + rim * contrast.rim
    share = oedema + core + rim
    painted = (fine * (1 - share) + level * mottle + share * texture).clamp(min=0)
    return painted / painted.amax((2, 3), keepdim=True).clamp(min=1)  # slices are scaled to [0, 1]


def grid(fine: Tensor) -> Tensor:
    """Return (x, y) of every pixel's centre in [-1, 1], (1, 2, H, W)."""
    height, width = fine.shape[-2:]
    rows = (2 * torch.arange(height, device=fine.device) + 1) / height - 1
    columns = (2 * torch.arange(width, device=fine.device) + 1) / width - 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])[None]


def inside(distance: Tensor, radius: Tensor | float, fade: Tensor | float) -> Tensor:
    """Return 1 well inside a radius, 0 outside, over a border of width `fade`."""
    return (0.5 + (radius - distance) / fade).clamp(0, 1)
