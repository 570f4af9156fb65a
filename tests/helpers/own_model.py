"""A small model in the place of the weights that come with the package."""

from pathlib import Path

import pytest
from small_rasalore import make_model

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.files import sha256_of
from modeling_rasalore.packaged import DIGEST_FILE


def save_own_model(folder: Path, **fields: object) -> Path:
    """Return `folder`, holding a small model with random weights and their hash."""
    make_model(**fields).save_pretrained(folder)
    RasaloreImageProcessor(size=16).save_pretrained(folder)
    digest = sha256_of(folder / "model.safetensors")
    (folder / DIGEST_FILE).write_text(f"{digest}  model.safetensors\n")
    return folder


def use_own_model(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Return `folder` after making it the model of the package."""
    patch.setattr("modeling_rasalore.packaged.WEIGHTS", folder)
    return folder
