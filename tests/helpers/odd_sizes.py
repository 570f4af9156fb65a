"""Scans of odd sizes and contents, each made from one small brain."""

from pathlib import Path

import numpy as np

from modeling_rasalore.scans.volume_writing import write_nifti


def brain_voxels(shape: tuple[int, int, int] = (24, 28, 12), seed: int = 0) -> np.ndarray:
    """A block of random tissue in a background of 0, (I, J, K) int16."""
    voxels = np.zeros(shape, np.int16)
    inside = tuple(slice(size // 6, size - size // 6) for size in shape)
    voxels[inside] = np.random.default_rng(seed).integers(20, 200, voxels[inside].shape)
    return voxels


# --- Sizes of what is made ------------------------------------------------------------------------
def stretched_scan(path: Path, sizes: tuple[float, float, float]) -> Path:
    """A brain whose header states voxels of `sizes` mm."""
    affine = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
    return write_nifti(path, brain_voxels(), affine)


def one_sagittal_slice(path: Path, rows: int = 112) -> Path:
    """A scan of one sagittal slice of 2 mm: its axial slices are one column wide."""
    voxels = np.zeros((1, rows, 24), np.int16)
    voxels[:, 6:-6, 2:-2] = np.random.default_rng(0).integers(20, 200, (1, rows - 12, 20))
    return write_nifti(path, voxels, np.diag([-2.0, -2.0, 2.0, 1.0]))


def one_coronal_slice(path: Path) -> Path:
    """A scan of one coronal slice of 2 mm: its axial slices are one row high."""
    voxels = np.zeros((96, 1, 24), np.int16)
    voxels[6:-6, :, 2:-2] = np.random.default_rng(0).integers(20, 200, (84, 1, 20))
    return write_nifti(path, voxels, np.diag([-2.0, -2.0, 2.0, 1.0]))


def scan_of_two_volumes(path: Path) -> Path:
    """A 4-D file."""
    voxels = np.stack([brain_voxels(seed=0), brain_voxels(seed=1)], axis=-1)
    return write_nifti(path, voxels, np.diag([-2.0, -2.0, 2.0, 1.0]))
