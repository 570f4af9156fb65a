"""Tell a brain alone from a whole head and from what is no brain, by a few figures of its shape."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..scans.background import BrainSlices, skull_contrast

SAMPLE_MM = 2.0  # voxels are skipped as long as they lie at most so far apart
FAINT = 0.1  # of the 98th percentile; darker voxels at the outside are air
PROFILE_SLICES = 9  # of those of at least half the widest area, evenly spaced, tell the grain
RIM_MM = 8.0  # left out of the grain: the surface
TISSUE_MM, FIELD_MM = 3.0, 12.0  # blurs: against noise, and to follow uneven coils
# Smaller parts are slabs or animals, and small or odd phantoms: their shape says nothing.
JUDGED_ML = 300.0
# A whole head has more volume than a brain, and dark bone below its scalp. Of 305 extracted brains
# the largest has 1,680 mL; their least contrast is 0.79. Heads: from 2,160 mL on, at most 0.91.
SURE_SKULL, NO_SKULL = 0.4, 0.95
BRAIN_ML, HEAD_ML = 1300.0, 2000.0
TALLEST = 1.0  # of 305 brains the tallest has 0.77; a leg has 1.4 or more
LEAST_GRAIN = 0.04  # of 305 brains the most even one has 0.07; a filled bottle 0.02 or less


@dataclass(frozen=True)
class Anatomy:
    """What the filled outline of a scan measures.

    Attributes:
        millilitres: its volume.
        skull_contrast: how bright the darkest shell below the outline is, as in `skull_contrast`.
        tallness: height of the slices with at least half the widest area, in widths; the width is
            the root of that area.
        grain: how much the tissue inside varies, from its 10th to its 90th percentile, as a share
            of the local mean.
    """

    millilitres: float
    skull_contrast: float
    tallness: float
    grain: float

    @property
    def is_head(self) -> bool:
        """Whether bone and scalp lie around the brain: the larger, the fainter bone may be."""
        volumes, contrasts = (BRAIN_ML, HEAD_ML), (SURE_SKULL, NO_SKULL)
        return self.skull_contrast < float(np.interp(self.millilitres, volumes, contrasts))

    @property
    def problem(self) -> str | None:
        """What is wrong with the scan as one of a brain alone; None where nothing is."""
        if self.millilitres < JUDGED_ML:
            return None
        if self.is_head:
            return (
                f"it shows {self.millilitres:.0f} mL with a dark shell below the surface "
                f"({self.skull_contrast:.2f} of the brightness beside it), as a head with skull has"
            )
        if self.tallness > TALLEST:
            return (
                f"what it shows is {self.tallness:.1f} times as tall as wide, as a limb, a neck or "
                "a test object is and no brain"
            )
        if self.grain < LEAST_GRAIN:
            return (
                f"what it shows varies by {self.grain:.0%} inside, as a test object does and no "
                "brain"
            )
        return None


def sample_scan(
    slices: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[BrainSlices, tuple[float, float, float]]:
    """Return some of a scan's voxels, at most 2 mm apart where its own are, and their spacing.

    Args:
        slices: (S, H, W).
        spacing: mm between slices, rows and columns.
    """
    steps = [max(int(SAMPLE_MM // size), 1) for size in spacing]
    sampled = slices[:: steps[0], :: steps[1], :: steps[2]]
    depth, height, width = (size * step for size, step in zip(spacing, steps, strict=True))
    return BrainSlices(np.ascontiguousarray(sampled)), (depth, height, width)


def measure_anatomy(slices: np.ndarray, spacing: tuple[float, float, float]) -> Anatomy | None:
    """Return the figures of a scan (S, H, W); None where it is blank.

    Args:
        spacing: mm between slices, rows and columns.
    """
    images, spacing = sample_scan(slices, spacing)
    if not images.brain_voxels:
        return None
    whole = images.whole()
    faint = FAINT * float(np.percentile(whole[whole > 0], 98))
    outline = np.stack([ndimage.binary_fill_holes(image > faint) for image in whole])
    areas = outline.sum((1, 2)) * spacing[1] * spacing[2]  # mm2
    wide = np.flatnonzero(areas >= areas.max() / 2)
    chosen = wide[:: max(len(wide) // PROFILE_SLICES, 1)]
    grains = [_measure_grain(whole[i], outline[i], spacing[1:]) for i in chosen]
    return Anatomy(
        millilitres=float(areas.sum()) * spacing[0] / 1000,
        skull_contrast=float(skull_contrast(images, spacing)),
        tallness=len(wide) * spacing[0] / float(np.sqrt(areas.max())),
        grain=float(np.median(grains)),
    )


def _measure_grain(image: np.ndarray, outline: np.ndarray, size: tuple[float, float]) -> float:
    """Return how much a slice (H, W) varies inside its outline, uneven brightness apart."""
    depth = ndimage.distance_transform_edt(np.pad(outline, 1), size)[1:-1, 1:-1]
    inner = depth > RIM_MM
    if not inner.any():
        return 1.0  # too small to tell
    weight = outline.astype(np.float32)

    def blur(distance: float) -> np.ndarray:
        sigmas = [distance / side for side in size]
        blurred = ndimage.gaussian_filter(image * weight, sigmas)
        return np.asarray(blurred / np.maximum(ndimage.gaussian_filter(weight, sigmas), 1e-3))

    tissue = blur(TISSUE_MM)[inner] / np.maximum(blur(FIELD_MM)[inner], 1e-6)
    low, high = np.percentile(tissue, (10, 90))
    return float(high - low)
