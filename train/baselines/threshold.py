"""Intensity threshold, and chance: what any trained system has to beat.

Native. Histogram equalisation inside the brain, then a 3x3 median: bright tissue is anomalous. With
the right threshold this reaches a Dice of 0.6 to 0.7 on FLAIR (02-evaluation of the protocol).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from modeling_rasalore.scans.background import brain_of

from .interface import GivenSystem, Image


class IntensityThreshold(GivenSystem):
    """Rank of each pixel among the slice's brain pixels, (0, 1], median-filtered."""

    def score(self, slices: Sequence[Image]) -> list[Image]:
        return [equalise(image) for image in slices]


class Chance(GivenSystem):
    """Uniform noise inside the brain: the floor of every score."""

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)

    def score(self, slices: Sequence[Image]) -> list[Image]:
        return [
            np.where(brain_of(image), self.generator.random(image.shape, np.float32), 0).astype(
                np.float32
            )
            for image in slices
        ]


def equalise(image: Image) -> Image:
    """Slice (H, W) with each brain pixel replaced by its rank in (0, 1], then a 3x3 median."""
    brain = brain_of(image)
    equalised = np.zeros(image.shape, np.float32)
    ranks = np.searchsorted(np.sort(image[brain]), image[brain], side="right")
    equalised[brain] = ranks / max(int(brain.sum()), 1)
    return np.where(brain, ndimage.median_filter(equalised, 3), 0).astype(np.float32)
