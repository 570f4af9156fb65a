"""Scans whose numbers are odd: the same mask as of the clean scan, or one sentence and exit code 1.

Through the command line and Python; the Space's tests have the same cases.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_intensities import (
    scans_with_the_same_mask,
    scans_without_a_brain,
    smooth_brain,
    with_head,
    with_ringing,
    with_spikes,
    write_slices,
)
from PIL import Image
from space import save_model
from torch import nn

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.brains.reading import read_brain
from modeling_rasalore.cli import main
from modeling_rasalore.prediction.calibration import calibrate
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.outputs import find_warnings
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import Volume, read_mask, read_volume

CLEAN = smooth_brain()
DARK = CLEAN.copy()
DARK[3, 12, 12] = -600
SAME_MASK = scans_with_the_same_mask()
NO_BRAIN = scans_without_a_brain()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def mask_of(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[np.ndarray], np.ndarray]:
    """What predict_volume says about slices, written and read."""
    loaded, path = load_model(str(model), "main", "cpu"), tmp_path_factory.mktemp("scan")

    def predict(slices: np.ndarray) -> np.ndarray:
        scan = read_volume(write_slices(path / "scan.nii.gz", slices))
        return predict_volume(*loaded, scan).mask

    return predict


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(mask & other) / (np.count_nonzero(mask) + np.count_nonzero(other))


def run(scan: Path, model: Path, out: Path) -> int:
    return main(
        [
            "predict",
            str(scan),
            "--model",
            str(model),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--precision",
            "float32",
        ]
    )


def test_backgrounds_and_scales_leave_the_mask_as_it_is(
    mask_of: Callable[[np.ndarray], np.ndarray], model: Path, tmp_path: Path
) -> None:
    expected = mask_of(CLEAN)
    assert 100 < np.count_nonzero(expected) < np.count_nonzero(CLEAN) - 100
    for name, slices in SAME_MASK.items():
        assert np.array_equal(mask_of(slices), expected), name
        write_slices(tmp_path / "scans" / f"{name}_flair.nii.gz", slices)
    assert run(tmp_path / "scans", model, tmp_path / "out") == 0
    for name in SAME_MASK:
        scan = read_volume(tmp_path / "scans" / f"{name}_flair.nii.gz")
        mask = read_mask(tmp_path / "out" / f"{name}_flair_mask.nii.gz", scan)
        assert np.array_equal(mask, expected), name


class BrightIsAbnormal(nn.Module):
    """Logit 5 above 0.5003 of a slice's maximum, else -5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weight * ((pixel_values > 0.5003).float() - 0.5))


