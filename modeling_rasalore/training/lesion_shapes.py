"""Draw where lesions lie in healthy slices and what form they have, many at once."""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .lesion_recipes import LesionRecipe, Look, Span


class Draw:
    """Random numbers on one device, from one generator."""

    def __init__(self, device: torch.device, generator: torch.Generator | None = None):
        self.device, self.generator = device, generator

    def uniform(self, count: int, span: Span = (0, 1)) -> Tensor:
        """Return (count,) between two numbers."""
        draws = torch.rand(count, device=self.device, generator=self.generator)
        return span[0] + (span[1] - span[0]) * draws

    def column(self, count: int, span: Span = (0, 1)) -> Tensor:
        """Return (count, 1, 1, 1, 1) between two numbers."""
        return self.uniform(count, span).view(-1, 1, 1, 1, 1)

    def even(self, count: int, spans: Tensor) -> Tensor:
        """Return (count, C, 1, 1, 1) between the two numbers of each of C spans, (C, 2)."""
        draws = torch.rand(count, len(spans), device=self.device, generator=self.generator)
        low, high = spans.unbind(1)
        return (low + (high - low) * draws)[:, :, None, None, None]

    def field(
        self, count: int, knots: int, side: int, planes: int = 1, agreement: float = 0.0
    ) -> Tensor:
        """Return (count, planes, side, side): smooth, standard normal at every pixel.

        Args:
            count: how many independent ones.
            knots: independent numbers along a side, about.
            side: pixels.
            planes: slices of one field.
            agreement: correlation of those.
        """
        shape = (count, planes + 1, knots + 3, knots + 3)
        coarse = torch.randn(shape, device=self.device, generator=self.generator)
        common, own = coarse[:, :1], coarse[:, 1:]
        coarse = agreement**0.5 * common + (1 - agreement) ** 0.5 * own
        basis = spline_basis(knots, side).to(self.device)
        return basis @ coarse @ basis.T


