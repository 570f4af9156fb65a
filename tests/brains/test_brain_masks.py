"""Masks of brains beside their scans, and what they leave of a head."""

from pathlib import Path

import numpy as np
import pytest
from heads import make_brain, make_head, write_slices

from modeling_rasalore.brains.masks import find_brain_mask, keep_brain, read_brain_mask
from modeling_rasalore.scans.volumes import VolumeError, read_volume


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("p1_t2.nii.gz", "p1_brainmask.nii.gz"),
        ("p1_t2.nii.gz", "p1_brain_mask.nii.gz"),
        ("p1_t2.nii.gz", "p1_t2_brain_mask.nii"),
        ("sub-01_T2w.nii.gz", "sub-01_desc-brain_mask.nii.gz"),
        ("t2.nii.gz", "brainmask.mha"),
    ],
)
def test_a_mask_beside_its_scan_is_known_by_its_name(scan: str, mask: str, tmp_path: Path) -> None:
    for name in (scan, mask):
        (tmp_path / name).touch()
    assert find_brain_mask(tmp_path / scan) == tmp_path / mask


@pytest.mark.parametrize(
    "other",
    [
        "p2_brainmask.nii.gz",  # of another person
        "p1_flair_brainmask.nii.gz",  # of another sequence
        "p1_lesion_mask.nii.gz",
        "p1_t2_brain.nii.gz",
        "p1_brainmask.txt",
    ],
)
def test_no_other_file_is_taken_for_the_mask_of_a_brain(other: str, tmp_path: Path) -> None:
    (tmp_path / other).touch()
    assert find_brain_mask(tmp_path / "p1_t2.nii.gz") is None


def test_of_two_masks_the_sequences_own_counts_and_of_two_such_none(tmp_path: Path) -> None:
    for name in ("p1_brainmask.nii.gz", "p1_t2_brainmask.nii.gz"):
        (tmp_path / name).touch()
    assert find_brain_mask(tmp_path / "p1_t2.nii.gz") == tmp_path / "p1_t2_brainmask.nii.gz"
    (tmp_path / "p1_t2_brain_mask.nii").touch()
    with pytest.raises(VolumeError, match="needs one brain mask beside it, got p1_t2_brain"):
        find_brain_mask(tmp_path / "p1_t2.nii.gz")


def test_only_the_brain_of_a_head_is_left_with_its_brightness(tmp_path: Path) -> None:
    brain, head = make_brain(41, "t2"), make_head(41, "t2")
    scan = read_volume(write_slices(tmp_path / "head.nii.gz", head))
    left = keep_brain(scan, brain > 0, "the mask m.nii.gz")
    assert np.array_equal(left.slices > 0, brain > 0)
    assert left.slices == pytest.approx(brain, rel=1e-3)
    assert left.brain_source == "the mask m.nii.gz" and np.array_equal(scan.slices, head)


def test_a_mask_of_a_part_of_the_brain_is_refused(tmp_path: Path) -> None:
    scan = read_volume(write_slices(tmp_path / "head.nii.gz", make_head(41, "t2")))
    mask = np.zeros(scan.slices.shape, np.uint8)
    mask[40:60, 40:60, 40:60] = 1
    path = write_slices(tmp_path / "lesion.nii.gz", mask)
    with pytest.raises(VolumeError, match="at least 20% of what its scan shows, got 64 of"):
        read_brain_mask(path, scan)
