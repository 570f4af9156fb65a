"""The map that learns nothing, by hand: ranks, hemispheres, millimetres, fusion with scores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.prediction import free_map as module
from modeling_rasalore.prediction.calibration import calibrate
from modeling_rasalore.prediction.free_map import (
    POLARITIES,
    Polarity,
    exceed_mirror,
    find_midline,
    free_map,
    fuse_scores,
    fusion_offsets,
    smooth_scores,
    smoothed_rank,
)
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import at_false_alarms, save_calibration
from modeling_rasalore.prediction.volume import VolumePrediction, predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import Volume, read_volume

MM = (1.0, 1.0, 1.0)
FAR = (1000.0, 1000.0, 1000.0)  # voxels so far apart that no Gaussian reaches the next one


def brain_of_shape(*shape: int) -> np.ndarray:
    """An ellipsoid that touches no border."""
    axes = np.meshgrid(*(np.linspace(-1.1, 1.1, side) for side in shape), indexing="ij")
    return np.asarray(sum(axis**2 for axis in axes) < 1)


def symmetric_scan(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texture that is its own mirror image, above 0 in the brain; the brain."""
    brain = brain_of_shape(*shape)
    texture = np.random.default_rng(seed).uniform(1, 2, shape)
    return np.where(brain, texture + texture[..., ::-1], 0).astype(np.float32), brain


# --- Ranks ----------------------------------------------------------------------------------------
def test_ranks_by_hand_count_the_darker_and_half_of_the_equal() -> None:
    scan = np.array([[[0, 5, 7], [7, 9, 0]]], np.float32)
    expected = np.array([[[0, 1 / 8, 1 / 2], [1 / 2, 7 / 8, 0]]], np.float32)
    assert np.allclose(smoothed_rank(scan, scan > 0, FAR), expected)
    dark = smoothed_rank(scan, scan > 0, FAR, Polarity.DARK)
    assert np.allclose(dark, np.where(scan > 0, 1 - expected, 0))


def test_a_scans_scale_has_no_say() -> None:
    scan, brain = symmetric_scan(5, 14, 15)
    rescaled = np.where(brain, 40 * scan - 7, -100).astype(np.float32)
    for polarity in Polarity:
        maps = [free_map(s, brain, MM, polarity) for s in (scan, rescaled)]
        assert np.array_equal(*maps)


def test_part_of_a_large_brain_tells_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, brain = symmetric_scan(12, 40, 41)
    exact = smoothed_rank(scan, brain, MM)
    monkeypatch.setattr(module, "SAMPLED_VOXELS", 1000)
    assert np.abs(smoothed_rank(scan, brain, MM) - exact).max() < 0.02


def test_no_brain_gives_no_map() -> None:
    nothing = np.zeros((2, 3, 4), np.float32)
    assert not smoothed_rank(nothing, nothing > 0, MM).any()
    assert not free_map(nothing, nothing > 0, MM, Polarity.BRIGHT).any()


# --- The other hemisphere -------------------------------------------------------------------------
def test_the_midline_is_the_column_of_the_centre_of_mass() -> None:
    brain = np.zeros((2, 3, 8), bool)
    brain[:, :, 1:5] = True
    assert find_midline(brain) == 2.5
    brain[0, 0, 7] = True
    assert find_midline(brain) == pytest.approx((24 * 2.5 + 7) / 25)


def test_a_mirror_image_by_hand() -> None:
    plane, brain = np.array([[1, 2, 4, 8]], np.float32), np.ones((1, 4), bool)
    assert exceed_mirror(plane, brain, 1.5).tolist() == [[-7, -2, 2, 7]]
    assert exceed_mirror(plane, brain, 1.0).tolist() == [[-3, 0, 3, 0]]  # the last has no partner
    # 2 * 1.25 - 1 = 1.5: the mean of columns 1 and 2; that of column 3 is half outside.
    assert exceed_mirror(plane, brain, 1.25).tolist() == [[1 - 6, 2 - 3, 4 - 1.5, 8 - 1]]
    brain[0, 0] = False
    assert exceed_mirror(np.where(brain, plane, 0), brain, 1.5).tolist() == [[0, -2, 2, 0]]


