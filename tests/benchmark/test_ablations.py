"""Ablations repeat a run with one part changed, and are rows of the benchmark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf
from small_ddpt import TRAINED, make_model
from small_study import benchmark, in_this_process, run_stage2, write_study

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor
from modeling_rasalore.benchmark import ablations
from modeling_rasalore.benchmark.ablations import (
    CHANGES,
    STAGE1_HEATMAPS,
    ChangedNetwork,
    KindOfHeatmap,
    choose_ablations,
    prepare_ablation,
)
from modeling_rasalore.benchmark.recipe import BenchmarkRecipe
from modeling_rasalore.benchmark.running import score_row
from modeling_rasalore.benchmark.slices import HeldOut
from modeling_rasalore.models.network_rasalore import LocationEmbeddings
from modeling_rasalore.pseudo_masks.rule import SCALING, PseudoMaskRule
from modeling_rasalore.training.stage2 import Stage2Recipe, train_stage2

FEW = ["loop.max_steps=1", "loop.tensorboard=false"]
NAME = "half_the_points_per_side"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy study with a warm-up and the run that starts from it, one step each."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "1")
        words = [str(folder / "training.yaml"), f"data.root={folder / 'scans'}", *FEW]
        run_stage2([*words, f"out={folder / 'warm_up'}"])
        run_stage2([*words, f"out={folder / 'whole'}", f"initial_weights={folder / 'warm_up'}"])
        yield folder
    AcceleratorState._reset_state(reset_partial_state=True)


def config_of(folder: Path, **fields: Any) -> Path:
    """A finished run's folder, as far as a choice of ablations looks at it."""
    RasaloreConfig.preset("tiny", **fields).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"pseudo_masks": {"segmenter": None}}))
    return folder


def test_ablations_that_change_nothing_are_left_out(tmp_path: Path) -> None:
    found = choose_ablations("all", str(config_of(tmp_path)))
    same = {
        "locations_random",
        "noise_gaussian",
        "loss_without_sam",
    }  # its masks are no segmenter's
    assert set(found) == set(CHANGES) - same | set(STAGE1_HEATMAPS)
    with pytest.raises(ValueError, match="already is what the ablation noise_gaussian"):
        choose_ablations("noise_gaussian", str(tmp_path))
    with pytest.raises(ValueError, match="got 'noise'"):
        choose_ablations("noise", str(tmp_path))
    with pytest.raises(ValueError, match="repeat a finished run"):
        choose_ablations("all", "")
    assert choose_ablations("", "") == []


def test_every_ablation_changes_its_own_fields_only(tmp_path: Path) -> None:
    fields = ablations.read_config(config_of(tmp_path))
    for name, change in CHANGES.items():
        new = ablations.changed(fields, name)
        assert {key for key in new if new[key] != fields[key]} <= change.keys()
    assert ablations.changed(fields, "half_the_refiner_grid")["refiner_grid"] == 8
    assert ablations.changed(fields, "loss_of_other_form")["decoder_loss"] == "el_tversky"


def test_a_network_that_cannot_be_built_is_said_so(tmp_path: Path) -> None:
    config_of(tmp_path, grid_size=128)
    with pytest.raises(ValueError, match=r"twice_the_points_per_side of .* cannot be built"):
        prepare_ablation("twice_the_points_per_side", tmp_path, tmp_path / "out")


