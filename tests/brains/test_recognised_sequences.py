"""The sequence of a brain by how it looks, or that it cannot be told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heads import SPACING, make_brain, write_slices

from modeling_rasalore.brains.reading import tell_sequence
from modeling_rasalore.brains.sequences import (
    KINDS,
    SHELLS_MM,
    Table,
    load_table,
    measure_profile,
    recognise_sequence,
    weigh_profile,
)
from modeling_rasalore.scans.naming import MODALITIES, role_by_words
from modeling_rasalore.scans.volumes import Volume, read_volume


def brain_of(folder: Path, sequence: str, seed: int = 31) -> Volume:
    return read_volume(write_slices(folder / "scan.nii.gz", make_brain(seed, sequence)))


def nested_balls() -> np.ndarray:
    """A ball of 60 mm radius: 100 in its outer 20 mm, 200 inside of that."""
    axis = (np.arange(70) - 34.5) * 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    return np.where(radius < 60, np.where(radius < 40, 200, 100), 0).astype(np.float32)


@pytest.mark.parametrize("sequence", ["t1", "t1ce", "t2", "flair"])
def test_synthetic_brains_that_nothing_was_learned_from_are_recognised(
    sequence: str, tmp_path: Path
) -> None:
    said = [recognise_sequence(brain_of(tmp_path, sequence, seed)) for seed in (31, 32, 34)]
    told = [statement for statement in said if statement is not None]
    assert len(told) >= 2 and all(sequence in statement.fits for statement in told)


def test_two_thirds_of_real_brains_are_told_and_nine_in_ten_of_them_rightly(
    brats2021: Path,
) -> None:
    scans = [path for path in brats2021.rglob("*.nii.gz") if role_by_words(path) in MODALITIES]
    said = {path: recognise_sequence(read_volume(path)) for path in scans}
    told = [role_by_words(path) in x.fits for path, x in said.items() if x is not None]
    assert len(scans) == 32 and len(told) >= 21
    assert sum(told) >= 0.9 * len(told)


def test_a_profile_is_the_brightness_at_each_depth() -> None:
    profile = measure_profile(nested_balls(), SPACING)
    assert profile is not None  # median and 10th percentile 100, 90th 200
    shallow = np.array(SHELLS_MM) < 18
    assert (profile[shallow] == 0).all() and (profile[np.array(SHELLS_MM) >= 22] == 1).all()


def test_a_profile_does_not_depend_on_the_scanners_units() -> None:
    slices = make_brain(31, "t2")
    expected, scaled = (measure_profile(x, SPACING) for x in (slices, slices * 7))
    assert expected is not None and scaled == pytest.approx(expected, abs=1e-4)


def test_small_and_even_scans_tell_nothing() -> None:
    assert measure_profile(nested_balls()[:, 25:45, 25:45], SPACING) is None
    assert measure_profile((nested_balls() > 0).astype(np.float32), SPACING) is None


def test_the_largest_logit_has_the_largest_probability() -> None:
    table = Table(np.zeros((3, len(SHELLS_MM))), np.log([1.0, 2.0, 5.0]))
    probabilities = weigh_profile(np.ones(len(SHELLS_MM)), table)
    assert probabilities == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_the_packaged_table_has_a_weight_for_every_shell_and_kind() -> None:
    table = load_table()
    assert table.weights.shape == (len(KINDS), len(SHELLS_MM)) and table.offsets.shape == (3,)


def test_the_image_tells_where_nothing_else_does_and_that_is_said(tmp_path: Path) -> None:
    told = tell_sequence(brain_of(tmp_path, "t2"))
    assert (told.sequence, told.sequence_source) == ("t2", "its image looks like a t2")
    assert told.warnings == ()
    (warning,) = tell_sequence(brain_of(tmp_path, "t2"), "t2").warnings
    assert warning.startswith("its image looks like a t2, wrong for 1 in 10, and nothing else")


def test_an_image_that_contradicts_the_name_is_warned_about_and_overrules_nothing(
    tmp_path: Path,
) -> None:
    named = replace(brain_of(tmp_path, "t2"), sequence="t1", sequence_source="its name says t1")
    told = tell_sequence(named)
    assert told.sequence == "t1"
    assert told.warnings == (
        "its image looks like a t2, but its name says t1; check which of them is right.",
    )


def test_t1_with_and_without_contrast_agent_stay_untold_but_fit_their_models(
    tmp_path: Path,
) -> None:
    brain = brain_of(tmp_path, "t1ce")
    told = tell_sequence(brain, "t1ce")
    assert told.sequence is None and "contrast agent" in told.sequence_source
    assert told.warnings == ()
    (warning,) = tell_sequence(brain, "flair").warnings
    assert warning.startswith("the model was trained on flair, but its image looks like a t1")


def test_a_sequence_that_cannot_be_told_is_said_with_what_is_assumed(tmp_path: Path) -> None:
    small = np.ascontiguousarray(nested_balls()[:, 25:45, 25:45])
    scan = read_volume(write_slices(tmp_path / "scan.nii.gz", small))
    (warning,) = tell_sequence(scan, "flair").warnings
    assert warning.startswith("neither name nor header nor image tells the scan's sequence")
    assert "what the model was trained on, flair, is assumed" in warning
    assert tell_sequence(scan).warnings == () and tell_sequence(scan).sequence is None
