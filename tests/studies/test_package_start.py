"""The package's own weights as a start: taken as they are, for the sequence that they know."""

import json
from pathlib import Path

import pytest
import torch
from own_model import save_own_model, use_own_model

from modeling_rasalore import RasaloreModel
from modeling_rasalore.data.splits import refuse_other_split
from modeling_rasalore.studies import recipe
from modeling_rasalore.studies.package_start import take_package_weights
from modeling_rasalore.studies.recipe import StudyRecipe


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_own_model(save_own_model(tmp_path / "weights", modality="t2"), monkeypatch)


def test_the_weights_become_a_run_that_knows_nobody(package: Path, tmp_path: Path) -> None:
    out = take_package_weights("t2", tmp_path / "start")
    ours, theirs = (RasaloreModel.from_pretrained(folder) for folder in (out, package))
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert json.loads((out / "run.json").read_text())["modality"] == "t2"
    refuse_other_split(out, {"train": [], "validation": [], "test": []})
    written = (out / "model.safetensors").stat().st_mtime_ns
    take_package_weights("t2", out)
    assert (out / "model.safetensors").stat().st_mtime_ns == written


def test_another_sequence_than_theirs_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"own weights know t2, and data.modality is flair"):
        take_package_weights("flair", tmp_path / "start")


def test_auto_takes_them_for_rasalore_base_once_that_is_switched_on(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert StudyRecipe(preset="rasalore-base").begins == "scans"
    monkeypatch.setattr(recipe, "AUTO_TAKES_PACKAGE", True)
    assert StudyRecipe(preset="rasalore-base").begins == "package"
    assert StudyRecipe(preset="rasalore-tiny").begins == "phantoms"
    use_own_model(package / "nothing", monkeypatch)
    assert StudyRecipe(preset="rasalore-base").begins == "scans"
