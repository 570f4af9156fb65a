"""Grow random lesions: where they lie in a brain, what they consist of, how bright each part is.

A tumour is a noise-perturbed ellipsoid of two nested parts. The tumour core displaces whatever was
there; the oedema around it spreads by a travel cost that is low in white matter, high in grey
matter and prohibitive in CSF, so it grows fingers along the white matter and stops at ventricles.
White-matter lesions, a second disease, are small, many, and on both sides. All lengths are mm, so
one seed gives one tumour at every voxel size.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import ndimage, sparse

CORE, OEDEMA, RIM = 1, 2, 4  # BraTS labels; RIM is "enhancing tumour"
FIELD_REACH = 160.0  # mm from the centre of the volume; beyond it random fields stay constant

# (faint, bright) ends of each part's intensity, white matter = 1. In T2 oedema stays below CSF and
# core overlaps with it, as in patients; in FLAIR CSF is dark, so the lesion stands out.
OEDEMA_LEVELS = {
    "t1": (0.90, 0.70),
    "t1ce": (0.92, 0.72),
    "t2": (1.75, 2.40),
    "flair": (1.20, 1.60),
}
CORE_LEVELS = {"t1": (0.80, 0.45), "t1ce": (0.80, 0.45), "t2": (1.90, 2.60), "flair": (1.25, 1.50)}
SEQUENCES = ("t1", "t1ce", "t2", "flair")
RIM_LEVELS = {"t1": (0.85, 0.75), "t1ce": (1.15, 1.90), "t2": (1.45, 1.90), "flair": (1.20, 1.55)}


@dataclass(frozen=True)
class Tumour:
    """What one tumour is like, drawn before it meets a brain.

    Attributes:
        centre: (3,) mm from the centre of the volume.
        diameter: of the ball with the volume of the whole lesion, mm.
        to_ball: (3, 3), turns and stretches mm so that the ellipsoid becomes a ball.
        core_share: share of the lesion's volume that is tumour core (labels 1 and 4).
        rim_thickness: mm of enhancing rim; 0 for a tumour that does not enhance.
        edge_width: mm over which the oedema fades out.
        push: mm by which the surroundings are displaced (mass effect).
        brightness: 0 faint .. 1 bright, for oedema and core alike.
        cystic: core filled with fluid, hence dark in FLAIR.
        tint: (3, 4), log of what each part (core, oedema, rim) is brighter by in each sequence.
    """

    centre: np.ndarray
    diameter: float
    to_ball: np.ndarray
    core_share: float
    rim_thickness: float
    edge_width: float
    push: float
    brightness: float
    cystic: bool
    tint: np.ndarray

    def levels(self, sequence: str) -> dict[int, float]:
        """Return the intensity of each label in `sequence`, as a multiple of white matter's."""
        ends = {CORE: CORE_LEVELS, OEDEMA: OEDEMA_LEVELS, RIM: RIM_LEVELS}
        tint = np.exp(self.tint[:, SEQUENCES.index(sequence)])
        levels = {
            label: float(np.interp(self.brightness, (0, 1), table[sequence]) * factor)
            for (label, table), factor in zip(ends.items(), tint, strict=True)
        }
        if self.cystic and sequence == "flair":
            levels[CORE] = 0.6
        return levels


@dataclass(frozen=True)
class Growth:
    """One tumour grown in one brain.

    Attributes:
        tumour: what was grown.
        box: the part of the volume that the arrays cover, (x, y, z) voxels of it.
        labels: (x, y, z) uint8, 0 outside the lesion.
        shares: label -> (x, y, z) float32 in [0, 1], the part of each voxel that it takes up.
        mottle: (x, y, z) float32, standard normal: ups and downs of intensity inside the lesion.
    """

    tumour: Tumour
    box: tuple[slice, ...]
    labels: np.ndarray
    shares: dict[int, np.ndarray]
    mottle: np.ndarray


@lru_cache(maxsize=64)
def _spline_basis(axis: tuple[float, ...], spacing: float) -> sparse.csr_array:
    """Return (N, knots) float32: cubic B-spline weights, each row of unit length."""
    knots = np.arange(-FIELD_REACH - 2 * spacing, FIELD_REACH + 2.5 * spacing, spacing)
    inside = np.clip(axis, -FIELD_REACH, FIELD_REACH)
    distance = np.abs(inside[:, None] - knots) / spacing
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return sparse.csr_array(weights.astype(np.float32))


def smooth_field(
    rng: np.random.Generator, axes: tuple[np.ndarray, ...], spacing: float
) -> np.ndarray:
    """Return a smooth random field (X, Y, Z) float32, standard normal at every voxel.

    Args:
        rng: draws one number per knot; how many does not depend on `axes`, so a seed gives the
            same field on every voxel grid.
        axes: per axis, the voxel centres in mm from the centre of the volume.
        spacing: mm between knots, about the size of the field's blobs.
    """
    bases = [_spline_basis(tuple(axis.tolist()), spacing) for axis in axes]
    field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in bases:  # each turn interpolates the first axis and moves it to the end
        field = (basis @ field.reshape(basis.shape[1], -1)).T
    return field.reshape([len(axis) for axis in axes])


