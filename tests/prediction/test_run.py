"""Runs over many scans: bad files between good ones, a killed run, memory that stays flat.

`MEMORY_VOLUMES=200 pytest tests/prediction/test_run.py` runs more volumes.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from crafted_headers import REFUSED, REPAIRED
from torch import nn

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.cli import main
from modeling_rasalore.prediction import outputs, planning, run, volume
from modeling_rasalore.prediction.journal import read_journals
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.outputs import write_prediction
from modeling_rasalore.prediction.run import predict_scans
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_volume

BYTES_PER_VOXEL = 15.3  # 1.5 GiB for 512 x 512 x 400 voxels
VOLUMES = int(os.environ.get("MEMORY_VOLUMES", "25"))
TIMES = ("seconds", "peak_memory_mib")


class BrightIsAbnormal(nn.Module):
    """A logit per pixel that grows with its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(8.0))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.weight * (pixel_values - 0.2))


PROCESSOR = RasaloreImageProcessor(size=16, gamma=1.0, crop_to_brain=False)


def brain(path: Path, seed: int = 0, shape: tuple[int, int, int] = (20, 24, 6)) -> Path:
    data = np.zeros(shape, np.int16)
    inside = (slice(3, -3), slice(4, -4), slice(1, -1))
    data[inside] = np.random.default_rng(seed).integers(20, 300, data[inside].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, data, np.diag([-1.0, -1.0, 3.0, 1.0]))


def test_good_scans_between_all_crafted_files_finish(tmp_path: Path) -> None:
    cases = {**{name: (*case, False) for name, case in REFUSED.items()}}
    cases |= {name: (*case, True) for name, case in REPAIRED.items()}
    scans, usable = [], []
    for number, (name, make, _, repaired) in enumerate(cases.values()):
        folder = tmp_path / f"{number:02d}"
        scans.append(brain(folder / "good.nii.gz", number))
        scans.append(folder / name)
        scans[-1].write_bytes(make())
        usable += [True, repaired]
    started = time.process_time()
    manifest = predict_scans(
        BrightIsAbnormal(), PROCESSOR, scans, tmp_path / "out", say=lambda line: None
    )
    assert len(REFUSED) + len(REPAIRED) >= 25
    assert {"commit", "machine", "python", "versions", "model"} <= manifest.keys()
    entries = list(manifest["scans"].values())
    assert [entry["status"] == "done" for entry in entries] == usable
    assert all("\n" not in entry["reason"] for entry in entries if entry["status"] == "failed")
    assert time.process_time() - started < len(scans)


