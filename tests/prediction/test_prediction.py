"""Prediction of volumes, by a model that knows what is abnormal and by the real one."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.outputs import describe, find_warnings, write_prediction
from modeling_rasalore.prediction.volume import (
    VolumePrediction,
    describe_model,
    predict_slices,
    predict_volume,
)
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask, read_volume

TISSUE, LESION, VESSEL = 100, 300, 400


class BrightIsAbnormal(nn.Module):
    """Logit 5 where a pixel has 0.5 to 0.9 of its slice's maximum, else -5; keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(pixel_values)
        assert not self.training and not torch.is_grad_enabled()
        abnormal = (pixel_values > 0.5) & (pixel_values < 0.9)
        return SimpleNamespace(logits=self.weight * (abnormal.to(self.weight) - 0.5))


@pytest.fixture
def processor():
    return RasaloreImageProcessor(size=16, gamma=1.0, crop_to_brain=False)


@pytest.fixture
def volume(tmp_path):
    """Six 16 x 16 slices of 2 x 1 x 1 mm: two blank, brain in four, 12 and 20 lesion voxels."""
    slices = np.zeros((6, 16, 16), np.int16)
    slices[1:5, 3:13, 3:13] = TISSUE
    slices[1:5, 10, 10:12] = VESSEL
    slices[2, 4:8, 4:7] = LESION
    slices[3, 4:8, 4:9] = LESION
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # LPS: slice k is data[:, :, k].T
    return read_volume(write_nifti(tmp_path / "scan.nii.gz", slices.transpose(2, 1, 0), affine))


def make_prediction(mask, spacing=(1.0, 1.0, 1.0)):
    return VolumePrediction(mask.astype(np.float32), mask, 0.5, spacing, {"name": "test"})


def test_the_mask_is_where_the_model_sees_an_anomaly(volume, processor):
    prediction = predict_volume(BrightIsAbnormal(), processor, volume)
    assert np.array_equal(prediction.mask, volume.slices == LESION)
    assert prediction.mask.dtype == np.uint8
    assert prediction.scores.dtype == np.float32


def test_scores_are_probabilities_and_zero_in_the_background(volume, processor):
    scores = predict_volume(BrightIsAbnormal(), processor, volume).scores
    assert scores[volume.slices == LESION] == pytest.approx(1 / (1 + np.exp(-5)))
    assert scores[volume.slices == TISSUE] == pytest.approx(1 / (1 + np.exp(5)))
    assert not scores[volume.slices == 0].any()


def test_statistics_of_a_prediction_by_hand(volume, processor):
    prediction = predict_volume(BrightIsAbnormal(), processor, volume)
    assert prediction.voxel_mm3 == pytest.approx(2)
    assert prediction.millilitres == pytest.approx((12 + 20) * 2 / 1000)
    assert prediction.slices_with_anomaly == [2, 3]
    assert prediction.largest_slice == 3


def test_an_empty_mask_has_no_largest_slice():
    prediction = make_prediction(np.zeros((3, 4, 4), np.uint8))
    assert prediction.millilitres == 0
    assert prediction.slices_with_anomaly == []
    assert prediction.largest_slice is None
    assert describe(prediction) == "no anomaly found in 3 slices"


def test_a_score_at_the_threshold_is_not_above_it(volume, processor):
    model = BrightIsAbnormal()
    model.weight.data.zero_()  # every score is 0.5
    assert not predict_volume(model, processor, volume).mask.any()
    brain = predict_volume(model, processor, volume, PredictionOptions(threshold=0.49)).mask
    assert np.array_equal(brain, volume.slices > 0)


def test_blank_slices_are_not_sent_through_the_model(volume, processor):
    model = BrightIsAbnormal()
    predict_volume(model, processor, volume, PredictionOptions(batch_size=3))
    assert [len(batch) for batch in model.seen] == [3, 1]


def test_a_blank_volume_gives_zeros(processor):
    model = BrightIsAbnormal()
    maps = predict_slices(model, processor, [np.zeros((5, 7), np.float32)] * 2)
    assert [m.shape for m in maps] == [(5, 7), (5, 7)]
    assert not np.any(maps)
    assert model.seen == []


def test_the_batch_size_changes_nothing(volume, processor):
    one, all_at_once = (
        predict_volume(
            BrightIsAbnormal(), processor, volume, PredictionOptions(batch_size=number)
        ).scores
        for number in (1, 8)
    )
    assert np.array_equal(one, all_at_once)


class LeftIsAbnormal(BrightIsAbnormal):
    """Logit 5 in the left half of the slice, else -5: a model that knows left from right."""

    def forward(self, pixel_values):
        columns = torch.arange(pixel_values.shape[-1]) < pixel_values.shape[-1] // 2
        return SimpleNamespace(logits=self.weight * (columns.expand_as(pixel_values).float() - 0.5))


