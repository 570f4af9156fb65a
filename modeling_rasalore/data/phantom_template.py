"""Load the tissue maps of the MNI152 template, which every synthetic brain is warped from."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..scans.background import index_box


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