@pytest.mark.parametrize("shape", [(5, 14, 15), (5, 14, 16), (1, 20, 20)])
@pytest.mark.parametrize("polarity", Polarity)
def test_a_symmetric_scan_has_a_mirror_part_of_0(
    shape: tuple[int, int, int], polarity: Polarity
) -> None:
    scan, brain = symmetric_scan(*shape)
    made = free_map(scan, brain, (3.0, 1.0, 1.0), polarity)
    rank = smoothed_rank(scan, brain, (3.0, 1.0, 1.0), polarity)
    alone = polarity is Polarity.DARKER_THAN_MIRROR
    expected = np.full(shape, 0.5) if alone else (rank + 1) / 3
    assert made == pytest.approx(np.where(brain, expected, 0), abs=1e-6)


@pytest.mark.parametrize("polarity", Polarity)
def test_a_tumour_on_one_side_lights_up(polarity: Polarity) -> None:
    scan, brain = symmetric_scan(9, 40, 40)
    tumour = np.zeros_like(brain)
    tumour[3:6, 15:23, 26:33] = True
    scan[tumour] = 3.5 if polarity is Polarity.BRIGHT else 2.2
    made = free_map(scan, brain, MM, polarity)
    assert made[tumour].min() > np.median(made[brain])
    assert np.isin(made.argmax(), np.flatnonzero(tumour))
    assert made[..., ::-1][tumour].mean() < made[brain].mean() < made[tumour].mean()
    assert made.min() == 0 and made.max() <= 1 and not made[~brain].any()


# --- Millimetres ----------------------------------------------------------------------------------
def test_smoothing_is_in_mm_along_every_axis() -> None:
    scan = np.ones((15, 21, 31), np.float32)
    scan[7, 10, 15] = 2
    brain = np.ones(scan.shape, bool)
    spacing = (2.0, 1.0, 0.5)
    ranks = np.full(scan.shape, (scan.size - 1) / 2 / scan.size)
    ranks[7, 10, 15] = 1 - 0.5 / scan.size
    expected = ndimage.gaussian_filter(ranks, [2.0 / size for size in spacing], mode="nearest")
    middle = np.s_[5:10, 8:13, 12:19]
    assert smoothed_rank(scan, brain, spacing)[middle] == pytest.approx(expected[middle], abs=1e-4)


def test_slices_far_apart_and_a_single_one_are_alike() -> None:
    scan, brain = symmetric_scan(6, 30, 31)
    scan[3] = scan[2]
    brain[3] = brain[2]
    rank = smoothed_rank(scan[2:4], brain[2:4], (40.0, 1.0, 1.0))
    alone = smoothed_rank(scan[2:3], brain[2:3], (40.0, 1.0, 1.0))
    assert rank[0] == pytest.approx(alone[0], abs=1e-6)


def test_without_a_border_smoothing_is_a_gaussian_in_mm() -> None:
    scores = np.zeros((15, 21, 31), np.float32)
    scores[7, 10, 15] = 1
    brain = np.ones(scores.shape, bool)
    expected = ndimage.gaussian_filter(scores, [1.0 / 2, 1.0, 2.0], mode="constant")
    smooth_scores(scores, brain, (2.0, 1.0, 0.5), 1.0)
    assert scores[5:10, 6:15, 7:24] == pytest.approx(expected[5:10, 6:15, 7:24], abs=1e-5)


def test_equal_scores_stay_equal_up_to_the_brains_border() -> None:
    brain = np.zeros((6, 8, 8), bool)
    brain[1:5, 2:7, 1:6] = True
    scores = np.where(brain, np.float32(0.7), np.float32(0))
    smooth_scores(scores, brain, (1.0, 1.0, 1.0), 1.5)
    assert scores[brain] == pytest.approx(0.7, abs=1e-6)
    assert not scores[~brain].any()


# --- Fusion with a network's scores ---------------------------------------------------------------
def test_offsets_are_deviations_from_the_median_of_the_brain() -> None:
    free = np.array([[[0.1, 0.2, 0.3, 0.4, 0.9, 0.0]]], np.float32)
    brain = free > 0
    expected = np.array([-0.2, -0.1, 0, 0.1, 0.6]) / (1.4826 * 0.1)
    offsets = fusion_offsets(free, brain, weight=0.5)
    assert offsets[brain] == pytest.approx(0.5 * expected, rel=1e-5)
    assert not offsets[~brain].any()
    assert not fusion_offsets(np.where(brain, np.float32(0.3), 0), brain, 0.5).any()