def test_flips_average_the_scores_of_a_slice_and_its_mirror_images(volume, processor):
    plain, flipped = (
        predict_volume(LeftIsAbnormal(), processor, volume, PredictionOptions(flips=flips)).scores
        for flips in (False, True)
    )
    high, low = torch.tensor([5.0, -5.0]).sigmoid().tolist()
    assert np.unique(plain[2, 3:13, 3:13]) == pytest.approx([low, high], abs=1e-6)
    assert flipped[2, 3:13, 3:13] == pytest.approx((high + low) / 2, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_its_own_mode(volume, processor, training):
    model = BrightIsAbnormal().train(training)
    predict_volume(model, processor, volume)
    assert model.training is training


def test_the_model_comes_back_in_its_own_mode_after_an_error(volume, processor):
    model = BrightIsAbnormal().train()
    model.weight.data = model.weight.data[None, None, None, None, None].expand(2, 3, 5, 7, 11)
    with pytest.raises(RuntimeError):
        predict_volume(model, processor, volume)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_input_has_the_models_float_type(volume, processor, dtype):
    model = BrightIsAbnormal().to(dtype)
    assert predict_volume(model, processor, volume).scores.dtype == np.float32
    assert {batch.dtype for batch in model.seen} == {dtype}


def test_the_scan_is_left_as_it_was(volume, processor):
    before = volume.slices.copy()
    predict_volume(BrightIsAbnormal(), processor, volume)
    assert np.array_equal(volume.slices, before)


def test_a_z_scored_scan_with_negative_values_gives_the_same_mask(tmp_path, processor):
    slices = np.full((2, 16, 16), -1.0, np.float32)  # background
    slices[:, 3:13, 3:13] = -0.5
    slices[:, 4:8, 4:8] = 2.0
    slices[:, 10, 10] = 3.0
    slices[:, 12, 3:13] = -0.25
    path = write_nifti(tmp_path / "z.nii.gz", slices.T, np.diag([-1.0, -1.0, 1.0, 1.0]))
    prediction = predict_volume(BrightIsAbnormal(), processor, read_volume(path))
    assert np.array_equal(prediction.mask, slices == 2)
    assert prediction.scores[slices == -0.25].all()  # below 0, yet no background


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        PredictionOptions(threshold=threshold)


def test_an_empty_batch_is_refused(volume, processor):
    with pytest.raises(ValueError, match="at least 1"):
        PredictionOptions(batch_size=0)
    with pytest.raises(ValueError, match="at least 1"):
        predict_slices(BrightIsAbnormal(), processor, volume.slices, batch_size=0)


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_sizes_below_zero_and_without_end_are_refused(size):
    for options in ({"smooth_mm": size}, {"smallest_ml": size}):
        with pytest.raises(ValueError, match="must be 0 or more"):
            PredictionOptions(**options)


def test_the_real_model_scores_every_voxel_of_the_brain(volume):
    config = RasaloreConfig.preset("tiny")
    model, real = RasaloreModel(config), RasaloreImageProcessor(size=config.image_size)
    scores = predict_volume(model, real, volume).scores
    assert scores.shape == volume.slices.shape
    assert np.array_equal(scores > 0, volume.slices > 0)


def test_files_are_on_the_scans_own_grid(volume, processor, tmp_path):
    prediction = predict_volume(BrightIsAbnormal(), processor, volume)
    paths = write_prediction(prediction, volume, tmp_path / "new" / "out", "case")
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "case.json",
        "case_mask.nii.gz",
        "case_overlay.png",
        "case_planes.png",
        "case_scores.nii.gz",
    ]
    assert np.array_equal(read_mask(paths["mask"], volume), prediction.mask)
    scores = read_volume(paths["scores"])
    assert np.array_equal(scores.slices, prediction.scores)
    assert np.array_equal(scores.affine, volume.affine)


def test_the_summary_says_what_made_it_and_from_what(volume, processor, tmp_path):
    prediction = predict_volume(
        BrightIsAbnormal(), processor, volume, PredictionOptions(threshold=0.25)
    )
    path = write_prediction(prediction, volume, tmp_path, "case")["summary"]
    summary = json.loads(path.read_text())
    assert summary["input"] == "scan.nii.gz"
    assert summary["input_sha256"] == hashlib.sha256(volume.path.read_bytes()).hexdigest()
    assert summary["millilitres"] == pytest.approx(0.064)
    assert (summary["threshold"], summary["largest_slice"]) == (0.25, 3)
    assert "not a medical device" in summary["disclaimer"]
    assert "empty mask does not exclude" in summary["disclaimer"]
    assert str(tmp_path) not in path.read_text()


def test_a_scan_with_skull_and_noise_is_warned_about(tmp_path, volume):
    noise = np.random.default_rng(0).random((16, 16, 16), np.float32)
    noisy = read_volume(write_nifti(tmp_path / "noise.nii.gz", noise, np.eye(4)))
    assert "everything but the brain removed" in " ".join(find_warnings(noisy))
    (part,) = find_warnings(volume)
    assert part.startswith("the scan covers 12 x 16 x 16 mm")


def test_replaced_voxels_are_warned_about(tmp_path):
    data = np.zeros((6, 6, 6), np.float32)
    data[0, 0, :3] = np.nan
    scan = read_volume(write_nifti(tmp_path / "nan.nii.gz", data, np.diag([4.0, 4.0, 4.0, 1.0])))
    assert find_warnings(scan) == ["3 NaN or infinite voxels were set to 0."]


def test_the_weights_hash_changes_with_any_weight():
    model = BrightIsAbnormal()
    before = describe_model(model)
    assert describe_model(model) == before
    model.weight.data += 1e-6
    assert describe_model(model)["weights_sha256"] != before["weights_sha256"]


def test_a_model_from_a_folder_is_named_without_its_path(tmp_path):
    folder = tmp_path / "my-model"
    RasaloreModel(RasaloreConfig.preset("tiny")).save_pretrained(folder)
    assert describe_model(RasaloreModel.from_pretrained(folder))["name"] == "my-model"


def test_only_the_asked_files_are_written(volume, processor, tmp_path):
    prediction = predict_volume(BrightIsAbnormal(), processor, volume)
    for files in ((), ("mask",), ("scores", "summary")):
        out = tmp_path / str(len(files))
        paths = write_prediction(prediction, volume, out, "case", files=files)
        assert set(paths) == set(files)
        assert sorted(out.glob("*")) == sorted(paths.values())
