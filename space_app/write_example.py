"""Makes the synthetic brain that the app offers, from a clone with the train extra installed.

python space_app/write_example.py
"""

from pathlib import Path

import numpy as np

from modeling_rasalore.data.phantoms import make_phantom
from modeling_rasalore.scans.volume_writing import write_nifti

TARGET = Path(__file__).parent / "examples" / "synthetic_t2.nii.gz"
SEED, SHAPE, VOXEL_SIZE = 0, (72, 88, 72), 2.5  # a whole brain in 90 kB


def make_example() -> tuple[np.ndarray, np.ndarray]:
    """Return voxels (X, Y, Z) uint8, background 0, and the affine of the example."""
    phantom = make_phantom(SEED, SHAPE, VOXEL_SIZE)
    image = phantom.images["t2"]
    return np.rint(image / image.max() * 255).astype(np.uint8), phantom.affine


if __name__ == "__main__":
    print(write_nifti(TARGET, *make_example()))
