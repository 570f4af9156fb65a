"""Synthetic patients small enough to be made in an instant, each made once."""

from functools import cache

from modeling_rasalore.data.phantoms import Phantom, make_phantom

SHAPE, VOXEL = (48, 56, 48), 4.0  # a whole head in 0.1 s
SEEDS = range(16)


@cache
def phantom(seed: int, tumour: bool = True) -> Phantom:
    """The patient of a seed, with a tumour or without."""
    return make_phantom(seed, SHAPE, VOXEL, tumour=tumour)
