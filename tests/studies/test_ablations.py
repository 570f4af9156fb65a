"""Ablations repeat a run with one part changed, and are rows of the benchmark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blobs  # noqa: F401 - puts train/ on the path
import pytest

# isort: split
import run_benchmark
from accelerate.state import AcceleratorState
from baselines import ablations
from baselines.ablations import CHANGES, STAGE1_HEATMAPS, choose_ablations, prepare_ablation
from baselines.registry import Sources, build
from baselines.trained import HeatmapOfKind
from omegaconf import OmegaConf
from small_ddpt import TRAINED, make_model
from small_study import in_this_process, run_stage2, write_study

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor
from modeling_rasalore.models.attention_rasalore import LocationEmbeddings
from modeling_rasalore.pseudo_masks.rule import SCALING, PseudoMaskRule

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
    started: list[list[str]] = []

    def run(command: list[Any], **_: Any) -> SimpleNamespace:
        started.append(command[2:])
        run_stage2(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run, PIPE=-1))
    in_this_process(monkeypatch, run_benchmark)
    whole, out = runs / "whole", tmp_path / "benchmark"
    words = [f"data.root={runs / 'scans'}", "data.skip_slices=1", f"stage1={whole}"]
    words += [f"stage2={whole}", f"out={out}", "systems=rasalore_without_sam", f"ablation={NAME}"]
    run_benchmark.main(words)
    assert len(started) == 2  # the warm-up, then the run that starts from it
    made = out / "ablations" / NAME
    assert RasaloreConfig.from_pretrained(made).grid_size == 4
    ours, theirs = (OmegaConf.load(folder / "recipe.yaml") for folder in (made, whole))
    assert ours.initial_weights == str(made / "start")
    differs = {key for key in theirs if ours[key] != theirs[key]}
    assert differs == {"model", "out", "initial_weights"}
    results = json.loads((out / "results.json").read_text())
    assert {row["system"] for row in results["rows"]} == {"rasalore_without_sam", NAME}
    compared = results["meta"]["ablations_against_whole"]
    assert {row["reference"] for row in compared} == {"rasalore_without_sam"}
    assert {row["system"] for row in compared} == {NAME}
    run_benchmark.main(words)
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
    in_this_process(monkeypatch, run_benchmark)
    words = [f"data.root={runs / 'scans'}", "data.skip_slices=1", f"stage1={stage1_run}"]
    words += [f"out={tmp_path / 'out'}", "systems=ddpt"]
    run_benchmark.main([*words, f"ablation={','.join(STAGE1_HEATMAPS)}"])
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
    none = dict.fromkeys(("synthetic_only", "stage2_with_sam", "ceiling"), "")
    sources = Sources(
        stage1=str(stage1_run), stage2=str(tmp_path), sam="", medsam="", medsam2="",
        size="small", seed=0, ablations=dict.fromkeys(STAGE1_HEATMAPS, str(stage1_run)), **none,
    )  # fmt: skip
    for name, kind in STAGE1_HEATMAPS.items():
        system = build(name, sources)
        assert isinstance(system, HeatmapOfKind)
        assert system.model.config.heatmap == kind
        assert system.rule == PseudoMaskRule(SCALING[kind], 0.3, 0.1)


def test_an_ablation_that_fails_is_a_row_that_says_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = SimpleNamespace(returncode=1, stderr="warning\nerror: the loss became nan")
    calls = SimpleNamespace(run=lambda *_, **__: failed, PIPE=-1)
    monkeypatch.setattr(ablations, "subprocess", calls)
    recipe = run_benchmark.BenchmarkRecipe(
        out=str(tmp_path), stage1="", stage2=str(runs / "whole"), ablation="noise_none"
    )
    rows = run_benchmark.rows_of("noise_none", recipe, {}, None)
    assert [row["view"] for row in rows] == ["paper", "volume"]
    assert rows[0]["failure"].endswith("ended with code 1: error: the loss became nan")


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
