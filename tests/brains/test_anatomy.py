"""Brains, whole heads and what is neither, told apart by their shape."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from heads import SPACING, make_bottle, make_brain, make_head

from modeling_rasalore.brains.anatomy import Anatomy, measure_anatomy
from modeling_rasalore.scans.naming import MODALITIES, role_by_words
from modeling_rasalore.scans.volumes import read_volume


def problem_of(slices: np.ndarray) -> str:
    anatomy = measure_anatomy(slices, SPACING)
    return "" if anatomy is None or anatomy.problem is None else anatomy.problem


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("sequence", ["t1", "t2", "flair"])
@pytest.mark.parametrize("seed", [21, 22])
def test_a_head_is_recognised_with_noise_in_the_air_and_without(
    seed: int, sequence: str, noise: float
) -> None:
    assert "as a head with skull has" in problem_of(make_head(seed, sequence, noise))


@pytest.mark.parametrize("sequence", MODALITIES)
def test_a_brain_alone_has_no_problem(sequence: str) -> None:
    assert problem_of(make_brain(21, sequence)) == ""


def test_fifty_real_brains_are_neither_heads_nor_objects(brats2021: Path) -> None:
    data = brats2021.parent
    folders = (data / name for name in ("brats2021", "mslub", "tcga_lgg"))
    scans = [path for folder in folders for path in sorted(folder.rglob("*.nii.gz"))]
    brains = list(islice((path for path in scans if role_by_words(path) in MODALITIES), 50))
    assert len(brains) == 50
    for path in brains:
        volume = read_volume(path)
        anatomy = measure_anatomy(volume.slices, volume.spacing)
        assert anatomy is not None and anatomy.problem is None, path


def test_a_tall_object_is_a_limb_and_an_even_one_a_test_object() -> None:
    assert "times as tall as wide" in problem_of(make_bottle(180, 45))
    assert "inside, as a test object does" in problem_of(make_bottle(120, 80))


def test_volume_and_tallness_are_those_of_a_cylinder() -> None:
    anatomy = measure_anatomy(make_bottle(180, 45), SPACING)
    assert anatomy is not None
    assert anatomy.millilitres == pytest.approx(np.pi * 4.5**2 * 18, rel=0.02)
    assert anatomy.tallness == pytest.approx(180 / (45 * np.sqrt(np.pi)), rel=0.02)


def test_what_a_scan_is_does_not_depend_on_its_units() -> None:
    head = make_head(21, "flair")
    assert measure_anatomy(head, SPACING) == measure_anatomy(head * 4, SPACING)


def test_the_shape_of_small_things_says_nothing_and_a_blank_scan_has_none() -> None:
    assert problem_of(make_bottle(30, 30)) == ""  # 85 mL
    assert measure_anatomy(np.zeros((20, 30, 30), np.float32), SPACING) is None


@pytest.mark.parametrize(
    ("millilitres", "contrast", "is_head"),
    [(1300, 0.39, True), (1300, 0.41, False), (1650, 0.66, True), (1650, 0.70, False)],
)
def test_the_larger_the_outline_the_fainter_bone_may_be(
    millilitres: float, contrast: float, is_head: bool
) -> None:
    assert Anatomy(millilitres, contrast, 0.6, 0.2).is_head is is_head
