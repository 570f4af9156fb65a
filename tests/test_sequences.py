"""Sequences of one patient help each other: one labels another, all together are one network."""

import json
from collections.abc import Iterator
from pathlib import Path

import blobs  # noqa: F401 - puts train/ on the path
import numpy as np
import pytest

# isort: split
import stage2
from accelerate.state import AcceleratorState
from small_study import write_study

from modeling_rasalore.layouts import find_patients
from modeling_rasalore.sequence_grid import check_one_grid
from modeling_rasalore.slice_files import SliceChoice, read_rows
from modeling_rasalore.volumes import read_volume, write_nifti

FEW = ["loop.max_steps=2", "loop.evaluate_every=2", "loop.tensorboard=false"]


@pytest.fixture(autouse=True)
def _own_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with a FLAIR, twice as bright, beside each T2; its masks were made on T2."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=4)
    for path in sorted((folder / "scans").glob("*/*_t2.nii.gz")):
        add_sequence(path, "flair", 2.0)
    (folder / "masks" / "run.json").write_text(json.dumps({"modality": "t2"}))
    return folder


def add_sequence(like: Path, name: str, factor: float, shift: float = 0.0) -> Path:
    """Write a scan of the same voxels, `factor` as bright and moved by `shift` mm."""
    volume = read_volume(like)
    voxels = volume.slices.transpose(2, 1, 0)[::1] * np.float32(factor)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[0, 3] = shift
    path = like.with_name(like.name.replace("_t2", f"_{name}"))
    write_nifti(path, voxels, affine)
    return path


def words(study: Path, out: Path, *more: str) -> list[str]:
    start = [str(study / "training.yaml"), f"data.root={study / 'scans'}", f"out={out}"]
    return [*start, *FEW, *more]


def test_pseudo_masks_of_t2_supervise_flair(study: Path, tmp_path: Path) -> None:
    stage2.main(words(study, tmp_path, "data.modality=flair"))
    made = json.loads((tmp_path / "run.json").read_text())
    assert (made["modality"], made["pseudo_masks"]["modality"]) == ("flair", "t2")
    assert made["training_slices"] > 0


def test_sequences_on_different_grids_are_refused(study: Path, tmp_path: Path) -> None:
    patient = find_patients(study / "scans")[0]
    check_one_grid(patient, ("t2", "flair", "t1"))  # a sequence that is not there breaks nothing
    flair = patient.images["flair"]
    kept = flair.read_bytes()
    try:
        add_sequence(patient.images["t2"], "flair", 1.0, shift=5.0)
        with pytest.raises(ValueError, match=r"t2 and flair of .* have corners up to 5.0 mm apart"):
            check_one_grid(patient, ("t2", "flair"))
        with pytest.raises(ValueError, match="must lie on one grid"):
            read_rows(patient, SliceChoice(("t2", "flair")))
        write_nifti(flair, np.ones((32, 30, 14), np.float32), np.diag([-2.0, -2.0, 3.0, 1.0]))
        with pytest.raises(ValueError, match=r"have \(14, 32, 32\) and \(14, 30, 32\) voxels"):
            check_one_grid(patient, ("flair", "t2")[::-1])
        with pytest.raises(ValueError, match="must lie on one grid"):
            stage2.main(words(study, tmp_path, "data.modality=flair"))
        assert not (tmp_path / "run.json").exists()
    finally:
        flair.write_bytes(kept)
