"""Score the lesions of a scan one by one, under the rules of BraTS 2023 for gliomas.

The rules are those that the challenge's published code applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .metrics import check_shapes

MERGE_VOXELS = 3  # dilation steps: true lesions that meet are one, predictions within belong to it
SMALLEST_LESION = 50.0  # mm3; true lesions up to this volume neither count nor are missed
HD95_PENALTY = 374.0  # mm, for a missed or an invented lesion: the diagonal of 240 x 240 x 155
SURFACE_SAMPLE = 50_000  # voxels; only noise has larger surfaces, and a sample gives its percentile
_NEIGHBOURS_26 = np.ones((3, 3, 3), bool)
_NEIGHBOURS_18 = ndimage.generate_binary_structure(3, 2)
Box = tuple[slice, ...]  # one slice for each axis of a volume


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one scan under the rules of BraTS 2023.

    Attributes:
        dice: mean over true lesions and invented ones, which count 0; 1.0 when there are none.
        hd95: the same mean in mm; missed and invented lesions count `HD95_PENALTY`.
        lesions: true lesions above `SMALLEST_LESION`.
        missed: those that no predicted component comes near.
        invented: predicted components near no true lesion, of any size.
    """

    dice: float
    hd95: float
    lesions: int
    missed: int
    invented: int


def lesion_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> LesionScores:
    """Lesion-wise Dice and HD95 of one scan; each true lesion is scored at its own, undilated size.

    True voxels whose dilations meet are one lesion. It is compared with all predicted components
    (26 neighbours) that reach into its dilation; one component may answer for several lesions.

    Args:
        prediction, truth: (S, H, W) bool.
        spacing: mm between slices, rows and columns.
    """
    check_shapes(prediction, truth)
    around = _box(prediction | truth)
    components, truth = _Components(prediction[around], spacing), truth[around]
    claimed = np.zeros(components.count + 1, bool)  # by any true lesion
    dices, distances, missed = [], [], 0
    for lesion in _true_lesions(truth):
        matched = components.reach_into(lesion)
        claimed |= matched
        voxels = np.count_nonzero(lesion.mask)
        if voxels * np.prod(spacing) <= SMALLEST_LESION:
            continue
        missed += int(not matched.any())
        overlap = np.count_nonzero(matched[components.labels[lesion.box][lesion.mask]])
        dices.append(float(2 * overlap / (voxels + components.sizes[matched].sum())))
        corner = [axis.start for axis in lesion.box]
        lesion_points = _points(_surface(lesion.mask), spacing, corner)
        distances.append(_hd95(components.surface_of(matched), lesion_points))
    invented = components.count - int(np.count_nonzero(claimed))
    counted = len(dices) + invented
    return LesionScores(
        dice=sum(dices) / counted if counted else 1.0,
        hd95=(sum(distances) + invented * HD95_PENALTY) / counted if counted else 0.0,
        lesions=len(dices),
        missed=missed,
        invented=invented,
    )


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Hausdorff distance in mm between the surfaces of two masks, at the 95th percentile.

    The larger of the two directions; 0.0 when both masks are empty, `HD95_PENALTY` when one is.
    A surface is the mask's voxels with a face outside it. (The challenge's code weighs surface
    elements by their area instead; the two agree to about a voxel.)

    Args:
        prediction, truth: (S, H, W) bool.
        spacing: mm between slices, rows and columns.
    """
    check_shapes(prediction, truth)
    return _hd95(_points(_surface(prediction), spacing), _points(_surface(truth), spacing))


@dataclass(frozen=True, eq=False)
class _Lesion:
    """A true lesion: its box, with room for the dilation, and its own voxels in that box."""

    box: Box
    mask: np.ndarray


class _Components:
    """Predicted components, numbered from 1; 0 is the background.

    labels: number of each voxel's component, (S, H, W).
    sizes: voxels of each number, (count + 1,).
    """

    def __init__(self, prediction: np.ndarray, spacing: Sequence[float]):
        self.labels, self.count = ndimage.label(prediction, _NEIGHBOURS_26)
        self.sizes = np.bincount(self.labels.ravel())
        surface = _surface(prediction)
        self._points, self._owners = _points(surface, spacing), self.labels[surface]

    def reach_into(self, lesion: _Lesion) -> np.ndarray:
        """Which components reach into the dilated lesion, (count + 1,) bool."""
        dilated = ndimage.binary_dilation(lesion.mask, _NEIGHBOURS_18, MERGE_VOXELS)
        matched = np.zeros(self.count + 1, bool)
        matched[self.labels[lesion.box][dilated]] = True
        matched[0] = False
        return matched

    def surface_of(self, chosen: np.ndarray) -> np.ndarray:
        """Surface points of the chosen components, (n, 3) in mm."""
        return self._points[chosen[self._owners]]


def _true_lesions(truth: np.ndarray) -> list[_Lesion]:
    around = _box(truth)  # predictions may lie far from it
    merged = ndimage.binary_dilation(truth[around], _NEIGHBOURS_18, MERGE_VOXELS)
    labels = np.zeros(truth.shape, np.int32)
    labels[around] = ndimage.label(merged, _NEIGHBOURS_26)[0] * truth[around]
    boxes = [tuple(_grown(side) for side in box) for box in ndimage.find_objects(labels)]
    return [_Lesion(box, labels[box] == index) for index, box in enumerate(boxes, start=1)]


def _box(mask: np.ndarray) -> Box:
    """Bounding box of a mask (S, H, W), with room for the dilation; of an empty one, a voxel."""
    boxes = ndimage.find_objects(mask.view(np.int8))
    return tuple(_grown(side) for side in boxes[0]) if boxes else (slice(1),) * mask.ndim


def _grown(side: slice) -> slice:
    return slice(max(int(side.start) - MERGE_VOXELS, 0), int(side.stop) + MERGE_VOXELS)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face outside it; beyond the array is outside."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1, 1:-1] & padded[2:, 1:-1, 1:-1]
    inside &= padded[1:-1, :-2, 1:-1] & padded[1:-1, 2:, 1:-1]
    inside &= padded[1:-1, 1:-1, :-2] & padded[1:-1, 1:-1, 2:]
    return mask & ~inside


def _points(
    surface: np.ndarray, spacing: Sequence[float], corner: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Voxels of a surface, (n, 3) in mm; the first voxel of its array lies at `corner`."""
    return (np.argwhere(surface) + corner) * np.asarray(spacing)


def _hd95(first: np.ndarray, second: np.ndarray) -> float:
    """Of two surfaces, points (n, 3) in mm."""
    if not (len(first) and len(second)):
        return HD95_PENALTY if len(first) or len(second) else 0.0
    return max(_directed_hd95(first, second), _directed_hd95(second, first))


def _directed_hd95(first: np.ndarray, second: np.ndarray) -> float:
    sample = first[:: 1 + len(first) // SURFACE_SAMPLE]
    distances, _ = cKDTree(second, balanced_tree=False, compact_nodes=False).query(sample)
    return float(np.quantile(distances, 0.95, method="inverted_cdf"))
