"""Tell where voxels lie, and if a head can; change axes, here only: own order <-> slice frame.

Slice frame: an array (S, H, W) of axial slices. Slices run inferior -> superior, rows anterior ->
posterior, columns patient right -> left (the radiological view).

nibabel describes "own voxel order -> LPS" as a permutation with flips; LPS arrays are (column, row,
slice), so reversing their axes gives (slice, row, column).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from nibabel import Nifti1Header, orientations
from nibabel.affines import apply_affine, voxel_sizes

from .header_guard import UNIT_NAMES, UNITS, VOXEL_SIZES_MM, VolumeError

HEAD_MM = (20.0, 600.0)  # what a scan of a head covers along an axis
FINE_VOXELS = 64  # along an axis shorter than a head: no scanner's voxels are as small
THICKEST_IN_PLANE = 4.0  # mm between rows or columns of an axial slice
PLANE_RATIO = 1.9  # of a voxel's longest side to the next: from about 2 on it is the slice axis
RIGHT_ANGLE = 1e-3  # how far the cosine of one may be from 0
FORMS = ("sform", "qform")  # in the order in which the standard has them tried
SAME_SIZE = 0.05  # relative; rounded voxel sizes differ by less


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
        """mm between slices, between rows and between columns, each at right angles.

        In a sheared scan (tilted gantry) neighbouring voxels lie farther apart than their slices;
        so measured, the product is the volume of a voxel in every scan.
        """
        slices, rows, columns = self.affine[:3, _own_axes(self.affine)].T
        with np.errstate(all="ignore"):  # beyond every limit that is checked later
            rows = _at_right_angles(rows, columns)
            slices = _at_right_angles(_at_right_angles(slices, columns), rows)
            sides = np.array([slices, rows, columns])
            sizes = (np.sqrt(np.square(sides).sum(axis=1)) * self.unit).tolist()
        return sizes[0], sizes[1], sizes[2]

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3, the determinant of the affine."""
        return float(np.prod(self.spacing))

    @property
    def extent(self) -> tuple[float, float, float]:
        """mm that the scan covers along slices, rows and columns."""
        slices, rows, columns = np.multiply(self.shape, self.spacing).tolist()
        return slices, rows, columns

    @property
    def covers_a_head(self) -> bool:
        """Whether two axes or more are as long as a head, and none is longer: slabs pass."""
        _, middle, longest = sorted(self.extent)
        return middle >= HEAD_MM[0] and longest <= HEAD_MM[1]

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


def choose_form(header: Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """Return the affine that says where the voxels lie, and one sentence per form left out.

    A form that cannot be used gives way to the other one and loses its code in `header`, so that
    whatever is written for the scan says the same.

    Raises:
        ValueError: forms are set and none of them can be used.
    """
    problems: dict[str, str] = {}
    for form in FORMS:
        if header[f"{form}_code"] <= 0:
            continue
        affine, problem = _read_form(header, form)
        if problem is None:
            for unusable in problems:
                header[f"{unusable}_code"] = 0
            told = [f"{text}, so the {form} is used." for text in problems.values()]
            return affine, told
        problems[form] = problem
    if problems:
        raise ValueError(f"{' and '.join(problems.values())}; save the scan with a valid form")
    return np.asarray(header.get_base_affine(), dtype=np.float64), []


def _read_form(header: Nifti1Header, form: str) -> tuple[np.ndarray, str | None]:
    """Return the affine of a form and why it cannot be used, None where it can."""
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(getattr(header, f"get_{form}")(), dtype=np.float64)
    except ValueError:  # of quaternions alone
        parts = [float(header[f"quatern_{part}"]) for part in "bcd"]
        return np.full((4, 4), np.nan), f"the affine must be a rotation, got quaternion {parts}"
    if not np.isfinite(affine).all():
        return affine, f"the affine must be finite, got the {form} {affine[:3].tolist()}"
    if not has_three_axes(affine):
        told = affine[:3].tolist()
        return affine, f"the affine must map voxels to 3-D space, got the {form} {told}"
    return affine, None


def compare_forms(header: Nifti1Header, used: Geometry) -> str | None:
    """Return what to say where the header's other statements differ from the geometry used.

    These are the qform beside an sform and, without one, the voxel sizes alone; they differ from
    the sform when they put a voxel anywhere in the scan farther than one voxel away.
    """
    if header["sform_code"] <= 0:
        return None
    shape = np.array(header.get_data_shape()[:3])
    if header["qform_code"] > 0:
        affine, problem = _read_form(header, "qform")
        if problem or not (apart := _voxels_apart(used.affine, affine, shape)) > 1:
            return None
        other = Geometry.of_voxels(affine, used.unit, tuple(shape))
        hint = ""
        if np.linalg.det(used.affine) * np.linalg.det(affine) < 0:
            hint = "; left and right may be swapped"
        elif _is_sheared(used.affine):
            hint = "; a qform cannot tell slices that are shifted (tilted gantry)"
        return (
            f"sform and qform disagree by up to {apart:.3g} voxels: the sform, which is used, says "
            f"{_describe(used)}, the qform {_describe(other)}{hint}."
        )
    sizes, stated = voxel_sizes(used.affine), np.abs(header["pixdim"][1:4])
    if (np.abs(stated / sizes - 1) <= np.minimum(SAME_SIZE, 1 / shape)).all():
        return None
    return (
        f"pixdim says voxels of {_times(stated * used.unit)} mm, but the sform, which is used, "
        f"{_times(sizes * used.unit)} mm."
    )


def _voxels_apart(first: np.ndarray, second: np.ndarray, shape: np.ndarray) -> float:
    """Return how far apart two affines put a voxel of a scan at most, in voxels of the first."""
    low, high = np.zeros(3), shape - 1
    with np.errstate(all="ignore"):  # to infinity
        moved = box_corners(np.linalg.solve(first, second), low, high)
        return float(np.abs(moved - box_corners(np.eye(4), low, high)).max())


def _is_sheared(affine: np.ndarray) -> bool:
    directions = affine[:3, :3] / voxel_sizes(affine)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > RIGHT_ANGLE)


