"""Odd scans, folders and tables, one function per case, each made from one small brain."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from modeling_rasalore.scans.volume_writing import write_nifti


# --- Intensities ----------------------------------------------------------------------------------
def smooth_brain(slices: int = 6) -> np.ndarray:
    """(slices, 28, 24) float32 whole numbers: tissue of 300 to 1500 in a background of 0."""
    scan = np.zeros((slices, 28, 24), np.float32)
    inside = (slice(1, -1), slice(4, -4), slice(3, -3))
    noise = np.random.default_rng(0).standard_normal(scan[inside].shape)
    tissue = ndimage.gaussian_filter(noise, 1.5)
    low, high = tissue.min(), tissue.max()
    scan[inside] = np.round(300 + 1200 * (tissue - low) / (high - low))
    return scan


def write_slices(path: Path, slices: np.ndarray) -> Path:
    """Return `path` of slices (S, H, W) with voxels of 2 x 2 x 3.5 mm, stored LPS."""
    affine = np.diag([-2.0, -2.0, 3.5, 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, np.ascontiguousarray(slices.transpose(2, 1, 0)), affine)


def with_spikes(slices: np.ndarray, factor: float) -> np.ndarray:
    """One voxel in the brain of each slice at `factor` times the slice's maximum."""
    scan = slices.copy()
    for image in scan:
        places = np.argwhere(image > 0)
        if len(places):
            image[tuple(places[len(places) // 2])] = image.max() * factor
    return scan


def with_ringing(slices: np.ndarray) -> np.ndarray:
    """Moved by part of a voxel with cubic splines: over- and undershoot around the brain."""
    return np.asarray(ndimage.shift(slices, (0, 0.3, 0.4), order=3), np.float32)


def with_background(slices: np.ndarray, value: float) -> np.ndarray:
    """Another number where there is no brain."""
    return np.where(slices > 0, slices, np.float32(value))


def with_head(slices: np.ndarray) -> np.ndarray:
    """A dark gap and a bright rim around the brain, in a wider field of view."""
    scan = np.pad(slices, ((0, 0), (8, 8), (8, 8)))
    for image in scan[1:-1]:
        brain = image > 0
        bone = ndimage.binary_dilation(brain, iterations=2)
        image[bone & ~brain] = 40
        image[ndimage.binary_dilation(bone, iterations=3) & ~bone] = 1400
    return scan


def mosaic(slices: np.ndarray) -> np.ndarray:
    """(1, ..., ...): the slices that show brain as tiles of one slice, three in a row."""
    tiles = [image for image in slices if image.any()]
    rows = [np.concatenate(tiles[start : start + 3], axis=1) for start in range(0, len(tiles), 3)]
    return np.concatenate(rows, axis=0)[None]


def scans_with_the_same_mask() -> dict[str, np.ndarray]:
    """What `smooth_brain` may look like without another mask: backgrounds, offsets, scales."""
    clean = smooth_brain()
    return {
        "added": clean + 500,
        "subtracted": clean - 500,
        "zscore": (clean - 300) / 200,
        "tiny": clean * np.float32(1e-12),
        "huge": clean * np.float32(1e12),
        "minus_32768": with_background(clean, -32768),
        "minus_1024": with_background(clean, -1024),
        "plus_65535": with_background(clean, 65535),
        "nan": with_background(clean, np.nan),
    }


def scans_without_a_brain() -> dict[str, tuple[np.ndarray, str]]:
    """Scans in which nothing can be found, each with what must be said about it."""
    shape = (6, 28, 24)
    speck = np.zeros(shape, np.float32)
    speck[2, 3, 3:8] = 9
    return {
        "zeros": (np.zeros(shape, np.float32), "no voxel differs from its background, 0"),
        "constant": (np.full(shape, 700, np.float32), "no voxel differs from its background, 700"),
        "nan": (np.full(shape, np.nan, np.float32), "all its voxels are NaN or infinite"),
        "speck": (speck, "only 5 voxels (0.07 mL) are not background"),
        "mosaic": (mosaic(smooth_brain(8)), "its one slice shows 6 pieces of like size"),
    }
