"""Say what is brain and what is background, and which box holds it.

In slices with background 0, whatever is above 0 is brain. `BrainSlices` makes them so when asked
for, so that a large scan is not held twice.
"""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage


def brain_of(image: np.ndarray) -> np.ndarray:
    """Return where any sequence of a slice (H, W) or (C, H, W) shows brain, (H, W) bool."""
    brain: np.ndarray = image > 0
    return brain if brain.ndim == 2 else np.asarray(brain.any(0))


def index_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the smallest box that holds all of a mask, one slice per axis; None when it is empty.

    Args:
        mask: bool, or whole numbers 0 and 1, with any number of axes.
    """
    boxes: list[tuple[slice, ...] | None] = ndimage.find_objects(mask, max_label=1)
    return boxes[0]


class BrainSlices:
    """The slices of a scan (S, H, W) with background 0 and a brain that starts at 0.

    With `brain` (S, H, W) bool, the least value inside it becomes 0 and all outside is 0. Without,
    only scans with values below 0 change: the corner voxel's value is the background then, and
    all else is brain. So z-scored scans and scans with interpolation overshoot are usable.
    """

    def __init__(self, slices: np.ndarray, brain: np.ndarray | None = None) -> None:
        self.slices, self.brain = slices, brain
        self.unchanged = brain is None and bool(slices.min() >= 0)
        if not self.unchanged:
            self.lowest = min(
                np.min(image, where=self._inside(index), initial=np.inf)
                for index, image in enumerate(slices)
            )

    def _inside(self, index: int) -> np.ndarray:
        if self.brain is not None:
            return self.brain[index]
        return self.slices[index] != self.slices[0, 0, 0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(S, H, W)."""
        return self.slices.shape

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.slices[index]
        if self.unchanged:
            return image
        return np.subtract(image, self.lowest, out=np.zeros_like(image), where=self._inside(index))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def foreground(self) -> np.ndarray:
        """Return where the slices show brain, (S, H, W) bool."""
        return np.stack([brain_of(image) for image in self])

    def whole(self) -> np.ndarray:
        """Return all of them as one array, which is the scan's own where nothing changes."""
        if self.unchanged:
            return self.slices
        result = np.empty_like(self.slices)
        for target, image in zip(result, self, strict=True):
            target[...] = image
        return result


def zero_background(slices: np.ndarray, brain: np.ndarray | None = None) -> np.ndarray:
    """Return slices (S, H, W) float32 with background 0, as `BrainSlices` makes them."""
    return BrainSlices(slices, brain).whole()
