"""A tiny model and a tiny scan for commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from predict_command import save_tiny_model

from modeling_rasalore.scans.volume_writing import write_nifti


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights."""
    torch.manual_seed(0)
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan of six slices, in a folder of its own."""
    (tmp_path / "scans").mkdir()
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    return write_nifti(tmp_path / "scans" / "a.nii.gz", data, np.diag([-1.0, -1.0, 3.0, 1.0]))
