"""The training scripts: phantoms to scores, killed and resumed, on bad input.

Each is started once as a user starts it; all else runs in this process, through the same main.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from label_files import write_slice_labels
from safetensors.torch import load_file

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.pseudo_masks.table import MaskTable
from modeling_rasalore.recipes import run_script
from modeling_rasalore.scans.volumes import read_volume

ROOT = Path(__file__).parents[2]
STAGE1 = "hub_configs/ddpt-tiny/training.yaml"
STAGE2 = "hub_configs/rasalore-tiny/training.yaml"
SMALL = ["data.skip_slices=8", "data.shuffle_buffer=50", "loop.batch_size=8"]
SPLIT = ["split.validation=1", "split.test=2"]
PAINTED = ["minimum_area=1", "synthetic_lesions.minimum_brain_area=100"]
LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def command(script: str, *words: object) -> list[str]:
    launcher = LAUNCH if script in ("stage1", "stage2") else []
    return [sys.executable, *launcher, f"train/{script}.py", *map(str, words)]


def environment() -> dict[str, str]:
    """As many threads as here: they decide the order of sums, and so the last bits."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def start(script: str, *words: object) -> str:
    """What a script prints, started as a user starts it."""
    done = subprocess.run(
        command(script, *words),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(script: str, *words: object) -> str:
    """What a script prints, run in this process."""
    printed = StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        run_script(import_module(script).main, [*map(str, words)])
    assert ended.value.code is None, ended.value.code
    return printed.getvalue()


def error_of(script: str, *words: object) -> str:
    """The last line that a script refuses some words with."""
    with pytest.raises(SystemExit) as ended:
        run_script(import_module(script).main, [*map(str, words)])
    return str(ended.value.code).splitlines()[-1]


@pytest.fixture(scope="module", autouse=True)
def _own_accelerator() -> Iterator[None]:
    """Compute on the CPU, from this folder, and leave no accelerator to the next file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        patch.chdir(ROOT)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, 7, seed=3, healthy_patients=1, shape=(44, 54, 44), voxel_size=4.0,
                    processes=1)  # fmt: skip
    return folder


def learn(scans: Path, out: Path, run: Callable[..., str] = run) -> None:
    """Both stages, and the start on painted lesions, which stage 2's masks use as well."""
    data = f"data.root={scans}"
    run("stage1", STAGE1, data, f"out={out}/stage1", *SPLIT, *SMALL, "loop.max_steps=6")
    run("stage2", STAGE2, data, f"out={out}/warm_up", *SPLIT, *SMALL, *PAINTED,
        "synthetic_lesions.share=1", "loop.max_steps=3")  # fmt: skip
    run("make_pseudo_masks", f"stage1={out}/stage1", data, "data.skip_slices=8",
        f"out={out}/sharpened", f"appearance={out}/warm_up")  # fmt: skip
    segment(scans, out, "sharpened", "stage2")


def segment(scans: Path, out: Path, masks: str, name: str) -> None:
    """Stage 2 on a table of masks."""
    run("stage2", STAGE2, f"data.root={scans}", f"pseudo_masks={out}/{masks}", f"out={out}/{name}",
        *SMALL, *PAINTED, f"initial_weights={out}/warm_up", "loop.max_steps=6")  # fmt: skip


@pytest.fixture(scope="module")
def story(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage once, a few steps each; the order of `train/study.py`."""
    out = tmp_path_factory.mktemp("story")
    learn(scans, out, start)
    data = f"data.root={scans}"
    masks = ["stage1=" + str(out / "stage1"), data, "data.skip_slices=8"]
    run("make_pseudo_masks", *masks, f"out={out}/masks")
    run("make_pseudo_masks", *masks, f"out={out}/truth", "source=truth")
    segment(scans, out, "truth", "ceiling")
    start("run_benchmark", data, "data.skip_slices=8", f"out={out}/benchmark",
        f"synthetic_only={out}/warm_up",
        f"rasalore={out}/stage2",
        *(f"{name}={out}/{name}" for name in ("stage1", "ceiling")))  # fmt: skip
    return out


@pytest.mark.slow
def test_stage_2_goes_on_from_a_network_of_painted_lesions(
    scans: Path, story: Path, tmp_path: Path
) -> None:
    printed = run("stage2", STAGE2, f"data.root={scans}", f"pseudo_masks={story}/masks", *SMALL,
                  *PAINTED, f"out={tmp_path}/on", f"initial_weights={story}/warm_up",
                  "synthetic_lesions.share=0.5", "optimizer.learning_rate=0",
                  "loop.max_steps=1")  # fmt: skip
    total, with_mask = map(int, re.findall(r"training slices: (\d+), with a pseudo-mask: (\d+)",
                                           printed)[0])  # fmt: skip
    assert total == 2 * with_mask  # there are more healthy slices than unhealthy ones
    before, after = (
        load_file(f / "model.safetensors") for f in (story / "warm_up", tmp_path / "on")
    )
    learned = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert all(before[name].equal(after[name]) for name in learned)


@pytest.mark.slow
def test_what_lesions_look_like_changes_the_pseudo_masks(story: Path) -> None:
    split = json.loads((story / "masks" / "split.json").read_text())
    heat, sharpened = (MaskTable(story / name, split["train"]) for name in ("masks", "sharpened"))
    assert list(heat) == list(sharpened)
    assert any((heat[key].pseudo_mask != sharpened[key].pseudo_mask).any() for key in heat)
    made = json.loads((story / "stage2" / "run.json").read_text())["pseudo_masks"]
    assert made["appearance"] == str(story / "warm_up")


def test_a_start_that_knows_other_patients_is_refused(
    story: Path, scans: Path, tmp_path: Path
) -> None:
    other = split_patients(find_patients(scans), seed=99, validation=1, test=2)
    write_split(other, tmp_path / "split.json")
    words = [f"data.root={scans}", f"out={tmp_path}/out"]
    for script, start in (
        ("stage2", [STAGE2, f"pseudo_masks={story}/masks", f"initial_weights={tmp_path}"]),
        ("make_pseudo_masks", [f"stage1={story}/stage1", f"appearance={tmp_path}"]),
    ):
        assert "was trained on another split" in error_of(script, *start, *words)


@pytest.mark.slow
def test_painted_lesions_choose_the_weights_where_all_are_painted(story: Path) -> None:
    run_of = json.loads((story / "warm_up" / "run.json").read_text())
    assert run_of["criterion"] == "mean soft Dice with painted lesions of validation patients"
    assert run_of["pseudo_masks"] is None
    assert 0 < run_of["best_score"] < 1


def test_a_network_that_learns_from_pseudo_masks_needs_them(scans: Path) -> None:
    error = error_of("stage2", STAGE2, f"data.root={scans}", "out=x")
    assert error.startswith("error: stage 2 learns from pseudo-masks unless all lesions are")


def test_a_share_of_synthetic_lesions_above_one_is_refused(story: Path, scans: Path) -> None:
    error = error_of("stage2", STAGE2, f"data.root={scans}", f"pseudo_masks={story}/masks",
                     "out=x", "minimum_area=1", "synthetic_lesions.share=1.5")  # fmt: skip
    assert error == "error: synthetic_lesions.share must lie in [0, 1], got 1.5."


@pytest.mark.slow
def test_the_whole_story_ends_in_a_table_of_all_rows(story: Path) -> None:
    results = json.loads((story / "benchmark" / "results.json").read_text())
    systems = {row["system"] for row in results["rows"]}
    own = {"ddpt", "synthetic_only", "rasalore", "ceiling"}
    assert systems == {"chance", "threshold", "smoothed_rank", "mirror", *own}
    assert {(row["view"], row["threshold"]) for row in results["rows"]} == {
        (view, column) for view in ("paper", "volume") for column in ("0.5", "label_free", "oracle")
    }
    assert (story / "benchmark" / "results.png").stat().st_size > 10_000


@pytest.mark.slow
def test_no_patient_is_in_two_splits_and_every_stage_uses_one_split(story: Path) -> None:
    split = json.loads((story / "stage1" / "split.json").read_text())
    parts = [set(split[name]) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [4, 1, 2]
    assert len(set.union(*parts)) == 7
    for folder in ("masks", "sharpened", "truth", "warm_up", "stage2", "ceiling"):
        assert json.loads((story / folder / "split.json").read_text()) == split
    written = {path.stem for path in (story / "masks" / "masks").iterdir()}
    assert written == parts[0] | parts[1]


@pytest.mark.slow
def test_runs_say_how_they_were_made(story: Path) -> None:
    stage1 = json.loads((story / "stage1" / "run.json").read_text())
    assert set(stage1["deletion_scores"]) == {"cls_attention", "attention_rollout", "relevance"}
    best = max(stage1["deletion_scores"], key=stage1["deletion_scores"].get)
    assert stage1["heatmap"] == best
    ceiling = json.loads((story / "ceiling" / "run.json").read_text())
    assert ceiling["pseudo_masks"]["oracle"] is True
    assert ceiling["versions"]["torch"]
    assert json.loads((story / "stage2" / "config.json").read_text())["modality"] == "t2"


@pytest.mark.slow
def test_true_masks_reach_the_ceiling_table_unchanged(story: Path, scans: Path) -> None:
    patient_id = next(p.stem for p in sorted((story / "truth" / "masks").iterdir()))
    table = MaskTable(story / "truth", [patient_id])
    truth = read_volume(scans / patient_id / f"{patient_id}_seg.nii.gz").slices > 0
    for key in table:
        assert np.array_equal(table[key].pseudo_mask, truth[key[1]])


@pytest.mark.slow
def test_predict_writes_mask_and_scores_on_the_scan_s_own_grid(
    story: Path, scans: Path, tmp_path: Path
) -> None:
    scan = next(iter(sorted(scans.glob("*/*_t2.nii.gz"))))
    words = ["predict", scan, "--model", story / "stage2", "--out", tmp_path]
    program = [sys.executable, "-m", "modeling_rasalore.cli", *map(str, words)]
    subprocess.run(program, cwd=tmp_path, check=True, timeout=200)
    original = read_volume(scan)
    for path in tmp_path.rglob("*_scores.nii.gz"):
        written = read_volume(path)
        assert np.array_equal(written.affine, original.affine)
        assert written.slices.shape == original.slices.shape
    assert len(list(tmp_path.rglob("*.nii.gz"))) == 2
    assert len(list(tmp_path.rglob("*_overlay.png"))) == 1


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(story: Path, scans: Path) -> None:
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scan = sorted(scans.glob("*/*_t2.nii.gz"))[-1]
    for path, ours in (
        (r"runs/demo/phantoms/[^\"]+", scan),
        ("runs/demo/stage2", story / "stage2"),
    ):
        block = re.sub(path, str(ours), block)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) >= 0


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    story: Path, scans: Path, tmp_path: Path
) -> None:
    words = [STAGE2, f"data.root={scans}", f"pseudo_masks={story}/masks", *SMALL,
             "minimum_area=1", "loop.max_steps=14", "loop.checkpoint_every=3"]  # fmt: skip
    run("stage2", *words, f"out={tmp_path}/whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command("stage2", *words, f"out={killed}"),
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )
    until = time.monotonic() + 300
    while not list(killed.glob("checkpoints/step-*[0-9]")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "run.json").exists(), "the run ended before it could be killed"
    assert "going on from step" in run("stage2", *words, f"out={killed}")
    whole, resumed = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)
    before = (killed / "run.json").stat().st_mtime_ns
    assert "done before" in run("stage2", *words, f"out={killed}")
    assert before == (killed / "run.json").stat().st_mtime_ns


@pytest.mark.slow
def test_masks_already_made_are_kept_and_other_settings_are_refused(
    story: Path, scans: Path
) -> None:
    words = [f"stage1={story}/stage1", f"data.root={scans}", f"out={story}/masks"]
    before = {p: p.stat().st_mtime_ns for p in (story / "masks" / "masks").iterdir()}
    run("make_pseudo_masks", *words, "data.skip_slices=8")
    assert before == {p: p.stat().st_mtime_ns for p in (story / "masks" / "masks").iterdir()}
    message = error_of("make_pseudo_masks", *words, "data.skip_slices=8", "threshold=0.7")
    assert "other settings" in message


@pytest.mark.slow
def test_a_prompted_segmenter_s_masks_reach_stage_2(
    story: Path, scans: Path, sam_folder: Path, tmp_path: Path
) -> None:
    data = f"data.root={scans}"
    run("make_pseudo_masks", f"stage1={story}/stage1", data, "data.skip_slices=8",
        f"out={tmp_path}/masks", f"segmenter={sam_folder}", "prompt=points")  # fmt: skip
    split = json.loads((tmp_path / "masks" / "split.json").read_text())
    table = MaskTable(tmp_path / "masks", split["train"])
    assert all(table[key].sam_mask is not None for key in table)
    run("stage2", STAGE2, data, f"pseudo_masks={tmp_path}/masks", f"out={tmp_path}/stage2",
        *SMALL, "minimum_area=1", "loop.max_steps=3")  # fmt: skip
    summary = json.loads((tmp_path / "stage2" / "run.json").read_text())
    assert summary["pseudo_masks"]["segmenter"] == str(sam_folder)


@pytest.mark.slow
def test_slice_labels_alone_give_the_weights_that_masks_give(
    story: Path, scans: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    for patient in find_patients(scans):
        (bare / patient.patient_id).mkdir(parents=True)
        for path in patient.images.values():
            (bare / patient.patient_id / path.name).symlink_to(path)
    write_slice_labels(find_patients(scans), bare / "slice_labels.csv")
    assert not list(bare.rglob("*_seg*"))
    learn(bare, tmp_path)
    for stage in ("stage1", "warm_up", "stage2"):
        ours, theirs = (load_file(p / stage / "model.safetensors") for p in (tmp_path, story))
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in theirs), stage


def test_a_folder_without_scans_is_one_clear_error(tmp_path: Path) -> None:
    words = [STAGE1, f"data.root={tmp_path}", f"out={tmp_path}/out"]
    message = error_of("stage1", *words)
    assert message.startswith("error: ")
    assert "BraTS" in message
    script = [sys.executable, "train/stage1.py", *words]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == message


def test_an_unknown_recipe_key_names_the_nearest(tmp_path: Path) -> None:
    message = error_of("stage2", STAGE2, "loop.epoch=3", f"out={tmp_path}/out")
    assert message == "error: unknown recipe key 'loop.epoch'; the nearest is 'loop.epochs'."


def test_a_labels_file_that_names_an_unknown_volume_is_refused(scans: Path, tmp_path: Path) -> None:
    for patient in find_patients(scans)[:3]:
        (tmp_path / patient.patient_id).symlink_to(scans / patient.patient_id)
    (tmp_path / "slice_labels.csv").write_text("volume,slice_index,label\nnobody,3,healthy\n")
    message = error_of("stage1", STAGE1, f"data.root={tmp_path}", f"out={tmp_path}/out")
    assert "nobody" in message


def test_patients_without_any_healthy_slice_are_refused(scans: Path, tmp_path: Path) -> None:
    rows = ["volume,slice_index,label"]
    for patient in find_patients(scans):
        (tmp_path / patient.patient_id).symlink_to(scans / patient.patient_id)
        rows += [f"{patient.patient_id},{index},unhealthy" for index in range(10, 30)]
    (tmp_path / "slice_labels.csv").write_text("\n".join(rows) + "\n")
    message = error_of("stage1", STAGE1, f"data.root={tmp_path}", f"out={tmp_path}/out", *SPLIT,
                       "data.skip_slices=8")  # fmt: skip
    assert "got 0 and" in message