def test_fused_scores_by_hand() -> None:
    scores = np.array([[0.5, 0.25, 0.0, 1.0, 0.5]], np.float32)
    offsets = np.log(np.array([[3, 1, 3, 3, 3]], np.float32))
    brain = np.array([[True, True, True, True, False]])
    fused = fuse_scores(scores, offsets, brain)
    assert fused[0, :2] == pytest.approx([0.75, 0.25])
    assert 0 < fused[0, 2] < 1e-6 and 1 - 1e-6 < fused[0, 3] <= 1
    assert fused[0, 4] == 0


class Guess(nn.Module):
    """Scores by a fixed rule of brightness, with noise for doubt."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.kind, self.std, self.sample_in_eval = "gaussian", 0.3, False
        self.config = SimpleNamespace(num_channels=1, modality="t2")

    def forward(self, pixel_values: torch.Tensor) -> Any:
        noise = self.std * torch.randn_like(pixel_values) * self.sample_in_eval
        return SimpleNamespace(logits=self.weight * (pixel_values - 0.5) + noise)


PROCESSOR = RasaloreImageProcessor(size=32, gamma=1.0, crop_to_brain=False)


@pytest.fixture
def scan(tmp_path: Path) -> Volume:
    """A scan of 32 x 32 x 8 voxels, brighter on one side."""
    data, brain = symmetric_scan(8, 32, 32)
    data[2:6, 12:20, 20:28] += 1
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    voxels = np.where(brain, data, 0).transpose(2, 1, 0)
    return read_volume(write_nifti(tmp_path / "scan.nii.gz", voxels, affine))


def predict(scan: Volume, **options: Any) -> VolumePrediction:
    return predict_volume(Guess(), PROCESSOR, scan, PredictionOptions(**options))


@pytest.mark.parametrize("options", [{}, {"smooth_mm": 2.0}, {"flips": True}, {"noise_samples": 2}])
def test_fusion_is_what_the_formula_says_with_every_option(
    scan: Volume, options: dict[str, Any]
) -> None:
    plain, fused = predict(scan, **options), predict(scan, **options, free_map=0.7)
    brain = scan.slices > 0
    free = free_map(scan.slices, brain, scan.spacing, POLARITIES["t2"])
    z = (free - np.median(free[brain])) / (
        1.4826 * np.median(np.abs(free - np.median(free[brain]))[brain])
    )
    logits = torch.logit(torch.from_numpy(plain.scores)).numpy() + 0.7 * z
    assert fused.scores[brain] == pytest.approx(1 / (1 + np.exp(-logits[brain])), abs=1e-5)
    assert not fused.scores[~brain].any()
    assert np.array_equal(fused.mask, fused.scores > 0.5)
    assert (fused.spread is None) == (plain.spread is None)
    if fused.spread is not None:
        assert not np.array_equal(fused.spread, plain.spread)  # draws are fused, too
        assert fused.quality_score is not None and 0 < fused.quality_score <= 1


def test_a_weight_of_0_changes_nothing(scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = predict(scan, noise_samples=2)
    monkeypatch.setattr("modeling_rasalore.prediction.volume.free_map", None)
    same = predict(scan, noise_samples=2, free_map=0.0)
    assert np.array_equal(plain.scores, same.scores) and np.array_equal(plain.mask, same.mask)
    assert plain.quality_score == same.quality_score


def test_an_unknown_sequence_and_weights_below_0_are_refused(scan: Volume) -> None:
    model = Guess()
    model.config.modality = None
    with pytest.raises(ValueError, match=r"the sequence, t1?2, .*, got None; name it with --mod"):
        predict_volume(model, PROCESSOR, scan, PredictionOptions(free_map=1.0))
    model.config.num_channels = 4
    with pytest.raises(ValueError, match="this model takes 4 sequences as channels"):
        predict_volume(model, PROCESSOR, scan, PredictionOptions(free_map=1.0))
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="weight must be 0 or more"):
            PredictionOptions(free_map=weight)


def test_a_threshold_serves_only_the_same_fusion(scan: Volume, tmp_path: Path) -> None:
    model, fused = Guess(), PredictionOptions(free_map=0.5)
    for options in (PredictionOptions(), fused):
        save_calibration(tmp_path, calibrate(model, PROCESSOR, [scan], [0.05], options=options))
    words = 0.05, "voxels", tmp_path, model
    plain = at_false_alarms(PredictionOptions(), *words).threshold
    assert at_false_alarms(fused, *words).threshold != plain
    with pytest.raises(ValueError, match=r"with these options .* not 0.05; .* --free-map 0.25`"):
        at_false_alarms(PredictionOptions(free_map=0.25), *words)
