"""The whole line on toy scans and in a few steps: its table, its resuming, what it refuses."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from label_files import write_slice_labels
from small_study import TWO_STEPS, studying_here

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.studies import study
from modeling_rasalore.studies.judging import view_of
from modeling_rasalore.studies.recipe import StudyRecipe

ROOT = Path(__file__).parents[2]
GRID: dict[str, Any] = {"shape": (44, 54, 44), "voxel_size": 4.0, "processes": 1}
SHORT = [
    *("phantoms.patients=5", "phantoms.healthy=1", "phantoms.shape=[44,54,44]"),
    *("phantoms.voxel_size=4", "phantoms.validation=1", "phantoms.test=1", "data.skip_slices=12"),
    *TWO_STEPS,
]


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with studying_here():
        yield


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients of other names than the study's own synthetic ones."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, 5, seed=7, healthy_patients=1, **GRID)
    for path in sorted(folder.rglob("*phantom*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("phantom", "0")))
    return folder


@pytest.fixture
def unmasked(strangers: Path, tmp_path: Path) -> Path:
    """The same patients with slice labels in place of masks."""
    folder = tmp_path / "unmasked"
    for patient in find_patients(strangers):
        (folder / patient.patient_id).mkdir(parents=True)
        scan = patient.images["t2"]
        (folder / patient.patient_id / scan.name).write_bytes(scan.read_bytes())
    write_slice_labels(find_patients(strangers), folder / "slice_labels.csv")
    return folder


def run(out: Path, *words: str) -> Path:
    """Run a short study to its end, on synthetic patients that are there already."""
    told = load_recipe(StudyRecipe, [f"out={out}", *SHORT, *words])
    inside = "seed0/start" if told.folds else "start" if told.data.root else ""
    write_phantoms(out / inside / "phantoms", 5, 0, 1, **GRID)
    return study.run_study(told)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "results.json").read_text())["rows"])


def scored(out: Path) -> set[str]:
    return {row["system"] for row in rows_of(out) if row["dice"] is not None}


def patients_of(out: Path) -> list[str]:
    return list(json.loads((out / "results.json").read_text())["meta"]["test_patients"])


def test_real_scans_start_on_synthetic_patients_and_end_in_a_table(
    strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path, f"data.root={strangers}")
    assert {"ddpt", "synthetic_only", "rasalore", "ceiling"} <= scored(out)
    assert "BraTS2021_phantom" in (out / "start/stage1/split.json").read_text()
    assert all(name.startswith("BraTS2021_0") for name in patients_of(out))
    assert list((out / "prediction").rglob("*_mask.nii.gz"))
    printed = capsys.readouterr().out
    assert "step 6 of 12: stage 1 on real slice labels (" in printed
    assert f"Everything is in {out}: results.md, " in printed


def test_folds_score_every_patient_once_and_other_data_sets_each_time(
    strangers: Path, tmp_path: Path
) -> None:
    own, others = "threshold,mirror,rasalore_control,rasalore,ceiling", tmp_path / "others"
    write_phantoms(others, 1, seed=4, **GRID)
    told = f"data.root={strangers}", f"systems={own}", f"cross=[{others}]", "selftrained=true"
    out = run(tmp_path / "out", *told, "folds=2")
    for data, pooled in ((strangers, "pooled"), (others, "pooled/cross/others")):
        assert scored(out / pooled) == set(own.split(","))
        assert patients_of(out / pooled) == sorted(p.name for p in data.iterdir())
        meta = json.loads((out / pooled / "results.json").read_text())["meta"]
        assert {row["system"] for row in meta["against_control"]} == {"rasalore", "ceiling"}
        assert len(meta["against_mirror"]) > len(meta["against_control"])
        table = (out / pooled / "results.md").read_text()
        for other in ("Control of RASALoRE (painted lesions alone)", "Smoothed rank and mirror"):
            assert f"| RASALoRE | paper | 0.5 | {other} |" in table


def test_without_masks_a_study_ends_in_criteria_that_need_none(
    unmasked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "others"
    write_phantoms(others, 1, seed=4, **GRID)
    words = [f"data.root={unmasked}", "poster=true", f"cross=[{others}]", "systems=rasalore"]
    out = run(tmp_path / "out", *words)
    printed = capsys.readouterr().out
    assert "left out: the ceiling, for BraTS2021_0" in printed
    assert "left out: the table of scores, for BraTS2021_0" in printed
    choices = (out / "choices.md").read_text()
    assert all(f"{folder}" in choices for folder in ("start/stage2", "out/stage2", "poster"))
    assert not (out / "results.json").exists() and not (out / "ceiling").exists()
    assert scored(out / "cross" / "others") == {"rasalore"}  # whose masks are there
    assert list((out / "prediction").rglob("*_mask.nii.gz"))


# --- Interrupted ----------------------------------------------------------------------------------
SYSTEMS = "systems=synthetic_only,rasalore"


def kill_once(there: Callable[[], bool], words: list[str]) -> None:
    """Start a study and kill it as soon as something is there; its helper ends with it."""
    process = subprocess.Popen(
        [sys.executable, "train/study.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while process.poll() is None and not there():
        time.sleep(0.01)
    process.kill()
    printed, _ = process.communicate(timeout=60)  # until whoever writes there is gone
    assert process.returncode < 0, printed.decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study on synthetic patients that nothing interrupted."""
    return run(tmp_path_factory.mktemp("whole"), SYSTEMS)