def test_an_ablation_repeats_the_run_and_its_start_and_is_a_row(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Stage2Recipe] = []

    def train(recipe: Stage2Recipe) -> Path:
        started.append(recipe)
        return train_stage2(recipe)

    monkeypatch.setattr(ablations, "train_stage2", train)
    in_this_process(monkeypatch)
    whole, out = runs / "whole", tmp_path / "benchmark"
    words = [f"data.root={runs / 'scans'}", "data.skip_slices=1", f"stage1={whole}"]
    words += [f"rasalore={whole}", f"out={out}", "systems=rasalore", f"ablation={NAME}"]
    benchmark(words)
    assert len(started) == 2  # the warm-up, then the run that starts from it
    made = out / "ablations" / NAME
    assert RasaloreConfig.from_pretrained(made).grid_size == 4
    ours, theirs = (OmegaConf.load(folder / "recipe.yaml") for folder in (made, whole))
    assert ours.initial_weights == str(made / "start")
    differs = {key for key in theirs if ours[key] != theirs[key]}
    assert differs == {"model", "out", "initial_weights"}
    results = json.loads((out / "results.json").read_text())
    assert {row["system"] for row in results["rows"]} == {"rasalore", NAME}
    compared = results["meta"]["ablations_against_whole"]
    assert {row["reference"] for row in compared} == {"rasalore"}
    assert {row["system"] for row in compared} == {NAME}
    benchmark(words)
    assert len(started) == 2  # nothing is trained again


@pytest.fixture
def stage1_run(runs: Path, tmp_path: Path) -> Path:
    """A toy stage 1 of the study's split, as train/stage1.py leaves it."""
    folder = tmp_path / "stage1"
    make_model(**TRAINED, heatmap="attention_rollout").save_pretrained(folder)
    RasaloreImageProcessor(32, 3).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"seconds": 1.0}))
    shutil.copy(runs / "whole" / "split.json", folder)
    return folder


def test_every_kind_of_heatmap_is_a_row_without_any_training(
    runs: Path, stage1_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    words = [f"data.root={runs / 'scans'}", "data.skip_slices=1", f"stage1={stage1_run}"]
    words += [f"out={tmp_path / 'out'}", "systems=ddpt"]
    benchmark([*words, f"ablation={','.join(STAGE1_HEATMAPS)}"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row.get("failure") for row in results["rows"]] == [None] * len(results["rows"])
    dices = {row["system"]: row["dice"] for row in results["rows"] if row["threshold"] == "0.5"}
    assert list(dices) == ["ddpt", *STAGE1_HEATMAPS]
    assert dices["ddpt_attention_rollout"] == dices["ddpt"]  # the kind that this run chose
    compared = results["meta"]["ablations_against_whole"]
    assert {row["reference"] for row in compared} == {"ddpt"}
    assert {row["system"] for row in compared} == set(STAGE1_HEATMAPS)


def test_a_kind_of_heatmap_has_its_own_scaling_and_the_masks_threshold(
    stage1_run: Path, tmp_path: Path
) -> None:
    made = {"scaling": "geometric", "threshold": 0.3, "filter_reach": 0.1}
    (tmp_path / "run.json").write_text(json.dumps({"pseudo_masks": made}))
    recipe = BenchmarkRecipe(stage1=str(stage1_run), rasalore=str(tmp_path))
    for name, kind in STAGE1_HEATMAPS.items():
        system = KindOfHeatmap(name).make(recipe)
        assert system.model.config.heatmap == kind
        assert system.rule == PseudoMaskRule(SCALING[kind], 0.3, 0.1)


def test_an_ablation_that_fails_is_a_row_that_says_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recipe: Stage2Recipe) -> Path:
        raise ValueError("the loss became nan")

    monkeypatch.setattr(ablations, "train_stage2", fail)
    in_this_process(monkeypatch)
    row = ChangedNetwork("noise_none", str(runs / "whole"), str(tmp_path / "noise_none"))
    recipe = BenchmarkRecipe(out=str(tmp_path), stage1="")
    rows = score_row(row, recipe, {}, HeldOut([], recipe.data))
    assert [row["view"] for row in rows] == ["paper", "volume"]
    assert rows[0]["failure"] == "ValueError: the loss became nan"


def test_aliased_locations_repeat_as_in_the_released_code() -> None:
    tables = {
        kind: LocationEmbeddings(RasaloreConfig(location_embeddings=kind)).make_table()
        for kind in ("random", "aliased", "none")
    }
    # A row counts once: none before it is the same, but for rounding.
    distinct = {
        kind: sum(not ((rows[:k] - rows[k]).abs().amax(1) < 1e-3).any() for k in range(len(rows)))
        for kind, rows in tables.items()
    }
    assert distinct == {"random": 1024, "aliased": 256, "none": 1}