def draw_tumour(
    rng: np.random.Generator, centre: np.ndarray, diameter: tuple[float, float] = (32.0, 70.0)
) -> Tumour:
    """Return a random tumour.

    Args:
        rng: source of all its properties.
        centre: (3,) mm from the centre of the volume.
        diameter: smallest and largest diameter of the ball with the lesion's volume, mm.
    """
    size = np.sqrt(rng.uniform(*np.square(diameter)))  # large ones are as common as in BraTS
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.uniform(-0.35, 0.35, 3))
    stretch /= np.cbrt(stretch.prod())  # changes the shape, not the volume
    tumour = Tumour(
        centre=centre,
        diameter=float(size),
        to_ball=np.diag(1 / stretch) @ rotation,
        core_share=rng.uniform(0.12, 0.7),
        rim_thickness=rng.uniform(2.0, 6.0),
        edge_width=rng.uniform(0.05, 0.18) * size,
        push=rng.uniform(0, 0.12) * size,
        brightness=rng.uniform(0.6, 1),
        cystic=rng.random() < 0.2,
        tint=np.zeros((3, len(SEQUENCES))),
    )
    kind = rng.random()
    tumour = replace(tumour, tint=rng.normal(0, 0.06, tumour.tint.shape))
    if kind < 0.1:  # faint infiltration: hardly any core
        return replace(
            tumour, brightness=rng.uniform(0.15, 0.35), core_share=0.05, rim_thickness=0.0
        )
    if kind < 0.4:  # low grade: no enhancement
        return replace(tumour, rim_thickness=0.0)
    return tumour


def place_tumours(
    rng: np.random.Generator,
    seeds: np.ndarray,
    positions: np.ndarray,
    inside: np.ndarray,
    axes: tuple[np.ndarray, ...],
) -> list[Tumour]:
    """Return one random tumour, sometimes two.

    Args:
        rng: source of their number, positions and properties.
        seeds: (N, 3), where in an atlas tumours may start; all are equally likely.
        positions: (3, X, Y, Z), where each voxel lies in that atlas.
        inside: (X, Y, Z) bool, the brain.
        axes: per axis, the voxel centres in mm from the centre of the volume.
    """
    tumours = []
    for _ in range(1 + (rng.random() < 0.12)):
        seed = seeds[rng.integers(len(seeds))]
        offsets = positions[:, inside] - seed[:, None]
        nearest = np.argwhere(inside)[(offsets**2).sum(axis=0).argmin()]
        centre = np.array([float(axis[i]) for axis, i in zip(axes, nearest, strict=True)])
        tumours.append(draw_tumour(rng, centre))
    return tumours


def scatter_lesions(
    rng: np.random.Generator,
    axes: tuple[np.ndarray, ...],
    inside: np.ndarray,
    white: np.ndarray,
    ventricle: np.ndarray,
) -> np.ndarray:
    """Return the share of each of N brain voxels that white-matter lesions take up, (N,) float32.

    They measure 3 to 12 mm and prefer the walls of the ventricles, as in multiple sclerosis and
    disease of small vessels.

    Args:
        rng: source of their number and positions.
        axes: per axis, the voxel centres in mm from the centre of the volume.
        inside: (X, Y, Z) bool, the brain.
        white: (N,), share of white matter.
        ventricle: (N,), 1 at the walls of the ventricles, fading out around them.
    """
    small, large = (smooth_field(rng, axes, spacing)[inside] for spacing in (5.0, 9.0))
    load = rng.uniform(1.9, 2.6)  # the lower, the more lesions
    peaks = np.maximum(small, large) + 0.8 * ventricle
    return np.clip((peaks - load) / 0.4, 0, 1) * np.clip(2 * white - 0.6, 0, 1)


