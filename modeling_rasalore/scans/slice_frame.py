"""Change axes, here only: voxels in a scan's own order <-> the slice frame.

Slice frame: an array (S, H, W) of axial slices. Slices run inferior -> superior, rows anterior ->
posterior, columns patient right -> left (the radiological view).

nibabel describes "own voxel order -> LPS" as a permutation with flips; LPS arrays are (column, row,
slice), so reversing their axes gives (slice, row, column).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a scan lie, in its own order and in the slice frame.

    Attributes:
        affine: (4, 4) float64, voxel indices in the scan's own order -> its world coordinates.
        unit: mm per unit of the world coordinates, such as 1000 where they are metres.
        shape: (S, H, W), in the slice frame.
    """

    affine: np.ndarray
    unit: float
    shape: tuple[int, int, int]

    @classmethod
    def of_voxels(cls, affine: np.ndarray, unit: float, shape: tuple[int, ...]) -> "Geometry":
        """Return the geometry of voxels that have the shape (I, J, K, ...) in their own order."""
        slices, rows, columns = (shape[axis] for axis in _own_axes(affine))
        return cls(affine, unit, (slices, rows, columns))

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """mm between slices, between rows and between columns."""
        sizes = voxel_sizes(self.affine)[_own_axes(self.affine)] * self.unit
        return float(sizes[0]), float(sizes[1]), float(sizes[2])

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(np.prod(self.spacing))

    @property
    def axis_codes(self) -> str:
        """Three letters: the directions in which the scan's own voxel axes run, such as "LPS"."""
        return "".join(orientations.aff2axcodes(self.affine))

    @cached_property
    def slice_affine(self) -> np.ndarray:
        """(4, 4): slice, row and column, counted from 0, -> world coordinates in mm."""
        own_shape = np.empty(3, int)
        own_shape[_own_axes(self.affine)] = self.shape
        lps_to_own = orientations.inv_ornt_aff(_to_lps(self.affine), tuple(own_shape))
        millimetres = np.array([self.unit] * 3 + [1.0])
        return millimetres[:, None] * (self.affine @ lps_to_own)[:, [2, 1, 0, 3]]

    @property
    def corners(self) -> np.ndarray:
        """(8, 3): where the corner voxels lie in mm, in the order of the slice frame."""
        return box_corners(self.slice_affine, np.zeros(3), np.array(self.shape) - 1)

    def offset_from(self, other: "Geometry") -> float:
        """Return how far corner voxels lie from those of `other`, along any axis, in mm."""
        return float(np.abs(self.corners - other.corners).max())

    def in_own_order(self, slices: np.ndarray) -> np.ndarray:
        """Return a view of `slices` (S, H, W) in the scan's own voxel order (I, J, K)."""
        from_lps = orientations.ornt_transform(
            orientations.axcodes2ornt("LPS"), orientations.io_orientation(self.affine)
        )
        return orientations.apply_orientation(slices.transpose(2, 1, 0), from_lps)


def box_corners(affine: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return where the 8 corners of a box of indices lie in the world, (8, 3)."""
    return apply_affine(affine, list(product(*zip(low, high, strict=True))))


def has_three_axes(affine: np.ndarray) -> bool:
    """Whether an affine maps voxels to 3-D space without losing an axis."""
    with np.errstate(all="ignore"):
        usable = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
        return bool(usable and np.isfinite(orientations.io_orientation(affine)).all())


def _to_lps(affine: np.ndarray) -> np.ndarray:
    """Return the permutation with flips that brings voxels of `affine` into LPS order, (3, 2)."""
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("LPS")
    )


def _own_axes(affine: np.ndarray) -> np.ndarray:
    """Return which of the scan's own axes runs along slices, rows and columns, in this order."""
    return np.argsort(_to_lps(affine)[:, 0])[::-1]
