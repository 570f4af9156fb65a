"""Thresholds from healthy scans: the rate asked for is the rate observed on other healthy scans."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.prediction.calibration import (
    _HealthyScores,
    calibrate,
    load_threshold,
    save_calibration,
)
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_volume

PROCESSOR = RasaloreImageProcessor(size=32, gamma=1.0, crop_to_brain=False)


class BrightIsAbnormal(nn.Module):
    """Score = a smooth, rising function of brightness, so its quantiles are the image's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(6.0))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.weight * (pixel_values - 0.5))


def at(entry):
    return PredictionOptions(threshold=entry["threshold"])


def healthy(folder, seed, count=6):
    rng = np.random.default_rng(seed)
    for index in range(count):
        data = np.zeros((32, 32, 12), np.int16)
        data[4:28, 4:28, 1:11] = rng.gamma(4, 100, (24, 24, 10)).clip(1, 2000)
        data[5, 5, 1:11] = 2000  # every slice has one scale
        path = write_nifti(folder / f"{seed}-{index}.nii.gz", data, np.diag([-1.0, -1, 1, 1]))
        yield read_volume(path)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_the_observed_rate_on_held_out_scans_is_close_to_the_asked_one(tmp_path, rate):
    model = BrightIsAbnormal()
    result = calibrate(model, PROCESSOR, healthy(tmp_path, 0), [rate])
    (entry,) = result["thresholds"]
    assert entry["observed"] <= rate
    above = brain = 0
    for scan in healthy(tmp_path, 1):
        prediction = predict_volume(model, PROCESSOR, scan, at(entry))
        above += int(prediction.mask.sum())
        brain += int((scan.slices > 0).sum())
    assert above / brain == pytest.approx(rate, rel=0.2)
    assert (entry["scans"], entry["slices"], entry["voxels"]) == (6, 60, 6 * 10 * 24 * 24)


def test_the_threshold_of_slices_lets_the_asked_share_of_slices_pass(tmp_path):
    model = BrightIsAbnormal()
    entry = calibrate(model, PROCESSOR, healthy(tmp_path, 0), [0.5], "slices")["thresholds"][0]
    assert entry["observed"] <= 0.5


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_a_threshold_of_slices_is_not_biased(rate):
    """With n slices on either side, the relative error spreads by sqrt(2 (1 - rate) / (rate n))."""
    highest = np.random.default_rng(0).beta(2, 5, (2, 100_000))  # spreads by 4 % at a rate of 1 %
    threshold, observed = _HealthyScores(highest=list(highest[0])).threshold(rate, "slices")
    assert observed == pytest.approx(rate, abs=1e-5)
    assert np.mean(highest[1] > threshold) == pytest.approx(rate, rel=0.13)


def test_a_volume_of_false_alarms_per_scan_is_kept_to_on_other_scans(tmp_path):
    model = BrightIsAbnormal()
    (entry,) = calibrate(model, PROCESSOR, healthy(tmp_path, 0), [0.3], "ml")["thresholds"]
    assert entry["observed"] <= 0.3  # of 5.76 mL of brain in each scan
    found = [
        predict_volume(model, PROCESSOR, scan, at(entry)).millilitres
        for scan in healthy(tmp_path, 1)
    ]
    assert np.mean(found) == pytest.approx(0.3, rel=0.2)


def test_rates_hold_on_phantoms_that_were_not_calibrated_on(tmp_path):
    model, rates = BrightIsAbnormal(), [0.01, 0.05, 0.1]
    write_phantoms(tmp_path, 100, 0, 100, (24, 28, 24), 8.0)
    scans = [read_volume(path) for path in sorted(tmp_path.glob("*/*_t2.nii.gz"))]
    entries = calibrate(model, PROCESSOR, scans[:50], rates)["thresholds"]
    held_out = [
        predict_volume(model, PROCESSOR, scan).scores[scan.slices > 0] for scan in scans[50:]
    ]
    scores = np.concatenate(held_out)
    for rate, entry in zip(rates, entries, strict=True):
        assert np.mean(scores > entry["threshold"]) == pytest.approx(rate, rel=0.2)


def test_a_threshold_serves_only_scores_made_in_the_same_way(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    for flips in (False, True):
        options = PredictionOptions(flips=flips)
        save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [0.05], options=options))
    assert load_threshold(tmp_path, model, 0.05, options=PredictionOptions(flips=True)) > 0
    with pytest.raises(ValueError, match=r"--per voxels --smooth-mm 2`"):
        load_threshold(tmp_path, model, 0.05, options=PredictionOptions(smooth_mm=2.0))


def test_a_rate_that_only_empty_masks_would_keep_to_is_refused(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    model.weight.data *= 1000  # scores are 0 or 1 now
    for unit, rate in (("voxels", 0.001), ("slices", 0.2), ("ml", 0.01)):
        with pytest.raises(ValueError, match="no threshold below 1") as caught:
            calibrate(model, PROCESSOR, scans, [rate], unit)
        (ones,) = re.findall(rf"are 1 in (\S+) of {unit}; ask for a higher rate", str(caught.value))
        assert float(ones) > rate


def test_scans_without_brain_calibrate_nothing(tmp_path):
    blank = read_volume(write_nifti(tmp_path / "0.nii", np.zeros((8, 8, 4), np.int16), np.eye(4)))
    for unit in ("voxels", "slices", "ml"):
        with pytest.raises(ValueError, match="must show one brain"):
            calibrate(BrightIsAbnormal(), PROCESSOR, [blank], [0.5], unit)
        with pytest.raises(ValueError, match="0 slices"):
            calibrate(BrightIsAbnormal(), PROCESSOR, [], [0.5], unit)


def test_too_few_scans_for_a_rate_and_wrong_words_are_refused(tmp_path):
    scans = list(healthy(tmp_path, 0, count=1))
    with pytest.raises(ValueError, match=r"makes 0.1 of 1 scans, 10 slices, 5760 voxels"):
        calibrate(BrightIsAbnormal(), PROCESSOR, scans, [0.001], "slices")
    for rates, unit in (([0.0], "voxels"), ([], "voxels"), ([0.1], "litres")):
        with pytest.raises(ValueError, match="rates must lie"):
            calibrate(BrightIsAbnormal(), PROCESSOR, scans, rates, unit)


def test_stored_thresholds_belong_to_their_weights_rate_and_unit(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    for rate in (0.05, 0.1):
        save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [rate]))
    assert load_threshold(tmp_path, model, 0.05) > load_threshold(tmp_path, model, 0.1)
    with pytest.raises(ValueError, match=r"\[0.05, 0.1\] of voxels with these options, not 0.2"):
        load_threshold(tmp_path, model, 0.2)
    model.weight.data += 1
    with pytest.raises(ValueError, match="other weights"):
        load_threshold(tmp_path, model, 0.05)
    with pytest.raises(ValueError, match="rasalore calibrate"):
        load_threshold(tmp_path / "nowhere", model, 0.05)
