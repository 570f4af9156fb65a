"""Toy slices for the benchmark's systems: a bright blob on a round, textured brain."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))  # scripts' package, not installed

SHAPE = (30, 34)  # not square, so that a mixed-up frame shows


def make_blobs(
    count: int, seed: int = 0, sequences: int = 1
) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """Slices (H, W), or (sequences, H, W), every second one with a blob; labels; blob masks."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(SHAPE)
    brain = (rows - 15) ** 2 + (columns - 17) ** 2 < 13**2
    slices, labels, masks = [], [], []
    for index in range(count):
        label = index % 2
        row, column = generator.integers(9, 21, 2)
        mask = ((rows - row) ** 2 + (columns - column) ** 2 < 16) & brain & bool(label)
        planes = 0.5 + 0.05 * generator.standard_normal((sequences, *SHAPE))
        planes = np.where(brain, np.where(mask, 1.1, planes), 0).astype(np.float32)
        slices.append(planes[0] if sequences == 1 else planes)
        labels.append(label)
        masks.append(mask)
    return slices, labels, masks
