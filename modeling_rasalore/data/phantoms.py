"""Make synthetic brains in four MRI sequences, with or without tumours, and their masks.

A patient is made in five steps: (1) warp the tissue maps of the MNI152 template, (2) grow tumours
in them, (3) mix tissue intensities per sequence, with texture and harmless bright spots, (4) paint
the tumours, (5) add bias field and noise. Anatomy, imaging and tumours draw from separate random
streams: without its tumour a patient has the same brain, equal to the last bit at a distance from
it, and the brightest voxels of every image are membranes and vessels that all patients have.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm.auto import tqdm

from ..processes import end_with_parent
from ..scans.volume_writing import write_nifti
from .phantom_template import Template, load_template
from .phantom_tumours import (
    Growth,
    Tumour,
    grow_tumour,
    paint_tumour,
    place_tumours,
    push_away,
    smooth_field,
)

RECIPE = 2  # raised whenever a seed gives other voxels than before: written patients are remade
SEQUENCES = ("t1", "t1ce", "t2", "flair")
RECORD = "phantom.json"

# Range over patients of a tissue's intensity; white matter = 1.
GREY = {"t1": (0.74, 0.84), "t1ce": (0.76, 0.86), "t2": (1.18, 1.34), "flair": (1.06, 1.18)}
FLUID = {"t1": (0.28, 0.42), "t1ce": (0.28, 0.42), "t2": (2.7, 3.3), "flair": (0.3, 0.5)}
# What membranes and vessels at the brain's surface reach, and nothing exceeds before bias and
# noise, lesions included: so the maximum of an image says nothing about a tumour.
CEILING = {"t1": 1.6, "t1ce": 2.8, "t2": 3.6, "flair": 2.4}
# Harmless spots in white matter: age-related lesions, and fluid-filled spaces around vessels.
AGE_SPOT = {"t1": 0.9, "t1ce": 0.9, "t2": 1.6, "flair": 1.5}
VESSEL_SPACE = {"t1": 0.7, "t1ce": 0.7, "t2": 1.9, "flair": 0.8}


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic patient on an LPS grid, so that `data[:, :, k].T` shows anterior up.

    Attributes:
        images: sequence -> (X, Y, Z) float32, 0 outside the brain and at least 1 inside.
        mask: (X, Y, Z) uint8: 1 tumour core, 2 oedema, 4 enhancing tumour, 0 elsewhere.
        affine: (4, 4) float64, voxel indices -> RAS+ mm, 0 in the centre of the volume.
    """

    images: dict[str, np.ndarray]
    mask: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Brain:
    """A warped template on the phantom's grid.

    Attributes:
        axes: per axis, the voxel centres in mm from the centre of the volume.
        positions: (3, X, Y, Z) float32, where each voxel lies in the template, in its voxels.
        to_template: (3, 3), mm on this grid -> template voxels, the fine warp left out.
        inside: (X, Y, Z) bool, the N voxels of the brain.
        surface: (N,) float32, 1 at the border of the brain, 0 from about 3 mm on.
    """

    axes: tuple[np.ndarray, ...]
    positions: np.ndarray
    to_template: np.ndarray
    inside: np.ndarray
    surface: np.ndarray

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


def make_phantom(
    seed: int,
    shape: Sequence[int] = (96, 112, 96),
    voxel_size: float | Sequence[float] = 2.0,
    tumour: bool = True,
) -> Phantom:
    """Return a synthetic patient; the same arguments give the same voxels in every process.

    Args:
        seed: the patient, >= 0. One seed is one brain and one tumour at every voxel size.
        shape: voxels (X, Y, Z); a grid smaller than a head, about 170 x 210 x 170 mm, cuts it off.
        voxel_size: mm, one number or one per axis.
        tumour: whether the patient has one (sometimes two); without, `mask` is all zero.

    Raises:
        ValueError: not three numbers of voxels, voxels > 10 mm, or an axis shorter than 60 mm.
    """
    size, voxel = _check_grid(shape, voxel_size)
    anatomy_rng, imaging_rng, tumour_rng = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(3)
    )
    steps = zip(size, voxel, strict=True)
    axes = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in steps)
    template = load_template(voxel)
    brain = _warp_template(anatomy_rng, template, axes)
    where = (template.seeds, brain.positions, brain.inside, axes)
    tumours = place_tumours(tumour_rng, *where) if tumour else []
    tissues = _read_tissues(anatomy_rng, template, brain, tumours)
    white, fluid = brain.volume(tissues.white), brain.volume(tissues.fluid, outside=1)
    side = brain.positions[0] - template.midline
    growths = [grow_tumour(t, tumour_rng, axes, white, fluid, side) for t in tumours]
    mask = np.zeros(size, np.uint8)
    for growth in growths:
        mask[growth.box] = np.where(growth.labels, growth.labels, mask[growth.box])
    images = _image(imaging_rng, brain, tissues, growths)
    affine = np.diag([-voxel[0], -voxel[1], voxel[2], 1.0])
    affine[:3, 3] = [-axis[0] * sign for axis, sign in zip(axes, (1, 1, -1), strict=True)]
    return Phantom(images, mask, affine)


