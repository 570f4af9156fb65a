"""What the benchmark asks of a system."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


class System(Protocol):
    """A system that scores slices.

    Attributes:
        weights: "trained", "stand-in", "none" or a repo id.
        seconds: wall time that training took, None where nothing is trained.
        peak_mib: peak memory of training, None where nothing is trained.
    """

    weights: str
    seconds: float | None
    peak_mib: float | None

    def score(self, slices: Sequence[Image]) -> list[Image]:
        """Continuous anomaly scores in [0, 1] of slices (H, W), in their own frame; 0 outside."""
        ...
