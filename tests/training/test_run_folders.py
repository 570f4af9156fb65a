"""Folders of runs: what failed before it had a result blocks nothing, what has one is kept."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import small_ddpt
from small_study import run_stage2, write_scans, write_study

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.cli import main
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training import loop
from modeling_rasalore.training.run import RunFolder
from modeling_rasalore.training.stage1 import Stage1Recipe, train_stage1

pytestmark = pytest.mark.usefixtures("own_accelerator")
SHORT = ["loop.tensorboard=false", "loop.checkpoint_every=2", "loop.evaluate_every=100"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy scans with pseudo-masks and a toy model."""
    return write_study(tmp_path_factory.mktemp("study"))


def stage2_words(study: Path, out: Path, *more: str) -> list[str]:
    return [str(study / "training.yaml"), f"data.root={study / 'scans'}", f"out={out}", *SHORT,
            *more]  # fmt: skip


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run be interrupted in the middle of a step."""
    real = loop.learn

    def learn(run: RunFolder, *arguments: Any) -> Any:
        if run.progress.step == steps:
            raise KeyboardInterrupt
        return real(run, *arguments)

    monkeypatch.setattr(loop, "learn", learn)


def test_a_run_that_failed_before_its_first_step_blocks_no_other_recipe(
    study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="lion"):
        run_stage2(stage2_words(study, out, "loop.max_steps=1", "optimizer.name=lion"))
    assert (out / "recipe.yaml").exists() and (out / "work_list.parquet").exists()
    run_stage2(stage2_words(study, out, "loop.max_steps=2"))
    assert json.loads((out / "run.json").read_text())["steps"] == 2
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run_stage2(stage2_words(study, out, "loop.max_steps=3"))


def test_a_run_with_a_checkpoint_blocks_its_folder_and_inspect_says_how_far_it_came(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, length = tmp_path / "run", "loop.max_steps=4"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run_stage2(stage2_words(study, out, length))
    assert main(["inspect", str(out)]) == 0
    assert "it ended after its slices were listed before its first checkpoint" in (
        capsys.readouterr().out
    )
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run_stage2(stage2_words(study, out, length))
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert (facts["step"], facts["last_step"]) == (2, 4)
    assert "is that of step 2 of 4 (50%)" in facts["state"]
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        run_stage2(stage2_words(study, out, "loop.max_steps=3"))
    run_stage2(stage2_words(study, out, length))
    assert main(["inspect", str(out)]) == 0
    assert "state: finished" in capsys.readouterr().out


def test_corrected_labels_are_read_when_a_failed_run_is_started_again(tmp_path: Path) -> None:
    """The slices that the failed start had listed are not those of the corrected file."""
    scans = write_scans(tmp_path / "scans", 4)
    for mask in scans.rglob("*_seg.nii.gz"):
        mask.unlink()
    small_ddpt.small_config(**small_ddpt.TRAINED).save_pretrained(tmp_path / "model")
    RasaloreImageProcessor(32, 3).save_pretrained(tmp_path / "model")
    words = [f"model={tmp_path / 'model'}", f"data.root={scans}", f"out={tmp_path / 'run'}", *SHORT,
             "split.validation=1", "split.test=1", "loop.max_steps=1", "loop.batch_size=4",
             "heatmap_slices=2"]  # fmt: skip
    recipe = load_recipe(Stage1Recipe, words)
    write_labels(scans, ["healthy"])
    with pytest.raises(ValueError, match="training needs healthy and unhealthy slices"):
        train_stage1(recipe)
    write_labels(scans, ["healthy", "unhealthy"])
    train_stage1(recipe)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["label_counts"]["1"] > 0


def test_a_finished_run_refuses_other_patients_masks_and_labels(tmp_path: Path) -> None:
    folder, out = write_study(tmp_path / "study"), tmp_path / "run"
    words = stage2_words(folder, out, "loop.max_steps=1")
    run_stage2(words)
    split = (out / "split.json").read_bytes()
    weights = (out / "model.safetensors").read_bytes()

    def refusal() -> str:
        with pytest.raises(ValueError, match=r"give out=<another folder>, or delete it") as error:
            run_stage2(words)
        assert (out / "split.json").read_bytes() == split
        assert (out / "model.safetensors").read_bytes() == weights
        return str(error.value)

    masks = folder / "masks"
    parts = json.loads((masks / "split.json").read_text())
    table = masks / "masks" / f"{parts['train'][0]}.parquet"
    kept = table.read_bytes(), (masks / "split.json").read_bytes()
    table.write_bytes((masks / "masks" / f"{parts['train'][1]}.parquet").read_bytes())
    assert "of other pseudo-masks or initial weights than there are now" in refusal()
    table.write_bytes(kept[0])
    patients = find_patients(folder / "scans")
    write_split(split_patients(patients, 1, validation=2, test=1), masks / "split.json")
    assert "of other patients than there are now" in refusal()
    (masks / "split.json").write_bytes(kept[1])
    write_labels(folder / "scans", ["healthy", "unhealthy"])
    assert "begun before slice_labels.csv changed, at slice" in refusal()
    (folder / "scans" / "slice_labels.csv").unlink()
    run_stage2(words)


def write_labels(scans: Path, labels: list[str]) -> None:
    with (scans / "slice_labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("volume", "slice_index", "label"))
        for folder in sorted(path for path in scans.iterdir() if path.is_dir()):
            for index in range(14):
                rows.writerow((folder.name, index, labels[index % len(labels)]))


def test_what_no_run_left_is_told_with_the_way_on(study: Path, tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(ValueError) as error:
            run_stage2(stage2_words(study, tmp_path / "run", "loop.max_steps=1",
                                    f"pseudo_masks={folder}"))  # fmt: skip
        return str(error.value)

    unfinished = tmp_path / "masks"
    unfinished.mkdir()
    assert refusal(unfinished).startswith(f"{unfinished}/split.json: there is no such file; every")
    split = (study / "masks" / "split.json").read_text()
    (unfinished / "split.json").write_text(split)
    assert "no run.json; start that again with the same words" in refusal(unfinished)


def test_a_backbone_that_is_nowhere_is_told_with_the_way_on(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", 4)
    config = small_ddpt.small_config(base_model_name_or_path="nobody/clip")
    config.save_pretrained(tmp_path / "model")
    RasaloreImageProcessor(32, 3).save_pretrained(tmp_path / "model")
    words = [f"model={tmp_path / 'model'}", f"data.root={scans}", f"out={tmp_path / 'run'}", *SHORT,
             "split.validation=1", "split.test=1", "loop.max_steps=1"]  # fmt: skip
    with pytest.raises(ValueError, match="starts from the backbone nobody/clip") as error:
        train_stage1(load_recipe(Stage1Recipe, words))
    assert "pass model=<that folder>" in str(error.value)
    assert not (tmp_path / "run").exists()  # told before anything is listed


def test_thick_slices_are_all_used_where_nothing_is_said(tmp_path: Path) -> None:
    """14 slices, of which 15 from either end would leave none."""
    folder = write_study(tmp_path)
    recipe = json.loads((folder / "training.yaml").read_text())
    del recipe["data"]["skip_slices"]
    (folder / "training.yaml").write_text(json.dumps(recipe))
    run_stage2(stage2_words(folder, tmp_path / "run", "loop.max_steps=1"))
    with pytest.raises(ValueError, match=r"skip_slices=15 leaves none of the 14 .*=auto"):
        run_stage2(stage2_words(folder, tmp_path / "b", "loop.max_steps=1", "data.skip_slices=15"))