def test_file_weights_and_warnings_are_looked_at_once_however_much_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(run, name, None) or getattr(outputs, name, None) or getattr(planning, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        for module in (volume, outputs, planning, run):
            monkeypatch.setattr(module, name, counted, raising=False)

    for name in ("hash_scan", "find_warnings", "describe_model"):
        count(name)
    scans = [brain(tmp_path / f"{number}.nii.gz", number) for number in range(3)]
    predict_scans(BrightIsAbnormal(), PROCESSOR, scans, tmp_path / "out", say=lambda line: None)
    assert calls == {"hash_scan": 3, "find_warnings": 3, "describe_model": 1}


def same_but_times(path: Path) -> Any:
    """A file's content without what the clock and the machine's memory put there."""
    if path.name == "manifest.json":
        manifest = json.loads(path.read_text())
        for entry in (manifest, *manifest["scans"].values()):
            for name in TIMES:
                entry.pop(name, None)
        return manifest
    if path.name == "results.csv":
        lines = [line.split(",") for line in path.read_text().splitlines()]
        place = lines[0].index("seconds")
        return [line[:place] + line[place + 1 :] for line in lines]
    # The page is made of the manifest, and shows times among its numbers; journals are in folders.
    return None if path.name == "report.html" or path.is_dir() else path.read_bytes()


def test_a_killed_run_is_resumed_to_the_outputs_of_an_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RasaloreConfig.preset("tiny", initializer_range=0.2)
    RasaloreModel(config).save_pretrained(tmp_path / "model")
    RasaloreImageProcessor(size=config.image_size).save_pretrained(tmp_path / "model")
    for number in range(5):
        brain(tmp_path / "scans" / f"{number}.nii.gz", number, (48, 48, 20))
    words = ["predict", str(tmp_path / "scans"), "--model", str(tmp_path / "model")]
    words += ["--noise-samples", "2", "--out"]
    assert main([*words, str(tmp_path / "whole"), "--quiet"]) == 0

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "modeling_rasalore.cli", *words, str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(killed.glob("*_scores.nii.gz"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    journals = read_journals(killed)
    assert 1 <= len(journals.records) < 5
    assert journals.progress() == {
        **{"scans": 5, "done": len(journals.records), "failed": 0},
        "left": 5 - len(journals.records),
    }
    (killed / ".4711-4_mask.nii.gz").write_bytes(b"half")  # as a kill in mid-write leaves it

    assert main([*words, str(killed), "--quiet", "--resume"]) == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names
    for name in names:
        assert same_but_times(killed / name) == same_but_times(tmp_path / "whole" / name), name


# --- A second run into the same folder ------------------------------------------------------------


def segment(scan: Path, out: Path, threshold: float = 0.5, **words: Any) -> tuple[Any, list[str]]:
    """What a run of one scan returns, and what it said."""
    said: list[str] = []
    options = PredictionOptions(threshold=threshold)
    manifest = predict_scans(
        BrightIsAbnormal(), PROCESSOR, [scan], out, options, say=said.append, **words
    )
    return manifest, said


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def test_a_second_run_adds_to_the_table_and_the_report(tmp_path: Path) -> None:
    out, first, second = tmp_path / "out", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    segment(brain(first), out)
    kept = (out / "a_mask.nii.gz").read_bytes()
    manifest, _ = segment(brain(second, 1), out)
    assert (list(manifest["scans"]), list(manifest["earlier"])) == (["b"], ["a"])
    assert list(table(out)) == ["b", "a"]
    assert "earlier run" not in table(out)["a"]["warnings"]
    page = (out / "report.html").read_text()
    assert all(f'alt="Slices that say most of {name}"' in page for name in "ab")
    assert "The last 1 of the scans are of earlier runs into this folder." in page
    assert (out / "a_mask.nii.gz").read_bytes() == kept
    manifest, _ = segment(first, out)  # done again, it has one row
    assert sorted(table(out)) == ["a", "b"] and list(manifest["scans"]) == ["a"]


def test_results_of_other_settings_stay_and_say_which(tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(brain(tmp_path / "a.nii.gz"), out, threshold=0.25)
    manifest, _ = segment(brain(tmp_path / "b.nii.gz", 1), out)
    assert manifest["earlier"]["a"]["made_with"] == {"threshold": 0.25}
    sentence = "made by an earlier run with another setting: threshold 0.25."
    assert table(out)["a"]["warnings"].endswith(sentence)
    assert table(out)["a"]["threshold"] == "0.25"
    assert f"a: {sentence}" in (out / "report.html").read_text()
    assert "earlier run" not in table(out)["b"]["warnings"]


def test_results_whose_files_were_deleted_leave_the_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(brain(tmp_path / "a.nii.gz"), out)
    for path in out.glob("a*"):
        path.unlink()
    segment(brain(tmp_path / "b.nii.gz", 1), out)
    assert list(table(out)) == ["b"]


def test_files_that_a_scan_does_not_get_again_are_removed_and_named(tmp_path: Path) -> None:
    scan, out = brain(tmp_path / "a.nii.gz"), tmp_path / "out"
    segment(scan, out)
    (out / "a_notes.txt").write_text("somebody's own")
    _, said = segment(scan, out, files=("mask", "summary"))
    names = {path.name for path in out.glob("a*")}
    assert names == {"a_mask.nii.gz", "a.json", "a_notes.txt"}
    others = "a_scores.nii.gz, a_overlay.png, a_planes.png"
    assert f"{scan}: files of an earlier run removed: {others}" in said


def test_files_of_a_scan_that_fails_the_second_time_stay_and_are_listed(tmp_path: Path) -> None:
    scan, out = brain(tmp_path / "a.nii.gz"), tmp_path / "out"
    segment(scan, out, files=("mask",))
    scan.write_bytes(b"damaged")
    manifest, said = segment(scan, out, files=("mask",))
    sentence = "files of an earlier run are still there: a_mask.nii.gz."
    assert manifest["scans"]["a"]["status"] == "failed"
    assert table(out)["a"]["warnings"].endswith(sentence)
    assert said[-1] == f"warning: {scan}: {sentence}"
    assert (out / "a_mask.nii.gz").exists()
    assert f"a: {sentence}" in (out / "report.html").read_text()


def test_a_journal_that_names_files_elsewhere_removes_none(tmp_path: Path) -> None:
    scan, out = brain(tmp_path / "a.nii.gz"), tmp_path / "out"
    segment(scan, out)
    (tmp_path / "private.txt").write_text("mine")
    (journal,) = (out / "journals").iterdir()
    journal.write_text(journal.read_text().replace("a_overlay.png", "../private.txt"))
    segment(scan, out, files=("mask",))
    assert (tmp_path / "private.txt").exists()


def test_an_interrupted_second_run_is_resumed_to_a_table_of_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(brain(tmp_path / "a.nii.gz"), out)
    scans = [brain(tmp_path / f"{name}.nii.gz", 2) for name in "bc"]

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_scans(BrightIsAbnormal(), PROCESSOR, scans, out, say=stop)
    assert read_journals(out).progress() == {"scans": 2, "done": 1, "failed": 0, "left": 1}
    predict_scans(BrightIsAbnormal(), PROCESSOR, scans, out, resume=True, say=lambda line: None)
    assert read_journals(out).progress() == {"scans": 2, "done": 2, "failed": 0, "left": 0}
    assert list(table(out)) == ["b", "c", "a"]


def test_memory_stays_flat_over_many_volumes(tmp_path: Path) -> None:
    scan = brain(tmp_path / "scan.nii.gz", shape=(64, 64, 12))
    scans = []
    for number in range(VOLUMES):
        scans.append(tmp_path / f"{number}_t2.nii.gz")
        scans[-1].symlink_to(scan)
    resident: list[int] = []

    def note(line: str) -> None:
        resident.append(psutil.Process().memory_info().rss)

    predict_scans(BrightIsAbnormal(), PROCESSOR, scans, tmp_path / "out", say=note)
    assert len(resident) == VOLUMES
    early, late = (np.median(part) for part in (resident[5:15], resident[-10:]))
    assert late < 1.05 * early


def test_a_volume_costs_fifteen_bytes_per_voxel_whatever_its_values(tmp_path: Path) -> None:
    data = np.full((192, 192, 160), -1, np.float32)  # a background that must be moved to 0
    data[8:-8, 8:-8] = np.random.default_rng(0).random((176, 176, 160))  # brain in every slice
    path = write_nifti(tmp_path / "scan.nii", data, np.diag([-1.0, -1.0, 1.0, 1.0]))
    size = data.size
    del data
    tracemalloc.start()
    volume = read_volume(path)
    found = predict_volume(BrightIsAbnormal(), PROCESSOR, volume, PredictionOptions(threshold=0.01))
    found = replace(found, spread=np.ones_like(found.scores))  # as noise samples add it
    write_prediction(found, volume, tmp_path / "out", "case")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.mask.mean() > 0.8  # the worst case of the largest connected part
    assert peak < BYTES_PER_VOXEL * size + 2**25
