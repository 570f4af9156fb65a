"""Synthetic brains, the same within skull and scalp, and what is no brain at all."""

from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from modeling_rasalore.data.phantoms import make_phantom
from modeling_rasalore.scans.volume_writing import write_nifti

VOXEL_MM = 2.0
SPACING = (VOXEL_MM,) * 3
BONE_MM, SCALP_MM = 2.0, 10.0  # from the brain outwards, where they begin; the scalp has 8 mm


@cache
def make_brains(seed: int) -> dict[str, np.ndarray]:
    """Return sequence -> slices of a healthy brain, (S, H, W) float32."""
    images = make_phantom(seed, tumour=False).images
    return {name: np.ascontiguousarray(image.transpose(2, 1, 0)) for name, image in images.items()}


def make_brain(seed: int, sequence: str) -> np.ndarray:
    """Return the slices of a healthy brain, (S, H, W) float32."""
    return make_brains(seed)[sequence]


def make_head(seed: int, sequence: str, noise: float = 0.0) -> np.ndarray:
    """Return a brain (S, H, W) in fluid, dark bone and a bright scalp.

    Args:
        noise: of the air around it, as a share of the brain's median.
    """
    brain = make_brain(seed, sequence)
    middle = float(np.median(brain[brain > 0]))
    distance = ndimage.distance_transform_edt(~ndimage.binary_fill_holes(brain > 0)) * VOXEL_MM
    layers = [0.5, 0.1, 1.2, 0.0]  # fluid, bone, scalp, air
    around = np.digitize(distance, (BONE_MM, SCALP_MM, SCALP_MM + 8))
    head = np.where(brain > 0, brain, middle * np.array(layers)[around])
    air = np.abs(np.random.default_rng(seed).normal(0, noise * middle, head.shape))
    return (head + np.where(around == 3, air, 0)).astype(np.float32)


def make_bottle(height_mm: float, radius_mm: float) -> np.ndarray:
    """Return a noisy, but even cylinder that stands upright, (S, H, W) float32."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2) * VOXEL_MM for n in (int(height_mm / VOXEL_MM) + 10, 96, 96)
    )
    inside = np.hypot(y[:, None], x) < radius_mm
    upright = np.abs(z) < height_mm / 2
    filled = upright[:, None, None] & inside
    noisy = np.random.default_rng(0).normal(100, 2, filled.shape)
    return np.where(filled, noisy, 0).astype(np.float32)


def write_slices(path: Path, slices: np.ndarray) -> Path:
    """Return `path`, a NIfTI file of slices (S, H, W) in LPS order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = slices.transpose(2, 1, 0)
    return write_nifti(path, data, np.diag([-VOXEL_MM, -VOXEL_MM, VOXEL_MM, 1.0]))
