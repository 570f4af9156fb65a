"""Find the mask of a brain beside its scan, and take everything else out of the scan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..scans.background import find_scale
from ..scans.header_guard import VolumeError
from ..scans.naming import MODALITIES, ending_of, own_words, role_by_words, scan_stem, sequence_of
from ..scans.volumes import Volume, read_mask
from .anatomy import measure_anatomy

LEAST_SHARE = 0.2  # of what a head shows is its brain; of 72 heads the least is 0.35
MASK_FLAG = "--brain-mask"


def find_brain_mask(scan: Path) -> Path | None:
    """Return the file beside a scan that its name calls the mask of its brain, or None.

    Such as p1_brainmask, p1_brain_mask and p1_t2_brain_mask beside p1_t2, and BIDS's
    sub-01_desc-brain_mask beside sub-01_T2w. A mask of another sequence is not taken.

    Raises:
        VolumeError: several of them.
    """
    folder, sequence, whose = scan.absolute().parent, sequence_of(scan_stem(scan)), own_words(scan)
    masks = [
        path
        for path in sorted(folder.iterdir())
        if ending_of(path)
        and role_by_words(path) == "brain_mask"
        and own_words(path) == whose
        and _sequence_of_mask(path) in (None, sequence)
    ]
    own = [path for path in masks if _sequence_of_mask(path)] or masks
    if len(own) > 1:
        names = ", ".join(path.name for path in own)
        raise VolumeError(
            f"{scan}: a scan needs one brain mask beside it, got {names}; choose with {MASK_FLAG}."
        )
    return own[0] if own else None


def _sequence_of_mask(path: Path) -> str | None:
    told = sequence_of(scan_stem(path))
    return told if told in MODALITIES else None


def read_brain_mask(path: Path, volume: Volume) -> NDArray[np.bool_]:
    """Return where the file at `path` shows a scan's brain, (S, H, W) bool.

    Raises:
        VolumeError: as `read_mask`, or a mask of too little to be the brain's.
    """
    mask = read_mask(path, volume) > 0
    anatomy = measure_anatomy(volume.slices, volume.spacing)
    millilitres = np.count_nonzero(mask) * volume.geometry.voxel_mm3 / 1000
    if anatomy is None or millilitres < LEAST_SHARE * anatomy.millilitres:
        whole = anatomy.millilitres if anatomy else 0
        raise VolumeError(
            f"{path}: a brain mask must hold at least {LEAST_SHARE:.0%} of what its scan shows, "
            f"got {millilitres:.0f} of {whole:.0f} mL; give the mask of the whole brain."
        )
    return mask


def keep_brain(volume: Volume, brain: NDArray[np.bool_], source: str) -> Volume:
    """Return a scan with background 0 outside its brain and values above 0 inside.

    Args:
        brain: (S, H, W), where the brain is.
        source: what told that, for people.
    """
    scale = find_scale(volume.slices, brain)
    inside = np.maximum(volume.slices - scale.zero, scale.least)
    slices = np.where(brain, inside, 0).astype(np.float32)
    return replace(volume, slices=slices, brain_source=source)
