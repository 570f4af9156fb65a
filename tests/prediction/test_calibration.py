"""Thresholds from healthy scans: in few other healthy scans is more marked than was asked for."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from saved_defaults import stored_threshold
from torch import nn

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.prediction.calibration import calibrate, calibrate_on_slices
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import (
    CALIBRATION_FILE,
    at_false_alarms,
    save_calibration,
)
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
def test_no_healthy_scan_has_more_marked_than_asked_at_the_strictest_threshold(tmp_path, rate):
    model = BrightIsAbnormal()
    (entry,) = calibrate(model, PROCESSOR, healthy(tmp_path, 0), [rate])["thresholds"]
    shares = [
        predict_volume(model, PROCESSOR, scan, at(entry)).mask[scan.slices > 0].mean()
        for scan in healthy(tmp_path, 0)
    ]
    assert max(shares) <= rate and max(shares) == pytest.approx(rate, rel=0.02)
    assert (entry["scans"], entry["slices"], entry["voxels"]) == (6, 60, 6 * 10 * 24 * 24)
    assert entry["promise"] == (
        f"in at most 1 of 7 scans is more than {100 * rate:g} % of healthy brain marked"
    )
    assert entry["thresholds_of_scans"][0] == entry["threshold"]


@pytest.mark.parametrize(("unit", "rate"), [("voxels", 0.05), ("ml", 0.3)])
def test_a_share_of_scans_leaves_so_many_healthy_scans_above(tmp_path, unit, rate):
    model = BrightIsAbnormal()
    result = calibrate(model, PROCESSOR, healthy(tmp_path, 0), [rate], unit, scans_above=0.45)
    (entry,) = result["thresholds"]
    above = []
    for scan in healthy(tmp_path, 0):
        mask = predict_volume(model, PROCESSOR, scan, at(entry)).mask
        shares = {"voxels": mask[scan.slices > 0].mean(), "ml": mask.sum() / 1000}
        above.append(shares[unit] > rate)
    assert (entry["rank"], sum(above)) == (3, 2)  # 3 of 7 new scans, the new one among them
    assert "in at most 3 of 7 scans" in entry["promise"]


def test_many_scans_promise_a_tenth_where_no_share_is_asked_for(tmp_path):
    words = []
    for asked in (None, 0.0):
        scans = healthy(tmp_path, 2, count=20)
        result = calibrate(BrightIsAbnormal(), PROCESSOR, scans, [0.05], scans_above=asked)
        words.append(result["thresholds"][0]["promise"])
    assert words[0].startswith("in at most 2 of 21") and words[1].startswith("in at most 1 of 21")


def test_scans_are_read_one_after_the_other_and_not_kept(tmp_path):
    alive, most = weakref.WeakSet(), []

    def watched():
        for scan in healthy(tmp_path, 0):
            alive.add(scan)
            most.append(len(alive))
            yield scan

    calibrate(BrightIsAbnormal(), PROCESSOR, watched(), [0.05])
    assert len(most) == 6 and max(most) <= 2  # the last one, and the one that takes its place


def test_the_order_of_scans_changes_nothing(tmp_path):
    scans = list(healthy(tmp_path, 0, count=3))
    results = [calibrate(BrightIsAbnormal(), PROCESSOR, s, [0.05]) for s in (scans, scans[::-1])]
    assert results[0] == results[1]


def test_promises_hold_on_phantoms_that_were_not_calibrated_on(tmp_path):
    model, rates = BrightIsAbnormal(), [0.01, 0.05, 0.1]
    write_phantoms(tmp_path, 100, 0, 100, (24, 28, 24), 8.0)
    scans = [read_volume(path) for path in sorted(tmp_path.glob("*/*_t2.nii.gz"))]
    entries = calibrate(model, PROCESSOR, scans[:50], rates, scans_above=0.2)["thresholds"]
    held_out = [
        predict_volume(model, PROCESSOR, scan).scores[scan.slices > 0] for scan in scans[50:]
    ]
    for rate, entry in zip(rates, entries, strict=True):
        above = [np.mean(scores > entry["threshold"]) > rate for scores in held_out]
        assert entry["rank"] == 10
        assert np.mean(above) == pytest.approx(0.2, abs=0.16)  # 2 standard errors of 50 and 50


def test_a_threshold_serves_only_scores_made_in_the_same_way(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    for flips in (False, True):
        options = PredictionOptions(flips=flips)
        save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [0.05], options=options))
    assert stored_threshold(tmp_path, model, 0.05, options=PredictionOptions(flips=True)) > 0
    with pytest.raises(ValueError, match=r"--per voxels --smooth-mm 2`"):
        stored_threshold(tmp_path, model, 0.05, options=PredictionOptions(smooth_mm=2.0))


def test_a_rate_that_only_empty_masks_would_keep_to_is_refused(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    model.weight.data *= 1000  # scores are 0 or 1 now
    for unit, rate in (("voxels", 0.001), ("slices", 0.2), ("ml", 0.01)):
        words = rf"no threshold below 1 keeps to a rate of {rate:g} of {unit} in all but 0 of 1"
        with pytest.raises(ValueError, match=words):
            calibrate(model, PROCESSOR, scans, [rate], unit)


def test_scans_without_brain_calibrate_nothing(tmp_path):
    blank = read_volume(write_nifti(tmp_path / "0.nii", np.zeros((8, 8, 4), np.int16), np.eye(4)))
    for unit in ("voxels", "slices", "ml"):
        with pytest.raises(ValueError, match="must show one brain"):
            calibrate(BrightIsAbnormal(), PROCESSOR, [blank], [0.5], unit)
        with pytest.raises(ValueError, match=r"at least one healthy scan .* got 0 scans"):
            calibrate(BrightIsAbnormal(), PROCESSOR, [], [0.5], unit)


def test_too_few_scans_for_a_share_and_wrong_words_are_refused(tmp_path):
    scans = list(healthy(tmp_path, 0, count=1))
    with pytest.raises(ValueError, match=r"1 healthy scans promise .* give 9 healthy scans"):
        calibrate(BrightIsAbnormal(), PROCESSOR, scans, [0.05], scans_above=0.1)
    for rates, unit in (([0.0], "voxels"), ([], "voxels"), ([0.1], "litres")):
        with pytest.raises(ValueError, match="rates must lie"):
            calibrate(BrightIsAbnormal(), PROCESSOR, scans, rates, unit)


def test_stored_thresholds_belong_to_their_weights_rate_and_unit(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    for rate in (0.05, 0.1):
        save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [rate]))
    assert stored_threshold(tmp_path, model, 0.05) > stored_threshold(tmp_path, model, 0.1)
    with pytest.raises(ValueError, match=r"is calibrated for 0.05, 0.1 of voxels, not 0.2"):
        stored_threshold(tmp_path, model, 0.2)
    model.weight.data += 1
    with pytest.raises(ValueError, match="other weights"):
        stored_threshold(tmp_path, model, 0.05)
    with pytest.raises(ValueError, match="rasalore calibrate"):
        stored_threshold(tmp_path / "nowhere", model, 0.05)


def test_a_prediction_says_what_its_threshold_promises(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [0.05]))
    options = at_false_alarms(PredictionOptions(), 0.05, "voxels", tmp_path, model)
    assert options.threshold == stored_threshold(tmp_path, model, 0.05)
    assert options.threshold_source.startswith(
        "calibrated: in at most 1 of 2 scans is more than 5 % of healthy brain marked (this holds "
    )


def test_a_file_of_an_earlier_version_is_used_and_said_to_promise_less(tmp_path):
    model, scans = BrightIsAbnormal(), list(healthy(tmp_path, 0, count=1))
    path = save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [0.05, 0.1]))
    content = json.loads(path.read_text())
    known = ("rate", "unit", "flips", "smooth_mm", "threshold", "scans", "slices", "voxels")
    old = [{key: entry[key] for key in known} for entry in content["thresholds"]]  # as it was
    path.write_text(json.dumps(content | {"thresholds": [{**e, "observed": 0.04} for e in old]}))
    options = at_false_alarms(PredictionOptions(), 0.05, "voxels", tmp_path, model)
    assert options.threshold == content["thresholds"][0]["threshold"]
    assert (
        "0.05 of healthy voxels of all scans together, by an earlier version; calibrate anew"
        in (options.threshold_source)
    )
    save_calibration(tmp_path, calibrate(model, PROCESSOR, scans, [0.05]))  # takes its place
    stored = json.loads((tmp_path / CALIBRATION_FILE).read_text())["thresholds"]
    assert [(entry["rate"], "promise" in entry) for entry in stored] == [(0.1, False), (0.05, True)]


def test_of_a_scan_with_a_lesion_its_healthy_slices_count_as_the_scan(tmp_path):
    model = BrightIsAbnormal()
    (scan,) = healthy(tmp_path, 0, 1)
    lesion = np.array(scan.slices)
    lesion[6:][lesion[6:] > 0] = 2000  # slices 6 to 10 are bright all over
    write_nifti(tmp_path / "lesion.nii.gz", lesion.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]))
    ill = read_volume(tmp_path / "lesion.nii.gz")
    assert np.array_equal(ill.slices[1:6].mean((1, 2)), scan.slices[1:6].mean((1, 2)))
    whole = calibrate_on_slices(model, PROCESSOR, [(scan, range(1, 6))], [0.05])
    part = calibrate_on_slices(model, PROCESSOR, [(ill, range(1, 6))], [0.05])
    (entry,) = part["thresholds"]
    assert entry["threshold"] == pytest.approx(whole["thresholds"][0]["threshold"])
    assert (entry["scans"], entry["slices"], entry["voxels"]) == (1, 5, 5 * 24 * 24)
    assert entry["promise"].endswith("marked, as far as healthy slices of scans with lesions tell")
    (all_slices,) = calibrate(model, PROCESSOR, [scan], [0.05])["thresholds"]
    assert "as far as" not in all_slices["promise"]
