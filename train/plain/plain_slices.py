"""A volume cut the straightforward way: nibabel, one PNG per slice."""

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def plain_cut(scan: Path, mask: Path, folder: Path, skip: int) -> int:
    """Write every axial slice that shows brain, and its mask, as 8-bit PNG; return how many."""
    # nibabel types what it loads as a file, not as an image.
    images, truth = (nib.load(path).get_fdata() for path in (scan, mask))  # type: ignore[attr-defined]
    count = 0
    for index in range(skip, images.shape[2] - skip):
        image = images[:, :, index].T
        if not image.any():
            continue
        unit = (image - image.min()) / (image.max() - image.min())
        Image.fromarray((255 * unit).astype(np.uint8)).save(folder / f"{index}.png")
        lesion = (truth[:, :, index].T > 0).astype(np.uint8) * 255
        Image.fromarray(lesion).save(folder / f"{index}_mask.png")
        count += 1
    return count
