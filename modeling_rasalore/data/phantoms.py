"""Make synthetic brains in four MRI sequences, with or without tumours, and their masks.

A patient is made in five steps: (1) warp the tissue maps of the MNI152 template, (2) grow tumours
in them, (3) draw intensity and texture of every tissue per sequence, as SynthSeg does (Billot et
al. 2023) but within the order that the sequence shows, with harmless bright spots, (4) paint the
lesions, (5) add bias field and noise. The halves of a healthy brain differ in ventricles, furrows,
brightness and, in some, a pocket of fluid, so that a mirror image does not give a tumour away.
Anatomy, imaging and lesions draw from separate random streams: without its tumour a patient has the
same brain, equal to the last bit at a distance from it, and the brightest voxels of every image are
membranes and vessels that all patients have.
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
from tqdm.auto import tqdm

from ..processes import end_with_parent
from ..scans.volume_writing import write_nifti
from .phantom_template import Brain, Tissues, load_template, read_tissues, warp_template
from .phantom_tumours import (
    OEDEMA,
    SEQUENCES,
    Growth,
    grow_tumour,
    paint_tumour,
    place_tumours,
    scatter_lesions,
    smooth_field,
)

RECIPE = 3  # raised whenever a seed gives other voxels than before: written patients are remade
PREFIX = "BraTS2021_phantom"  # of a patient's folder, before the number
RECORD = "phantom.json"

# Range over patients of a tissue's intensity; white matter = 1.
GREY = {"t1": (0.70, 0.86), "t1ce": (0.72, 0.88), "t2": (1.15, 1.38), "flair": (1.04, 1.20)}
FLUID = {"t1": (0.26, 0.44), "t1ce": (0.26, 0.44), "t2": (2.5, 3.4), "flair": (0.28, 0.52)}
# What membranes and vessels at the brain's surface reach, and nothing exceeds before bias and
# noise, lesions included: so the maximum of an image says nothing about a tumour.
CEILING = {"t1": 1.6, "t1ce": 2.8, "t2": 3.6, "flair": 2.4}
# Harmless spots in white matter: age-related lesions, and fluid-filled spaces around vessels.
AGE_SPOT = {"t1": 0.9, "t1ce": 0.9, "t2": 1.6, "flair": 1.5}
VESSEL_SPACE = {"t1": 0.7, "t1ce": 0.7, "t2": 1.9, "flair": 0.8}
# Range over patients of white-matter lesions.
WHITE_LESION = {"t1": (0.7, 0.9), "t1ce": (0.7, 0.9), "t2": (1.5, 2.2), "flair": (1.35, 2.0)}


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


def make_phantom(
    seed: int,
    shape: Sequence[int] = (96, 112, 96),
    voxel_size: float | Sequence[float] = 2.0,
    tumour: bool = True,
    white_matter_lesions: bool = False,
) -> Phantom:
    """Return a synthetic patient; the same arguments give the same voxels in every process.

    Args:
        seed: the patient, >= 0. One seed is one brain and one tumour at every voxel size.
        shape: voxels (X, Y, Z); a grid smaller than a head, about 170 x 210 x 170 mm, cuts it off.
        voxel_size: mm, one number or one per axis.
        tumour: whether the patient has one (sometimes two).
        white_matter_lesions: whether the patient has them, label 2; a second disease. Without
            either, `mask` is all zero.

    Raises:
        ValueError: not three numbers of voxels, voxels > 10 mm, or an axis shorter than 60 mm.
    """
    size, voxel = _check_grid(shape, voxel_size)
    anatomy_rng, imaging_rng, tumour_rng, white_rng = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(4)
    )
    steps = zip(size, voxel, strict=True)
    axes = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in steps)
    template = load_template(voxel)
    brain = warp_template(anatomy_rng, template, axes)
    where = (template.seeds, brain.positions, brain.inside, axes)
    tumours = place_tumours(tumour_rng, *where) if tumour else []
    tissues = read_tissues(anatomy_rng, template, brain, tumours)
    white, fluid = brain.volume(tissues.white), brain.volume(tissues.fluid, outside=1)
    side = brain.positions[0] - template.midline
    growths = [grow_tumour(t, tumour_rng, axes, white, fluid, side) for t in tumours]
    mask = np.zeros(size, np.uint8)
    for growth in growths:
        mask[growth.box] = np.where(growth.labels, growth.labels, mask[growth.box])
    scattered = np.zeros(len(tissues.white), np.float32)
    if white_matter_lesions:
        maps = tissues.white, tissues.ventricle
        scattered = scatter_lesions(white_rng, axes, brain.inside, *maps)
        mask[(brain.volume(scattered) >= 0.5) & (mask == 0)] = OEDEMA
    images = _image(imaging_rng, brain, tissues, growths, scattered)
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
    white_matter_lesions: bool = False,
) -> list[Path]:
    """Return the folders of `patients` phantoms, written in the BraTS 2021 layout.

    Each is `BraTS2021_phantom<number>` with int16 `_t1`, `_t1ce`, `_t2`, `_flair` and uint8 `_seg`
    .nii.gz files. The first `healthy_patients` of them are healthy. Patient i depends on `seed`
    and i alone. A run can be interrupted and repeated: patients made with the same arguments stay,
    others are replaced.

    Args:
        processes: how many patients are made at once; None for one per core.
        white_matter_lesions: those who are not healthy have them instead of a tumour.

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

    def settings_of(index: int) -> dict[str, Any]:
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
        ill = index >= healthy_patients
        disease = {
            "tumour": ill and not white_matter_lesions,
            "white_matter_lesions": ill and white_matter_lesions,
        }
        return {"seed": int(state[0]), **grid, **disease}

    for path in folder.glob(f"{PREFIX}*"):
        number = path.name.removeprefix(PREFIX)
        further = number.isdecimal() and int(number) > patients
        if further and not _is_written(path, settings_of(int(number) - 1)):
            raise ValueError(
                f"{folder} holds patients made with other arguments, such as {path.name}; give "
                "another folder, or delete them."
            )
    folders = [folder / f"{PREFIX}{index + 1:03d}" for index in range(patients)]
    settings = [settings_of(index) for index in range(patients)]
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