def _describe(geometry: Geometry) -> str:
    return f"{_times(geometry.spacing)} mm stored {geometry.axis_codes}"


def check_geometry(
    path: Path, affine: np.ndarray, header: Nifti1Header, shape: tuple[int, ...]
) -> tuple[Geometry, list[str]]:
    """Return where voxels of `shape` lie, and what to know of it; refuse what no scanner makes.

    Millimetres under another unit's code are put right, in `header` too.

    Raises:
        VolumeError: an affine that loses an axis, or sizes that no head has.
    """
    if not has_three_axes(affine):
        raise VolumeError(
            f"{path}: the affine must map voxels to 3-D space, got {affine.tolist()}; save the "
            "scan with a valid sform or qform."
        )
    code = int(header["xyzt_units"])
    geometry = Geometry.of_voxels(affine, UNITS.get(code & 7, 1.0), shape)
    in_mm, warnings = replace(geometry, unit=1.0), []
    if in_mm.covers_a_head and not geometry.covers_a_head:
        header["xyzt_units"] = code & ~7 | 2
        warnings.append(
            f"the header's unit of length is the {UNIT_NAMES[code & 7]}, in which the scan is "
            f"{max(geometry.extent):g} mm long; its numbers are taken as mm, which makes it "
            f"{max(in_mm.extent):g} mm."
        )
        geometry = in_mm
    units = [(name, UNITS[number]) for number, name in UNIT_NAMES.items()]
    if problem := refuse_extent(geometry, units):
        raise VolumeError(f"{path}: {problem}.")
    sizes, (low, high) = geometry.spacing, VOXEL_SIZES_MM
    if not low <= min(sizes) <= max(sizes) <= high:
        raise VolumeError(
            f"{path}: voxels must measure {low:g} to {high:g} mm, got {sizes} mm from the affine; "
            "write the true sizes and unit into the header."
        )
    return geometry, warnings + find_geometry_warnings(geometry)


def find_geometry_warnings(geometry: Geometry) -> list[str]:
    """Return a sentence where a scan is no whole head, and one where its slices are not axial."""
    sentences = []
    low, high = HEAD_MM
    if min(geometry.extent) < low:
        sentences.append(
            f"the scan covers {_times(geometry.extent)} mm (slices, rows, columns), a head {low:g} "
            f"to {high:g} mm along each axis: it is a part of one, or the voxel sizes in its "
            "header are wrong, and volumes in mL with them."
        )
    _, rows, columns = geometry.spacing
    _, middle, longest = sorted(geometry.spacing)
    other_plane = max(rows, columns) == longest and longest > PLANE_RATIO * middle
    if other_plane or max(rows, columns) > THICKEST_IN_PLANE:
        plane = f" ({'sagittal' if columns > rows else 'coronal'} slices)" if other_plane else ""
        sentences.append(
            f"voxels measure {_times(geometry.spacing)} mm (slices, rows, columns), up to "
            f"{max(rows, columns):.3g} mm within an axial slice{plane}; models see axial slices, "
            "so expect a coarse mask and volumes in mL that are too large."
        )
    return sentences


def refuse_extent(geometry: Geometry, units: Iterable[tuple[str, float]]) -> str | None:
    """Return why no head can be as large, or as small, as the scan; None where one can.

    Args:
        units: name and mm of the units of length that a header can name.
    """
    fitting = None
    if not geometry.covers_a_head:
        scaled = {name: Geometry(geometry.affine, mm, geometry.shape) for name, mm in units}
        fitting = next(((name, g) for name, g in scaled.items() if g.covers_a_head), None)
    axes = zip(geometry.shape, geometry.extent, strict=True)
    too_fine = any(count >= FINE_VOXELS and length < HEAD_MM[0] for count, length in axes)
    if fitting is None and max(geometry.extent) <= HEAD_MM[1] and not too_fine:
        return None
    hint = ""
    if fitting:
        hint = f", while the same numbers in {fitting[0]}s make {_times(fitting[1].extent)} mm"
    return (
        f"a head measures {HEAD_MM[0]:g} to {HEAD_MM[1]:g} mm along each axis, got "
        f"{_times(geometry.extent)} mm (slices, rows, columns){hint}; write the true voxel sizes "
        "and unit into the header"
    )


def _times(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:.4g}" if number < 1e4 else f"{number:.0f}" for number in numbers)


def _at_right_angles(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return the part of a vector (3,) that does not run along `axis`."""
    return vector - (vector @ axis) / (axis @ axis) * axis


def _to_lps(affine: np.ndarray) -> np.ndarray:
    """Return the permutation with flips that brings voxels of `affine` into LPS order, (3, 2)."""
    return orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt("LPS")
    )


def _own_axes(affine: np.ndarray) -> np.ndarray:
    """Return which of the scan's own axes runs along slices, rows and columns, in this order."""
    return np.argsort(_to_lps(affine)[:, 0])[::-1]