@lru_cache(maxsize=16)
def spline_basis(knots: int, side: int) -> Tensor:
    """Return (side, knots + 3) weights of cubic B-splines, each row of unit length."""
    position = (torch.arange(side) + 0.5) * knots / side + 1
    distance = (position[:, None] - torch.arange(knots + 3)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    return weights / weights.norm(dim=1, keepdim=True)


@dataclass(frozen=True)
class Healthy:
    """What painting has to know of slices before it.

    Attributes:
        open: (B, C, n, S, S), share of each pixel that is brain and no fluid.
        solid: the same, with furrows as wide as two pixels on either side closed, as by a mass.
        level: (B, C, n, S, S), mean of the brain around each pixel.
        texture: (B, C, n, S, S), the rest; 0 at the brain's surface and outside.
        tissue: (B, 1, n, S, S), fine structure without noise, in standard deviations, mean of
            sequences.
        deep: (B, S S), 1 where a lesion may begin in the middle slice.
        white: (B, S S), 1 where a lesion of white matter may.
        pixel_mm: (B, 1, 1, 1, 1).
    """

    open: Tensor
    solid: Tensor
    level: Tensor
    texture: Tensor
    tissue: Tensor
    deep: Tensor
    white: Tensor
    pixel_mm: Tensor

    @classmethod
    def of(
        cls, values: Tensor, brain: Tensor, pixel_mm: Tensor, looks: tuple[Look, ...]
    ) -> "Healthy":
        """Read slices (B, C, n, S, S) with their brains (B, n, S, S) bool."""
        within = brain[:, None].to(values.dtype)
        begin, end = values.new_tensor([look.fluid for look in looks]).T[..., None, None, None]
        unmixed = (1 - (values - begin) / (end - begin)).clamp(0, 1) * within
        closed = F.max_pool2d(unmixed.flatten(0, 2), 5, stride=1, padding=2).view_as(unmixed)
        level = coarse_mean(values * unmixed, unmixed)
        # Neither vessels nor the outlines of furrows.
        texture = (values - level).clamp(-0.35, 0.35) * blur(unmixed, 2) ** 4
        tissue = blur(values * unmixed, 1) / blur(unmixed, 1).clamp(min=0.05)
        middle = slice(values.shape[2] // 2, values.shape[2] // 2 + 1)
        spread = weighted_spread(tissue[:, :, middle], unmixed[:, :, middle]).clamp(min=0.02)
        low, high = values.new_tensor([look.white for look in looks]).T[..., None, None, None]
        white = ((tissue[:, :, middle] > low) & (tissue[:, :, middle] < high)).all(1)
        deep = F.avg_pool2d(unmixed[:, :, middle].amin(1), 5, stride=1, padding=2) > 0.9
        return cls(
            unmixed,
            closed * within,
            level,
            texture,
            (tissue / spread).mean(1, keepdim=True),
            deep.flatten(1).to(values.dtype),
            (deep & white).flatten(1).to(values.dtype),
            pixel_mm.to(values.dtype).view(-1, 1, 1, 1, 1),
        )

    @property
    def size(self) -> int:
        return len(self.deep)

    @property
    def present(self) -> Tensor:
        """Whether a slice has room for a lesion, (B,) bool."""
        return self.deep.any(1)

    def rows(self, rows: Tensor) -> "Healthy":
        """Return some of the slices, (L,) indices."""
        return Healthy(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Shapes:
    """One lesion a slice, all (L, 1, n, S, S).

    Attributes:
        lesion: share of each pixel that it takes up.
        core: the same for its core.
        rim: share of the core that is rim.
        mottle: ups and downs of its intensity around 1.
        core_mm: diameter of the core where it is largest, (L, 1, 1, 1, 1).
    """

    lesion: Tensor
    core: Tensor
    rim: Tensor
    mottle: Tensor
    core_mm: Tensor


def draw_shapes(
    draw: Draw, healthy: Healthy, recipe: LesionRecipe, scattered: Tensor, first: bool
) -> Shapes:
    """Return one lesion per slice.

    Args:
        draw: random numbers.
        healthy: the slices.
        recipe: how large lesions are and of what form.
        scattered: whether a slice has many small lesions, (L,) bool.
        first: whether these are the slices' first lesions, which are larger.
    """
    count, side, planes = healthy.size, healthy.tissue.shape[-1], healthy.tissue.shape[2]
    radius = draw_diameters(draw, healthy.pixel_mm, side, recipe, scattered, first) / 2
    start = draw_starts(draw, healthy, scattered)
    regular = measure_ellipsoids(draw, healthy, recipe, radius, start)
    fields = [
        pick(draw.field(count, knots, side, 3, agreement), planes)[:, None]
        for knots, _, agreement in recipe.roughness
    ]
    rough = sum_weighted(fields, [amount for _, amount, _ in recipe.roughness])
    distance = regular * rough.exp()
    spread = follow_tissue(draw, healthy, recipe, distance, start)
    softness = torch.maximum(draw.column(count, recipe.softness), 1 / radius)
    _, medium, fine = fields
    core, rim, core_mm = draw_cores(draw, healthy, recipe, distance, radius, medium.flip(-1))
    mottle = 1 + draw.column(count, (0, recipe.mottle)) * (medium + fine).flip(-2)
    return Shapes(torch.maximum(inside(spread, 1, softness), core), core, rim, mottle, core_mm)


def follow_tissue(
    draw: Draw, healthy: Healthy, recipe: LesionRecipe, distance: Tensor, start: Tensor
) -> Tensor:
    """Return distances that are shorter in tissue like that of the start, and longer elsewhere."""
    middle = healthy.tissue[:, 0, healthy.tissue.shape[2] // 2].flatten(1)
    origin = middle.gather(1, start[:, None]).view(-1, 1, 1, 1, 1)
    follows = draw.column(healthy.size) < recipe.following
    reluctance = draw.column(healthy.size, recipe.reluctance) * follows
    # Beyond the ellipsoid, too: a lesion gets fingers.
    return distance * (1 + reluctance * (healthy.tissue - origin).abs()) / (1 + 0.4 * reluctance)


def draw_cores(
    draw: Draw,
    healthy: Healthy,
    recipe: LesionRecipe,
    distance: Tensor,
    radius: Tensor,
    uneven: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cores, the share of them that is rim, and their largest diameters in mm.

    Args:
        draw: random numbers.
        healthy: the slices.
        recipe: how large cores are and how thick rims.
        distance: from the lesions' centres, 1 at their surface.
        radius: of the lesions, pixels.
        uneven: field of thicker and thinner rim.
    """
    pixel, count = 1 / radius, healthy.size
    size = draw.column(count, recipe.core_size)
    core = inside(distance, size, torch.maximum(draw.column(count, recipe.core_softness), pixel))
    width = draw.column(count, recipe.rim_width) * size
    width = torch.minimum(width, recipe.rim_mm / healthy.pixel_mm * pixel)
    # Where the rim is thinner than a pixel it fades: few rings are closed.
    width = torch.maximum(width, 1.5 * pixel) * uneven.exp()
    rim = 1 - inside(distance, size - width, torch.maximum(0.3 * width, pixel))
    return core, rim, 2 * size * radius * healthy.pixel_mm


def draw_diameters(
    draw: Draw,
    pixel_mm: Tensor,
    side: int,
    recipe: LesionRecipe,
    scattered: Tensor,
    first: bool,
) -> Tensor:
    """Return diameters of ellipsoids in pixels, (L, 1, 1, 1, 1), equal ratios equally often.

    Args:
        draw: random numbers.
        pixel_mm: side of a pixel, (L, 1, 1, 1, 1).
        side: of the frame in pixels.
        recipe: the sizes.
        scattered: whether a slice has many small lesions, (L,) bool.
        first: whether these are first lesions.
    """
    least = (recipe.smallest_mm / pixel_mm).clamp(min=recipe.smallest_pixels)
    sizes = recipe.sizes if first else recipe.further_sizes
    low, high = (torch.maximum(least, least.new_tensor(share * side)) for share in sizes)
    if first:
        tiny = draw.column(len(least)) < recipe.small_share
        low, high = torch.where(tiny, least, low), torch.where(tiny, low, high)
    small = scattered.view_as(pixel_mm)
    few, many = (torch.maximum(least, mm / pixel_mm) for mm in recipe.scattered_mm)
    low, high = torch.where(small, few, low), torch.where(small, many, high)
    return low * (high / low) ** draw.column(len(pixel_mm))


def draw_starts(draw: Draw, healthy: Healthy, scattered: Tensor) -> Tensor:
    """Return the pixel of each middle slice in which its lesion begins, (L,), row by row."""
    white = scattered & healthy.white.any(1)
    chances = torch.where(white[:, None], healthy.white, healthy.deep)
    total = chances.cumsum(1)
    # Above 0, so that the first pixel with a chance is the first that can be drawn.
    share = 1 - draw.uniform(len(chances))[:, None]
    return torch.searchsorted(total, share * total[:, -1:])[:, 0]


def measure_ellipsoids(
    draw: Draw, healthy: Healthy, recipe: LesionRecipe, radius: Tensor, start: Tensor
) -> Tensor:
    """Return distances from the ellipsoids' centres, 1 at their surface, (L, 1, n, S, S)."""
    count, side, planes = healthy.size, healthy.tissue.shape[-1], healthy.tissue.shape[2]
    stretch = draw.column(count, (-recipe.stretch, recipe.stretch)).exp()
    angle = draw.column(count, (0, torch.pi))
    cos, sin = angle.cos(), angle.sin()
    long, short = (stretch / radius).square(), 1 / (stretch * radius).square()
    axis = torch.arange(side, device=radius.device, dtype=radius.dtype)
    x = axis - (start % side).view_as(radius)
    y = (axis - (start // side).view_as(radius)).transpose(-1, -2)
    flat = (long * cos**2 + short * sin**2) * x**2 + (long * sin**2 + short * cos**2) * y**2
    flat = flat + (2 * (long - short) * cos * sin * x) * y
    # No slice cuts an ellipsoid so close to its end that nothing of it would be seen.
    steepest = (1 - (recipe.smallest_pixels / 2 / radius).clamp(max=1) ** 2).sqrt()
    height = draw.column(count, (-0.9, 0.9)).clamp(-steepest, steepest)
    tall = radius * healthy.pixel_mm * draw.column(count, (-recipe.stretch, recipe.stretch)).exp()
    steps = pick(radius.new_tensor([[-1.0, 0.0, 1.0]]), planes) * recipe.neighbour_mm
    height = height + steps.view(1, 1, planes, 1, 1) / tall
    beyond = measure_beyond_midline(x, start, healthy.pixel_mm)
    barrier = 1.2 * beyond * (draw.column(count) >= recipe.crossing)
    return (flat + height**2).sqrt() * (1 + barrier)


def measure_beyond_midline(x: Tensor, start: Tensor, pixel_mm: Tensor) -> Tensor:
    """Return 0 in the half of the frame in which a lesion begins, 1 from 12 mm beyond its middle.

    A lesion that begins at the middle, such as one of the corpus callosum, has no other half.

    Args:
        x: pixels from the lesion's start, (L, 1, 1, 1, S).
        start: pixel in which it begins, (L,).
        pixel_mm: (L, 1, 1, 1, 1).
    """
    side = x.shape[-1]
    from_middle = ((start % side) - (side - 1) / 2).view_as(pixel_mm) * pixel_mm
    across = -(x * pixel_mm + from_middle) * from_middle.sign()
    return (across / 12).clamp(0, 1) * (from_middle.abs() > 4)


def pick(three: Tensor, planes: int) -> Tensor:
    """Return all of three planes (L, 3, ...), or only the middle one."""
    return three if planes == 3 else three[:, 1:2]


def inside(distance: Tensor, radius: Tensor | float, fade: Tensor | float) -> Tensor:
    """Return 1 well inside a radius, 0 outside, over a border of width `fade`."""
    return (0.5 + (radius - distance) / fade).clamp(0, 1)


def blur(values: Tensor, reach: int) -> Tensor:
    """Return the mean of the pixels up to `reach` away, in each slice of (B, C, n, S, S)."""
    flat = values.flatten(0, 2)[:, None]
    return F.avg_pool2d(flat, 2 * reach + 1, stride=1, padding=reach).view_as(values)


def sum_weighted(fields: list[Tensor], weights: list[float]) -> Tensor:
    """Return the sum of fields, each times its weight."""
    total = fields[0] * weights[0]
    for field, weight in zip(fields[1:], weights[1:], strict=True):
        total = total + field * weight
    return total


def weighted_spread(values: Tensor, weights: Tensor) -> Tensor:
    """Return standard deviations over the pixels of (B, C, 1, S, S), (B, C, 1, 1, 1)."""
    total = weights.sum((-1, -2), keepdim=True).clamp(min=1)
    mean = (values * weights).sum((-1, -2), keepdim=True) / total
    return (((values - mean) ** 2 * weights).sum((-1, -2), keepdim=True) / total).sqrt()


def coarse_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean around each pixel, over about an eighth of the frame."""
    side = values.shape[-1]
    cells = max(side // 4, 1)
    stack = torch.stack([values, weights]).flatten(0, 3)[:, None]
    stack = F.adaptive_avg_pool2d(stack, cells)
    for _ in range(2):
        stack = F.avg_pool2d(stack, 3, stride=1, padding=1)
    stack = F.interpolate(stack, (side, side), mode="bilinear", align_corners=False)
    total, weight = stack.view(2, *values.shape)
    return total / weight.clamp(min=0.02)