def write_phantoms(
    folder: str | Path,
    patients: int,
    seed: int = 0,
    healthy_patients: int = 0,
    shape: Sequence[int] = (96, 112, 96),
    voxel_size: float | Sequence[float] = 2.0,
    processes: int | None = None,
) -> list[Path]:
    """Return the folders of `patients` phantoms, written in the BraTS 2021 layout.

    Each is `BraTS2021_phantom<number>` with int16 `_t1`, `_t1ce`, `_t2`, `_flair` and uint8 `_seg`
    .nii.gz files. The first `healthy_patients` of them have no tumour. Patient i depends on `seed`
    and i alone. A run can be interrupted and repeated: patients made with the same arguments stay,
    others are replaced.

    Args:
        processes: how many patients are made at once; None for one per core.

    Raises:
        ValueError: numbers that do not fit, or a patient's folder that holds something else.
    """
    size, voxel = _check_grid(shape, voxel_size)
    if not 0 <= healthy_patients <= patients:
        raise ValueError(
            f"healthy_patients must lie between 0 and patients={patients}, got {healthy_patients}; "
            "they are part of all patients, so ask for more of these."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    grid = {"shape": list(size), "voxel_size": list(voxel)}
    folders, settings = [], []
    for index in range(patients):
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
        folders.append(folder / f"BraTS2021_phantom{index + 1:03d}")
        settings.append({"seed": int(state[0]), **grid, "tumour": index >= healthy_patients})
    progress = partial(tqdm, total=patients, desc="phantoms", unit="patient")
    if processes == 1 or all(map(_is_written, folders, settings)):
        return list(progress(map(_write_patient, folders, settings)))
    with ProcessPoolExecutor(processes, get_context("spawn"), end_with_parent) as pool:
        return list(progress(pool.map(_write_patient, folders, settings)))


def _check_grid(
    shape: Sequence[int], voxel_size: float | Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    size = tuple(int(n) for n in shape)
    if len(size) != 3 or size != tuple(shape):
        raise ValueError(f"shape must be three whole numbers (X, Y, Z), got {tuple(shape)}.")
    steps = np.asarray(voxel_size, dtype=float)
    if steps.shape not in ((), (3,)) or not ((steps > 0) & (steps <= 10)).all():
        raise ValueError(f"voxel_size must be 1 or 3 numbers in ]0, 10] mm, got {voxel_size}.")
    x, y, z = np.broadcast_to(steps, 3).tolist()
    if min(np.multiply(size, (x, y, z))) < 60:
        raise ValueError(
            f"a phantom must span at least 60 mm along each axis, got shape {size} with voxels of "
            f"{voxel_size} mm; ask for more or larger voxels."
        )
    return size, (x, y, z)


def _warp_template(
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
    return Brain(axes, positions, to_template, inside, np.clip((0.98 - depth[inside]) / 0.25, 0, 1))


def _read_tissues(
    rng: np.random.Generator, template: Template, brain: Brain, tumours: list[Tumour]
) -> Tissues:
    """Return the tissues of a brain with its own width of sulci and ventricles, pushed aside by
    `tumours`; how many numbers `rng` draws does not depend on these."""
    positions = brain.positions[:, brain.inside]
    for tumour in tumours:
        push = push_away(tumour, brain.axes)[:, brain.inside]
        positions = positions - np.einsum("ij,jn->in", brain.to_template, push)
    pull = np.stack([_sample(axis, positions / 4) for axis in template.into_ventricles])
    left, right = rng.uniform(-2, 4) + rng.normal(0, 1, 2)  # mm by which each ventricle is wider
    wider = np.where(positions[0] < template.midline, left, right).astype(np.float32)
    positions = positions + wider * pull
    maps = (template.white, template.grey, template.fluid)
    white, grey, fluid = (_sample(tissue, positions) for tissue in maps)
    widening = rng.normal(0.0, 0.3) + 0.6 * smooth_field(rng, brain.axes, 9.0)[brain.inside]
    # Powers undo part of the blur of a template that averages 152 people.
    white, grey, fluid = white**1.5, grey**1.5, fluid**1.2 * np.exp(widening)
    total = white + grey + fluid + 1e-6
    return Tissues(white / total, grey / total, fluid / total, np.linalg.norm(pull, axis=0))


def _sample(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return ndimage.map_coordinates(data, positions, np.float32, order=1, mode="constant")


def _image(
    rng: np.random.Generator, brain: Brain, tissues: Tissues, growths: list[Growth]
) -> dict[str, np.ndarray]:
    """Return the four images; how many numbers `rng` draws does not depend on the tumours."""

    def field(spacing: float) -> np.ndarray:
        return smooth_field(rng, brain.axes, spacing)[brain.inside]

    fine, mottled, regional = field(4.0), field(9.0), field(30.0)
    spots = np.clip((field(5.0) - rng.uniform(2.2, 3.6)) / 0.4, 0, 1) * tissues.white
    caps = rng.uniform(0, 0.5) * tissues.ventricle**2 * np.clip(0.5 + mottled, 0, 1) * tissues.white
    spaces = np.clip((field(4.0) - rng.uniform(2.8, 3.8)) / 0.4, 0, 1)
    membranes = np.clip((field(6.0) - 1.7) / 0.4, 0, 1) * brain.surface
    images = {}
    for sequence in SEQUENCES:
        grey, fluid = rng.uniform(*GREY[sequence]), rng.uniform(*FLUID[sequence])
        values = tissues.white + grey * tissues.grey + fluid * tissues.fluid
        texture = rng.normal(0, 0.015) * mottled + rng.normal(0, 0.02) * regional + 0.02 * fine
        values *= 1 + texture
        for share, level in ((spots + caps, AGE_SPOT), (spaces, VESSEL_SPACE)):
            values += np.minimum(share, 1) * (level[sequence] - values)
        if growths:
            volume = brain.volume(values)
            for growth in growths:
                paint_tumour(volume, growth, sequence)
            values = volume[brain.inside]
        values += membranes * (CEILING[sequence] - values)
        values = np.minimum(values, CEILING[sequence]) * np.exp(0.1 * field(90.0))
        noise = rng.uniform(0.01, 0.035) * rng.standard_normal((2, len(values)), np.float32)
        values = np.hypot(values + noise[0], noise[1]) * np.exp(rng.uniform(5.7, 7.1))
        images[sequence] = brain.volume(np.maximum(values, 1).astype(np.float32))
    return images


def _is_written(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether `folder` holds all of `make_phantom(**settings)`."""
    names = [RECORD, *(f"{folder.name}_{key}.nii.gz" for key in (*SEQUENCES, "seg"))]
    if not all((folder / name).exists() for name in names):
        return False
    return bool(json.loads((folder / RECORD).read_text()) == {"recipe": RECIPE, **settings})


def _write_patient(folder: Path, settings: dict[str, Any]) -> Path:
    """Return `folder`, holding `make_phantom(**settings)`; it appears complete or not at all."""
    names = {key: f"{folder.name}_{key}.nii.gz" for key in (*SEQUENCES, "seg")}
    if folder.exists():
        if not (folder / RECORD).exists():
            raise ValueError(f"{folder} exists but holds no phantom; choose another folder.")
        if _is_written(folder, settings):
            return folder
        shutil.rmtree(folder)
    phantom = make_phantom(**settings)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantom-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        for sequence, image in phantom.images.items():
            write_nifti(new / names[sequence], np.rint(image).astype(np.int16), phantom.affine)
        write_nifti(new / names["seg"], phantom.mask, phantom.affine)
        (new / RECORD).write_text(json.dumps({"recipe": RECIPE, **settings}))
        os.replace(new, folder)
    return folder
