"""Presets are found by name, in a clone and in a wheel, whatever folder one works in."""

import tomllib
from pathlib import Path

import pytest

from modeling_rasalore.recipes import model_folder, preset_folder

ROOT = Path(__file__).parents[1]


def test_a_preset_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = preset_folder("rasalore-tiny")
    assert (folder / "config.json").is_file() and (folder / "training.yaml").is_file()
    assert model_folder("hub_configs/rasalore-tiny") == str(folder)
    with pytest.raises(ValueError, match=r"presets are ddpt, .*, rasalore-tiny, got 'huge'"):
        model_folder("hub_configs/huge")


def test_a_folder_or_repo_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert model_folder("hub_configs/rasalore-tiny") == "hub_configs/rasalore-tiny"
    for model in ("me/rasalore", str(tmp_path), "rasalore-tiny"):
        assert model_folder(model) == model


def test_the_wheel_holds_every_floor_and_the_presets() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    floors = {path.parent.name for path in (ROOT / "modeling_rasalore").glob("*/__init__.py")}
    named = {"modeling_rasalore", *(f"modeling_rasalore.{name}" for name in floors)}
    assert set(told["packages"]) == named | {
        "modeling_rasalore.hub_configs",
    }
    assert told["package-dir"]["modeling_rasalore.hub_configs"] == "hub_configs"
