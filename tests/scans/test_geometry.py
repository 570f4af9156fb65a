"""A prediction lies in the same place in space, however the scan's voxels are ordered.

The test runs 200 cases; `GEOMETRY_CASES=2000 pytest tests/scans/test_geometry.py` runs more.
"""

import os
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volume_writing import GEOMETRY_FIELDS, write_volume
from modeling_rasalore.scans.volumes import read_volume

ORIENTATIONS = [
    np.column_stack([order, flips])
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3))
]
DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)


class BrightIsAbnormal(nn.Module):
    """A logit per pixel that grows with its brightness; rows and columns are never mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(8.0))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weight * (pixel_values - 0.5))


MODEL = BrightIsAbnormal()
PROCESSOR = RasaloreImageProcessor(size=8, gamma=1.0, crop_to_brain=False)


@st.composite
def scans(draw: st.DrawFn) -> nib.Nifti1Image:
    """An LPS-like scan: random voxels and sizes, turned by up to 25 degrees, sheared a little."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = draw(st.tuples(*[st.integers(2, 8)] * 3))
    data = rng.integers(0, 200, shape).astype(draw(st.sampled_from(DTYPES)))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    if draw(st.booleans()):
        for first, second in ((0, 1), (0, 2), (1, 2)):
            angle, turn = np.deg2rad(rng.uniform(-25, 25)), np.eye(4)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            affine = turn @ affine
    if draw(st.booleans()):
        affine[:3, :3] = affine[:3, :3] @ (np.eye(3) + np.triu(rng.uniform(-0.1, 0.1, (3, 3)), 1))
    affine[:3, :3] *= rng.uniform(4, 9, 3)  # mm: eight voxels are as large as a brain may be
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    image = kind(data, affine)
    image.set_sform(affine, draw(st.integers(1, 4)))
    if draw(st.booleans()):
        image.set_qform(affine, draw(st.integers(0, 4)))
    image.header.set_xyzt_units("mm")
    return image


def predict(image: nib.Nifti1Image, folder: Path) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return the mask and the score map that are written for a scan."""
    nib.save(image, folder / "scan.nii")
    volume = read_volume(folder / "scan.nii")
    prediction = predict_volume(MODEL, PROCESSOR, volume)
    mask = write_volume(folder / "mask.nii", prediction.mask, volume, np.uint8)
    scores = write_volume(folder / "scores.nii", prediction.scores, volume, np.float32)
    return nib.load(mask, mmap=False), nib.load(scores, mmap=False)


@settings(max_examples=int(os.environ.get("GEOMETRY_CASES", "200")))
@given(image=scans(), orientation=st.sampled_from(ORIENTATIONS))
def test_predicting_a_reoriented_scan_and_reorienting_back_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, image: nib.Nifti1Image, orientation: np.ndarray
) -> None:
    folder = tmp_path_factory.getbasetemp()
    back = nib.orientations.ornt_transform(np.column_stack([range(3), [1] * 3]), orientation)
    moved = image.as_reoriented(orientation)
    expected = [np.asarray(result.dataobj) for result in predict(image, folder)]
    assert expected[1].any()
    results = predict(moved, folder)
    for result, wanted in zip(results, expected, strict=True):
        own = nib.load(folder / "scan.nii")
        assert np.array_equal(result.affine, own.affine)
        for field in GEOMETRY_FIELDS:
            assert np.array_equal(result.header[field], own.header[field]), field
        assert np.array_equal(np.asarray(result.as_reoriented(back).dataobj), wanted)


def test_all_48_orientations_are_drawn_from() -> None:
    assert len({orientation.tobytes() for orientation in ORIENTATIONS}) == 48
