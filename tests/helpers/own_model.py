"""A small model in the place of the weights that come with the package."""

from pathlib import Path

import pytest
from small_rasalore import make_model

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.files import sha256_of
from modeling_rasalore.packaged import DIGEST_FILE
from modeling_rasalore.recipes import preset_folder


def save_own_model(folder: Path, **fields: object) -> Path:
    """Return `folder`, holding a small model with random weights and their hash."""
    make_model(**fields).save_pretrained(folder)
    RasaloreImageProcessor(size=16).save_pretrained(folder)
    return write_digest(folder)


def save_tiny_preset(folder: Path) -> Path:
    """Return `folder`, holding the tiny preset with random weights, as a model of T2."""
    preset = preset_folder("rasalore-tiny")
    RasaloreModel(RasaloreConfig.from_pretrained(preset, modality="t2")).save_pretrained(folder)
    RasaloreImageProcessor.from_pretrained(preset).save_pretrained(folder)
    return write_digest(folder)


def write_digest(folder: Path) -> Path:
    """Return `folder` with the hash of its weights beside them."""
    digest = sha256_of(folder / "model.safetensors")
    (folder / DIGEST_FILE).write_text(f"{digest}  model.safetensors\n")
    return folder


def use_own_model(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Return `folder`, named after its sequence, after making it the model of the package."""
    patch.setattr("modeling_rasalore.packaged.WEIGHTS", folder.parent)
    return folder
