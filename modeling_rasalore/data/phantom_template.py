"""Load the tissue maps of the MNI152 template, and warp them into brains of their own."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..scans.background import index_box
from .phantom_tumours import Tumour, push_away, smooth_field


@dataclass(frozen=True, eq=False)
class Template:
    """MNI152 at 1 mm, cropped to the brain, blurred as far as a voxel size asks for.

    Attributes:
        grey, white, fluid, brain: (I, J, K) float32 in [0, 1].
        into_ventricles: (3, I/4, J/4, K/4) float32, vectors of length <= 1 towards the ventricles.
        seeds: (N, 3), the places where a tumour may start, in template voxels.
        midline: the first coordinate that separates the hemispheres.
    """

    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    brain: np.ndarray
    into_ventricles: np.ndarray
    seeds: np.ndarray
    midline: float


@dataclass(frozen=True, eq=False)
class Brain:
    """A warped template on the phantom's grid.

    Attributes:
        axes: per axis, the voxel centres in mm from the centre of the volume.
        positions: (3, X, Y, Z) float32, where each voxel lies in the template, in its voxels.
        to_template: (3, 3), mm on this grid -> template voxels, the fine warp left out.
        inside: (X, Y, Z) bool, the N voxels of the brain.
        surface: (N,) float32, 1 at the border of the brain, 0 from about 3 mm on.
        half: (N,) float32, -1 in one hemisphere and 1 in the other, 0 between them.
    """

    axes: tuple[np.ndarray, ...]
    positions: np.ndarray
    to_template: np.ndarray
    inside: np.ndarray
    surface: np.ndarray
    half: np.ndarray

    def volume(self, values: np.ndarray, outside: float = 0) -> np.ndarray:
        """Return `values` (N,) of the brain voxels as (X, Y, Z), `outside` everywhere else."""
        volume = np.full(self.inside.shape, outside, values.dtype)
        volume[self.inside] = values
        return volume


@dataclass(frozen=True, eq=False)
class Tissues:
    """(N,) per brain voxel: shares of white matter, grey matter and CSF, which add up to 1, and
    `ventricle`, 1 at the walls of the ventricles, fading out around them."""

    white: np.ndarray
    grey: np.ndarray
    fluid: np.ndarray
    ventricle: np.ndarray


@lru_cache(maxsize=2)
def load_template(voxel_size: tuple[float, float, float]) -> Template:
    """Return the MNI152 template, ready to be sampled with voxels of `voxel_size` mm."""
    from nilearn import datasets  # here, because importing it takes seconds

    scans = [
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    maps = [np.asarray(scan.dataobj, dtype=np.float32) for scan in scans]
    box = index_box(maps[-1] > 0)
    assert box is not None  # the template holds a brain
    grey, white, brain = (volume[box] for volume in maps)
    origin = np.linalg.inv(scans[0].affine)[:3, 3] - [side.start for side in box]
    fluid = np.clip(brain - grey - white, 0, 1)

    # The ventricles are the CSF more than 20 mm below the surface; 4 mm are fine enough here.
    depth = 4 * ndimage.distance_transform_edt(brain[::4, ::4, ::4])
    ventricles = ndimage.gaussian_filter(fluid, 2)[::4, ::4, ::4] * (depth > 20)
    pull = np.stack(np.gradient(ndimage.gaussian_filter(ventricles, 1.5)))
    pull /= np.linalg.norm(pull, axis=0).max()

    seeds = np.argwhere(white[::4, ::4, ::4] > 0.7) * 4
    seeds = seeds[seeds[:, 2] > origin[2] - 30]  # cerebrum: tumours below it are rare in adults
    blur = 0.42 * np.sqrt(np.maximum(np.square(voxel_size) - 1, 0))
    return Template(
        grey=ndimage.gaussian_filter(grey, blur),
        white=ndimage.gaussian_filter(white, blur),
        fluid=ndimage.gaussian_filter(fluid, blur),
        brain=ndimage.gaussian_filter(brain, np.maximum(blur, 2)),
        into_ventricles=pull.astype(np.float32),
        seeds=seeds,
        midline=float(origin[0]),
    )


def warp_template(
    rng: np.random.Generator, template: Template, axes: tuple[np.ndarray, ...]
) -> Brain:
    """Return a brain of random size, tilt, handedness and folds."""
    x, y, z = rng.normal(0, 0.05, 3)  # rotation about each axis, radians
    tilt = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]])
    scale = rng.normal(0.93, 0.03) * rng.normal(1, 0.02, 3)
    flip = rng.choice([-1, 1])
    to_template = (np.diag([flip, -1, 1] / scale) @ tilt).astype(np.float32)  # LPS mm -> RAS voxels
    centre = (np.array(template.brain.shape) - 1) / 2 + rng.normal(0, 2, 3)
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    positions = np.stack(
        [sum(f * g for f, g in zip(row, grid, strict=True)) for row in to_template]
    )
    for axis in range(3):
        positions[axis] += centre[axis]
        positions[axis] += 3.0 * smooth_field(rng, axes, 45.0) + 1.2 * smooth_field(rng, axes, 18.0)
    depth = _sample(template.brain, positions)
    inside = depth > 0.68
    surface = np.clip((0.98 - depth[inside]) / 0.25, 0, 1)
    half = np.tanh((positions[0][inside] - template.midline) / 8)
    return Brain(axes, positions, to_template, inside, surface, half)


def read_tissues(
    rng: np.random.Generator, template: Template, brain: Brain, tumours: list[Tumour]
) -> Tissues:
    """Return the tissues of a brain with its own width of sulci and ventricles, pushed aside by
    `tumours`; how many numbers `rng` draws does not depend on these."""
    positions = brain.positions[:, brain.inside]
    for tumour in tumours:
        push = push_away(tumour, brain.axes)[:, brain.inside]
        positions = positions - np.einsum("ij,jn->in", brain.to_template, push)
    pull = np.stack([_sample(axis, positions / 4) for axis in template.into_ventricles])
    left, right = rng.uniform(-2, 4) + rng.normal(0, 2, 2)  # mm by which each ventricle is wider
    wider = np.where(positions[0] < template.midline, left, right).astype(np.float32)
    positions = positions + wider * pull
    maps = (template.white, template.grey, template.fluid)
    white, grey, fluid = (_sample(tissue, positions) for tissue in maps)
    widening = rng.normal(0.0, 0.3) + 0.6 * smooth_field(rng, brain.axes, 9.0)[brain.inside]
    widening += rng.normal(0.0, 0.35) * brain.half
    # Powers undo part of the blur of a template that averages 152 people.
    white, grey, fluid = white**1.5, grey**1.5, fluid**1.2 * np.exp(widening)
    fluid = fluid + 4 * _pocket(rng, brain)
    total = white + grey + fluid + 1e-6
    return Tissues(white / total, grey / total, fluid / total, np.linalg.norm(pull, axis=0))


def _pocket(rng: np.random.Generator, brain: Brain) -> np.ndarray:
    """Return (N,), 1 in a pocket of fluid at the surface of one hemisphere, in some brains."""
    direction = rng.normal(0, 1, 3)
    direction[2] = abs(direction[2])
    direction /= np.linalg.norm(direction)
    radius, exists = rng.uniform(7, 14), rng.random() < 0.4
    if not exists:
        return np.zeros(len(brain.surface), np.float32)
    grid = np.meshgrid(*brain.axes, indexing="ij", sparse=True)
    places = np.stack([np.broadcast_to(g, brain.inside.shape)[brain.inside] for g in grid])
    along = direction @ places
    aside = np.linalg.norm(places - direction[:, None] * along, axis=0)
    centre = places[:, (along - 2 * aside).argmax()]
    distance = np.linalg.norm(places - centre[:, None], axis=0)
    return np.clip(0.5 + (radius - distance) / 3, 0, 1).astype(np.float32)


def _sample(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(data, positions, np.float32, order=1, mode="constant")