def _image(
    rng: np.random.Generator,
    brain: Brain,
    tissues: Tissues,
    growths: list[Growth],
    scattered: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the four images; how many numbers `rng` draws does not depend on the lesions."""

    def field(spacing: float) -> np.ndarray:
        return smooth_field(rng, brain.axes, spacing)[brain.inside]

    fine, mottled, regional = field(4.0), field(9.0), field(30.0)
    spots = np.clip((field(5.0) - rng.uniform(2.2, 3.6)) / 0.4, 0, 1) * tissues.white
    caps = rng.uniform(0, 0.5) * tissues.ventricle**2 * np.clip(0.5 + mottled, 0, 1) * tissues.white
    spaces = np.clip((field(4.0) - rng.uniform(2.8, 3.8)) / 0.4, 0, 1)
    membranes = np.clip((field(6.0) - 1.7) / 0.4, 0, 1) * brain.surface
    images = {}
    for sequence in SEQUENCES:
        values = _mix_tissues(rng, tissues, sequence, mottled)
        values *= (
            1 + rng.normal(0, 0.03) * regional + 0.02 * fine + rng.normal(0, 0.03) * brain.half
        )
        level = rng.uniform(*WHITE_LESION[sequence])
        for share, bright in (
            (spots + caps, AGE_SPOT[sequence]),
            (spaces, VESSEL_SPACE[sequence]),
            (scattered, level),
        ):
            values += np.minimum(share, 1) * (bright - values)
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


def _mix_tissues(
    rng: np.random.Generator, tissues: Tissues, sequence: str, mottled: np.ndarray
) -> np.ndarray:
    """Return the intensities of a sequence, (N,), every tissue with a level and texture of its own.

    Args:
        rng: source of these.
        tissues: their shares.
        sequence: t1, t1ce, t2 or flair.
        mottled: a smooth field, (N,), which each tissue follows as it likes.
    """
    levels = np.array([1.0, rng.uniform(*GREY[sequence]), rng.uniform(*FLUID[sequence])])
    textures = levels * rng.normal(0, 0.02, 3)
    shares = np.stack([tissues.white, tissues.grey, tissues.fluid])
    mixed: np.ndarray = levels @ shares + textures @ shares * mottled
    return mixed


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
