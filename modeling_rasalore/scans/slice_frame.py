"""The one place where axes change: voxels in a scan's own order <-> the slice frame.

Slice frame: an array (S, H, W) of axial slices. Slices run inferior -> superior, rows anterior ->
posterior, columns patient right -> left (the radiological view).

nibabel describes "own voxel order -> LPS" as a permutation with flips; LPS arrays are (column, row,
slice), so reversing their axes gives (slice, row, column).
"""

from itertools import product

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine


def to_lps(affine: np.ndarray) -> np.ndarray:
    """Return the permutation with flips that brings voxels of `affine` into LPS order, (3, 2)."""
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("LPS")
    )


def own_axes(affine: np.ndarray) -> np.ndarray:
    """Return which of the scan's own axes runs along slices, rows and columns, in this order."""
    return np.argsort(to_lps(affine)[:, 0])[::-1]


def axis_codes(affine: np.ndarray) -> str:
    """Three letters: the directions in which the scan's own voxel axes run, such as "LPS"."""
    return "".join(orientations.aff2axcodes(affine))


def in_own_order(slices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return a view of `slices` (S, H, W) in the voxel order (I, J, K) of a scan with `affine`."""
    from_lps = orientations.ornt_transform(
        orientations.axcodes2ornt("LPS"), orientations.io_orientation(affine)
    )
    return orientations.apply_orientation(slices.transpose(2, 1, 0), from_lps)


def slice_affine(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the affine (4, 4) that maps (slice, row, column) to the scan's world coordinates.

    Args:
        affine: of the scan's own voxels.
        shape: (S, H, W).
    """
    own = np.empty(3, int)
    own[own_axes(affine)] = shape
    lps_to_own = orientations.inv_ornt_aff(to_lps(affine), tuple(own))
    return (affine @ lps_to_own)[:, [2, 1, 0, 3]]


def corners(affine: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return where the 8 corners of a box of indices lie in the world, (8, 3)."""
    return apply_affine(affine, list(product(*zip(low, high, strict=True))))


def has_three_axes(affine: np.ndarray) -> bool:
    """Whether an affine maps voxels to 3-D space without losing an axis."""
    with np.errstate(all="ignore"):
        usable = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
        return bool(usable and np.isfinite(orientations.io_orientation(affine)).all())
