"""Programs of others that extract brains: found, called, and never believed blindly."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heads import make_brain, make_head, write_slices

from modeling_rasalore.brains.extractors import EXTRACTORS, extract_brain, require_extractor
from modeling_rasalore.scans.volumes import Volume, VolumeError, read_volume

BRAIN = make_brain(51, "t1") > 0
COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"


@pytest.fixture
def head(tmp_path: Path) -> Volume:
    return read_volume(write_slices(tmp_path / "p1_t1.nii.gz", make_head(51, "t1")))


def install(
    patch: pytest.MonkeyPatch, folder: Path, mask: np.ndarray = BRAIN, name: str = "synthstrip"
) -> None:
    """Let a program be installed that always gives this mask."""
    path = write_slices(folder / "its_result.nii.gz", mask.astype(np.uint8))
    run(patch, COPY, str(path), name)


def run(patch: pytest.MonkeyPatch, code: str, word: str = "", name: str = "synthstrip") -> None:
    """Let an installed program be this Python code, with a word and the path of the mask."""
    patch.setitem(
        EXTRACTORS,
        name,
        replace(
            EXTRACTORS[name],
            command="numpy",
            is_package=True,
            words=lambda scan, mask: [sys.executable, "-c", code, word, str(mask)],
        ),
    )


def test_the_mask_of_an_installed_program_is_taken_and_its_name_said(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path)
    brain, source = extract_brain(head, "synthstrip")
    assert np.array_equal(brain, BRAIN) and source == "the mask of synthstrip"


def test_an_unknown_program_and_one_that_is_not_installed_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"--strip must be deepbet, hd-bet, .* or none, got bet2"):
        require_extractor("bet2")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="program hd-bet, which is not installed: pip install hd"):
        require_extractor("hd-bet")
    require_extractor("none")


def test_a_program_that_fails_or_writes_nothing_is_named_with_its_last_line(
    head: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "import sys; sys.exit('first\\nout of memory.')")
    with pytest.raises(VolumeError, match="--strip synthstrip failed: out of memory; try another"):
        extract_brain(head, "synthstrip")
    run(monkeypatch, "")
    with pytest.raises(VolumeError, match="--strip synthstrip failed: it wrote no mask"):
        extract_brain(head, "synthstrip")


@pytest.mark.parametrize("mask", [np.zeros_like(BRAIN), np.ones_like(BRAIN)])
def test_a_mask_that_can_be_no_brains_is_refused(
    mask: np.ndarray, head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, mask)
    with pytest.raises(VolumeError, match="a brain has 900 to 2000 mL, but the mask of synthstrip"):
        extract_brain(head, "synthstrip")


def test_a_program_for_t1_strips_the_t1_beside_a_scan_of_the_same_person(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, name="deepbet")
    path = write_slices(tmp_path / "p1_flair.nii.gz", make_head(51, "flair"))
    flair = replace(read_volume(path), sequence="flair")
    brain, source = extract_brain(flair, "deepbet")
    assert np.array_equal(brain, BRAIN) and source == "the mask of deepbet for p1_t1.nii.gz"


def test_a_program_for_t1_refuses_a_scan_without_one_or_with_one_on_another_grid(
    head: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, name="deepbet")
    for name, said in (("p2_flair", "got 0; choose another"), ("p1_flair", "on another grid")):
        path = write_slices(tmp_path / f"{name}.nii.gz", make_head(51, "flair")[1:])
        with pytest.raises(VolumeError, match=f"--strip deepbet is made for t1.*{said}"):
            extract_brain(replace(read_volume(path), sequence="flair"), "deepbet")


def test_a_scan_that_does_not_tell_its_sequence_may_be_said_to_be_a_t1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, name="deepbet")
    scan = read_volume(write_slices(tmp_path / "scan.nii.gz", make_head(51, "t1")))
    with pytest.raises(VolumeError, match="got 0; say --modality t1 if this is one, choose"):
        extract_brain(scan, "deepbet")
    brain, source = extract_brain(replace(scan, sequence="t1"), "deepbet")
    assert np.array_equal(brain, BRAIN) and source == "the mask of deepbet"


def test_the_commands_name_the_mask_where_each_program_writes_it() -> None:
    scan, mask = Path("scan.nii.gz"), Path("brain_bet.nii.gz")
    words = {name: extractor.words(scan, mask) for name, extractor in EXTRACTORS.items()}
    assert words["hd-bet"][:5] == ["hd-bet", "-i", "scan.nii.gz", "-o", "brain.nii.gz"]
    assert words["synthstrip"] == ["mri_synthstrip", "-i", "scan.nii.gz", "-m", str(mask)]
    assert "--mask" in words["brainchop"] and words["deepbet"][-2:] == [str(scan), str(mask)]
