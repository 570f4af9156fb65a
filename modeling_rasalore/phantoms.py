"""Synthetic brains in four MRI sequences, with or without tumours, and with their masks.

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .phantom_anatomy import (
    Brain,
    Tissues,
    grow_tumours,
    load_template,
    place_tumours,
    read_tissues,
    warp_template,
)
from .phantom_tumours import Growth, paint_tumour, smooth_field
from .volumes import write_nifti

RECIPE = 1  # raised whenever a seed gives other voxels than before: written patients are remade
SEQUENCES = ("t1", "t1ce", "t2", "flair")
RECORD = "phantom.json"

# Range over patients of a tissue's intensity; white matter = 1.
GREY = {"t1": (0.74, 0.84), "t1ce": (0.76, 0.86), "t2": (1.18, 1.34), "flair": (1.06, 1.18)}
FLUID = {"t1": (0.28, 0.42), "t1ce": (0.28, 0.42), "t2": (2.1, 2.9), "flair": (0.3, 0.5)}
# What membranes and vessels at the brain's surface reach, and nothing exceeds before bias and
# noise, lesions included: so the maximum of an image says nothing about a tumour.
CEILING = {"t1": 1.3, "t1ce": 2.2, "t2": 3.1, "flair": 2.0}
# Harmless spots in white matter: age-related lesions, and fluid-filled spaces around vessels.
AGE_SPOT = {"t1": 0.9, "t1ce": 0.9, "t2": 1.6, "flair": 1.5}
VESSEL_SPACE = {"t1": 0.7, "t1ce": 0.7, "t2": 1.9, "flair": 0.8}


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic patient on an LPS grid, so that `data[:, :, k].T` shows anterior up.

    Attributes:
        images: sequence ("t1", "t1ce", "t2", "flair") -> (X, Y, Z) float32, 0 outside the brain,
            at least 1 inside.
        mask: (X, Y, Z) uint8: 1 tumour core, 2 oedema, 4 enhancing tumour, 0 elsewhere.
        affine: (4, 4) float64, voxel indices -> RAS+ mm, 0 in the centre of the volume.
    """

    images: dict[str, np.ndarray]
    mask: np.ndarray
    affine: np.ndarray


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
        ValueError: not three whole numbers of voxels, voxels not in ]0, 10] mm, or a grid that
            spans less than 60 mm along an axis.
    """
    size, voxel = _check_grid(shape, voxel_size)
    anatomy_rng, imaging_rng, tumour_rng = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(3)
    )
    template = load_template(voxel)
    brain = warp_template(anatomy_rng, template, _axes(size, voxel))
    tumours = place_tumours(tumour_rng, template, brain) if tumour else []
    tissues = read_tissues(anatomy_rng, template, brain, tumours)
    growths = grow_tumours(tumour_rng, template, brain, tissues, tumours)
    mask = np.zeros(size, np.uint8)
    for growth in growths:
        mask[growth.box] = np.where(growth.labels, growth.labels, mask[growth.box])
    images = _image(imaging_rng, brain, tissues, growths)
    affine = np.diag([-voxel[0], -voxel[1], voxel[2], 1.0])
    affine[:3, 3] = [-axis[0] * sign for axis, sign in zip(brain.axes, (1, 1, -1), strict=True)]
    return Phantom(images, mask, affine)


def write_phantoms(
    folder: str | Path,
    patients: int,
    seed: int = 0,
    healthy_patients: int = 0,
    shape: Sequence[int] = (96, 112, 96),
    voxel_size: float | Sequence[float] = 2.0,
) -> list[Path]:
    """Return the folders of `patients` phantoms, written in the BraTS 2021 layout.

    Each is `BraTS2021_phantom<number>` with int16 `_t1`, `_t1ce`, `_t2`, `_flair` and uint8 `_seg`
    .nii.gz files. The first `healthy_patients` of them have no tumour. Patient i depends on `seed`
    and i alone. A run can be interrupted and repeated: patients made with the same arguments stay,
    others are replaced.

    Raises:
        ValueError: negative or inconsistent numbers, or a patient's folder that holds other data.
    """
    size, voxel = _check_grid(shape, voxel_size)
    if not 0 <= healthy_patients <= patients:
        raise ValueError(
            "healthy_patients must lie between 0 and the number of patients, "
            f"{patients}, got {healthy_patients}; lower it or ask for more patients."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index in tqdm(range(patients), desc="phantoms", unit="patient"):
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
        recipe = {
            "recipe": RECIPE,
            "seed": int(state[0]),
            "shape": list(size),
            "voxel_size": list(voxel),
            "tumour": index >= healthy_patients,
        }
        written.append(_write_patient(folder / f"BraTS2021_phantom{index + 1:03d}", recipe))
    return written


def _check_grid(
    shape: Sequence[int], voxel_size: float | Sequence[float]
) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    size = tuple(int(n) for n in shape)
    if len(size) != 3 or size != tuple(shape):
        raise ValueError(f"shape must be three whole numbers (X, Y, Z), got {tuple(shape)}.")
    steps = np.asarray(voxel_size, dtype=float)
    if steps.shape not in ((), (3,)) or not ((steps > 0) & (steps <= 10)).all():
        raise ValueError(
            f"voxel_size must be one number or three, > 0 and <= 10 mm, got {voxel_size}."
        )
    x, y, z = np.broadcast_to(steps, 3).tolist()
    if min(np.multiply(size, (x, y, z))) < 60:
        raise ValueError(
            f"a phantom must span at least 60 mm along each axis, got shape {size} with voxels of "
            f"{voxel_size} mm; ask for more or larger voxels."
        )
    return size, (x, y, z)


def _axes(size: tuple[int, ...], voxel: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    steps = zip(size, voxel, strict=True)
    return tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in steps)


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


def _write_patient(folder: Path, recipe: dict) -> Path:
    """Return `folder`, holding the phantom of `recipe`; it appears complete or not at all."""
    record = folder / RECORD
    names = {key: f"{folder.name}_{key}.nii.gz" for key in (*SEQUENCES, "seg")}
    if folder.exists():
        if not record.exists():
            raise ValueError(f"{folder} exists but holds no phantom; choose another folder.")
        complete = all((folder / name).exists() for name in names.values())
        if complete and json.loads(record.read_text()) == recipe:
            return folder
        shutil.rmtree(folder)
    phantom = make_phantom(
        recipe["seed"], recipe["shape"], recipe["voxel_size"], tumour=recipe["tumour"]
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantom-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir()
        for sequence, image in phantom.images.items():
            write_nifti(new / names[sequence], np.rint(image).astype(np.int16), phantom.affine)
        write_nifti(new / names["seg"], phantom.mask, phantom.affine)
        (new / RECORD).write_text(json.dumps(recipe))
        os.replace(new, folder)
    return folder