@pytest.mark.slow
def test_a_study_that_was_killed_twice_ends_in_the_same_table(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    write_phantoms(out / "phantoms", 5, 0, 1, **GRID)
    words = [f"out={out}", *SHORT, SYSTEMS]
    kill_once((out / "warm_up" / "checkpoints" / "step-0000001").exists, words)
    kill_once((out / "stage2" / "checkpoints" / "step-0000001").exists, words)
    run(out, SYSTEMS)

    def numbers(folder: Path) -> list[dict[str, Any]]:
        cost = ("seconds", "peak_mib", "scoring_seconds", "scoring_peak_mib")
        return [{k: v for k, v in row.items() if k not in cost} for row in rows_of(folder)]

    assert numbers(out) == numbers(whole)


def test_what_is_finished_is_not_done_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    monkeypatch.setattr("modeling_rasalore.training.stage1.train", None)
    monkeypatch.setattr("modeling_rasalore.training.stage2.train", None)
    run(whole, SYSTEMS)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == written


# --- Refused before anything is made --------------------------------------------------------------
@pytest.mark.parametrize(
    ("preset", "view"), [("rasalore-base", "scan"), ("rasalore-tiny", "slice")]
)
def test_competing_systems_see_what_the_preset_sees(preset: str, view: str) -> None:
    assert view_of(preset) == view


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.modality=t3"], "data.modality must be t1, t1ce, t2, flair, got 't3'"),
        (["folds=4"], "folds and seeds are of real scans; give data.root"),
        (["preset=ddpt-tiny"], "preset must be one of stage 2, rasalore..., got 'ddpt-tiny'"),
        (["preset=rasalore-huge"], "presets are ddpt, .* got 'rasalore-huge'"),
        (["systems=rasalore,unet"], "systems are all, own, or any of chance, .* got 'unet'"),
        (["systems=rasalore_with_sam"], "rasalore_with_sam needs the folder of a trained model"),
        (["cross=[nowhere]"], "nowhere"),
        (["data.root=nowhere"], "nowhere"),
        (["data.root=SCANS", "data.modality=all"], "data.modality must be t1, t1ce, t2, flair"),
        (["data.root=SCANS", "folds=9"], "split.folds must be 2 to the number of patients, 5"),
        (["data.root=SCANS", "seeds=[1,1]"], "seeds must differ and folds be 0 or more, got .1, 1"),
        (["data.root=UNMASKED", "data.modality=flair"], "every patient needs a flair scan, but"),
        (["data.root=UNMASKED", "systems=unet"], "systems are all, own, .* got 'unet'"),
        (["cross=[UNMASKED]"], "scoring needs a mask of every scored patient"),
        (["stage2=[loop.max_stepz=3]"], "unknown recipe key 'loop.max_stepz'"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_sentence(
    words: list[str], message: str, strangers: Path, unmasked: Path, tmp_path: Path
) -> None:
    places = {"SCANS": str(strangers), "UNMASKED": str(unmasked)}
    for name, folder in places.items():
        words = [word.replace(name, folder) for word in words]
    with pytest.raises(ValueError, match=message):
        study.run_study(load_recipe(StudyRecipe, [f"out={tmp_path / 'out'}", *words]))
    assert not (tmp_path / "out").exists()