@pytest.fixture(scope="module")
def square_scan(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The clean scan in slices of 24 x 24, which a processor of that size leaves as they are."""
    path = tmp_path_factory.mktemp("square") / "scan.nii.gz"
    return read_volume(write_slices(path, CLEAN[:, 2:26]))


@given(exponent=st.floats(-12, 12), share=st.floats(-1000, 1000))
def test_a_x_plus_b_changes_no_mask(square_scan: Volume, exponent: float, share: float) -> None:
    # b reaches 1000 times the scan's range, of which float32 then holds 1 / 16,000: less than what
    # lies between the model's limit and any voxel.
    model = BrightIsAbnormal()
    processor = RasaloreImageProcessor(24, gamma=1.0, crop_to_brain=False)
    clean = square_scan.slices.astype(np.float64)
    shares = clean[1:-1] / clean[1:-1].max((1, 2), keepdims=True)
    assert np.abs(shares - 0.5003).min() > 1 / 8_000
    scale = 10**exponent
    moved = (scale * clean + share * scale * clean.max()).astype(np.float32)
    mask = predict_volume(model, processor, replace(square_scan, slices=moved)).mask
    assert np.array_equal(mask[1:-1], shares > 0.5003) and not mask[[0, -1]].any()


@pytest.mark.parametrize("factor", [1.5, 2, 4, 20])
def test_single_bright_voxels_move_no_more_than_a_hundredth_of_the_mask(
    mask_of: Callable[[np.ndarray], np.ndarray], factor: float
) -> None:
    assert dice(mask_of(with_spikes(CLEAN, factor)), mask_of(CLEAN)) > 0.99


def test_one_dark_voxel_moves_itself_alone(mask_of: Callable[[np.ndarray], np.ndarray]) -> None:
    assert dice(mask_of(DARK), mask_of(CLEAN)) > 0.99


def test_ringing_below_0_is_as_if_it_were_clipped(
    mask_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    ringing = with_ringing(CLEAN)
    assert ringing.min() < -50
    assert np.array_equal(mask_of(ringing), mask_of(ringing.clip(min=0)))


def test_what_was_put_right_stands_in_overlay_json_table_and_report(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scans = {"spikes_flair": with_spikes(CLEAN, 4), "dark_flair": DARK, "clean_flair": CLEAN}
    for name, slices in scans.items():
        write_slices(tmp_path / "scans" / f"{name}.nii.gz", slices)
    assert run(tmp_path / "scans", model, out) == 0
    sentences = {
        "spikes_flair": "4 voxels far brighter than all around them were lowered",
        "dark_flair": "1 voxels lie below the background",
    }
    with (out / "results.csv").open(encoding="utf-8") as file:
        table = {row["scan"]: row["warnings"] for row in csv.DictReader(file)}
    for name, sentence in sentences.items():
        assert sentence in json.loads((out / f"{name}.json").read_text())["warnings"][0]
        assert sentence in table[name]
        assert f"{name}: {sentence}" in (out / "report.html").read_text()
    assert table["clean_flair"] == ""
    heights = [Image.open(out / f"{name}_overlay.png").height for name in scans]
    assert heights[0] > heights[2] < heights[1]  # lines for warnings


@pytest.mark.parametrize("name", NO_BRAIN)
def test_a_scan_without_a_brain_fails_and_is_not_without_findings(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slices, sentence = NO_BRAIN[name]
    path = write_slices(tmp_path / "scans" / f"{name}_flair.nii.gz", slices)
    write_slices(tmp_path / "scans" / "good_flair.nii.gz", CLEAN)
    assert run(tmp_path / "scans", model, tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert sentence in printed.err and str(path) in printed.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    entries = manifest["scans"]
    assert {key: entry["status"] for key, entry in entries.items()} == {
        f"{name}_flair": "failed",
        "good_flair": "done",
    }
    assert sentence in entries[f"{name}_flair"]["reason"]
    assert not list((tmp_path / "out").glob(f"{name}_flair*"))
    loaded, scan = load_model(str(model), "main", "cpu"), read_volume(path)
    with pytest.raises(ValueError, match="must show one brain"):
        predict_volume(*loaded, scan)
    with pytest.raises(ValueError, match="must show one brain"):
        calibrate(*loaded, [scan], [0.05])


def test_calibrating_on_a_blank_scan_ends_with_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_slices(tmp_path / "blank_flair.nii.gz", np.zeros_like(CLEAN))
    words = ["calibrate", str(path), "--model", str(model), "--device", "cpu"]
    assert main([*words, "--false-alarms", "0.05"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {path}: a scan must show")


def test_blank_slices_in_a_scan_and_a_scan_of_one_slice_are_fine(
    mask_of: Callable[[np.ndarray], np.ndarray],
) -> None:
    expected = mask_of(CLEAN)
    assert not expected[[0, -1]].any()
    assert np.array_equal(mask_of(CLEAN[2:3]), expected[2:3])


def test_a_head_with_its_skull_is_warned_about(tmp_path: Path) -> None:
    head = read_brain(write_slices(tmp_path / "head.nii.gz", with_head(CLEAN)))
    assert "a dark shell lies around the brain, as bone does" in " ".join(find_warnings(head))
    for slices in (CLEAN, with_ringing(CLEAN).clip(min=0)):
        brain = read_brain(write_slices(tmp_path / "brain.nii.gz", slices))
        assert find_warnings(brain) == []