def push_away(tumour: Tumour, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return (3, X, Y, Z) float32 mm: how far outwards the tumour displaces each point.

    Largest on the surface of the tumour core, 0 in its centre and from 2.5 core radii on.

    Args:
        tumour: gives the centre, the amount and the size of the core.
        axes: per axis, the voxel centres in mm from the centre of the volume.
    """
    radius = tumour.diameter / 2 * np.cbrt(max(tumour.core_share, 0.1))
    grid = _grid(axes, tumour.centre)
    distance = np.sqrt(sum(axis**2 for axis in grid)) / radius
    fade = np.clip((2.5 - distance) / 1.5, 0, 1) ** 2
    factor = tumour.push / radius * fade / np.maximum(distance, 1)
    return np.stack([axis * factor for axis in grid]).astype(np.float32)


def grow_tumour(
    tumour: Tumour,
    rng: np.random.Generator,
    axes: tuple[np.ndarray, ...],
    white: np.ndarray,
    fluid: np.ndarray,
    side: np.ndarray,
) -> Growth:
    """Return the tumour grown in a brain given by its tissue maps.

    Args:
        tumour: what to grow.
        rng: draws the irregularities of its outline.
        axes: per axis, the voxel centres in mm from the centre of the volume.
        white: (X, Y, Z), share of white matter per voxel in [0, 1].
        fluid: (X, Y, Z), share of CSF per voxel in [0, 1]; 1 outside the brain.
        side: (X, Y, Z), mm from the plane between the hemispheres, negative in one of them.
    """
    reach = 1.2 * tumour.diameter + 6
    ends = [
        np.searchsorted(a, (c - reach, c + reach)) for a, c in zip(axes, tumour.centre, strict=True)
    ]
    box = tuple(slice(int(low), int(high)) for low, high in ends)
    axes = tuple(axis[part] for axis, part in zip(axes, box, strict=True))
    voxel = [float(axis[1] - axis[0]) for axis in axes]
    white = ndimage.gaussian_filter(white[box], [2.0 / step for step in voxel])
    fluid, side = fluid[box], side[box]
    grid = _grid(axes, tumour.centre)
    middle = tuple(int(np.abs(offset).argmin()) for offset in grid)
    across = np.clip(-side * np.sign(side[middle]) / 4, 0, 1)  # 1 from 4 mm beyond the midline
    ball = [sum(f * g for f, g in zip(row, grid, strict=True)) for row in tumour.to_ball]
    outline = smooth_field(rng, axes, max(0.35 * tumour.diameter, 6.0))
    detail, mottle = smooth_field(rng, axes, 6.0), smooth_field(rng, axes, 7.0)
    shape = np.sqrt(sum(b**2 for b in ball)) * np.exp(0.22 * outline + 0.1 * detail)
    shape *= 1 + 1.5 * across
    solid = np.where(fluid < 0.9, shape, np.inf)
    spread = np.where(fluid < 0.5, shape / (0.4 + 0.6 * white), np.inf)
    voxels = float(np.pi / 6 * tumour.diameter**3 / np.prod(voxel))
    sharp = 1.2 * np.cbrt(np.prod(voxel))  # partial volume: an edge covers about one voxel
    radius = _level(solid, tumour.core_share * voxels)
    spread[solid < radius] = 0
    core = _inside(solid, radius, sharp)
    fade = max(tumour.edge_width, float(sharp))
    level = _level(spread, voxels)
    lesion = _inside(spread, level, fade) * _around_start(spread, level + fade / 2)
    thickness = tumour.rim_thickness * np.exp(0.5 * smooth_field(rng, axes, 9.0))
    necrosis = _inside(solid, radius - thickness, sharp) if tumour.rim_thickness else core
    oedema = np.maximum(lesion - core, 0) * (1 - fluid)
    shares = {CORE: necrosis, RIM: core - necrosis, OEDEMA: oedema}
    return Growth(tumour, box, _label(shares), shares, mottle)


def paint_tumour(image: np.ndarray, growth: Growth, sequence: str) -> None:
    """Put a tumour into `image` (X, Y, Z), in place; white matter has intensity 1 in it."""
    part = image[growth.box]  # a view
    painted = part * (1 - sum(growth.shares.values()))
    for label, level in growth.tumour.levels(sequence).items():
        painted += growth.shares[label] * level * (1 + 0.07 * growth.mottle)
    part[...] = painted


def _grid(axes: tuple[np.ndarray, ...], centre: np.ndarray) -> list[np.ndarray]:
    """Return mm from `centre` along each axis, shapes (X, 1, 1), (1, Y, 1) and (1, 1, Z)."""
    offsets = (a - np.float32(c) for a, c in zip(axes, centre, strict=True))
    return list(np.meshgrid(*offsets, indexing="ij", sparse=True))


def _level(cost: np.ndarray, voxels: float) -> float:
    """Return the cost below which `voxels` voxels lie (at least one, at most all that can)."""
    finite = cost[np.isfinite(cost)]
    count = min(max(int(voxels), 1), finite.size - 1)
    return float(np.partition(finite, count)[count])


def _inside(cost: np.ndarray, level: float | np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 + (level - cost) / width, 0, 1).astype(np.float32)


def _around_start(cost: np.ndarray, level: float) -> np.ndarray:
    """Return (x, y, z) bool: the piece of `cost` < `level` that holds the lowest cost."""
    pieces, _ = ndimage.label(cost < level)
    return pieces == pieces.ravel()[cost.argmin()]


def _label(shares: dict[int, np.ndarray]) -> np.ndarray:
    """Return the label with the largest share in each voxel that is at least half lesion."""
    order = np.array(list(shares))
    stack = np.stack(list(shares.values()))
    return np.where(stack.sum(axis=0) >= 0.5, order[stack.argmax(axis=0)], 0).astype(np.uint8)
