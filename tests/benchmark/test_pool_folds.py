"""Finished benchmarks of several folds and seeds become one table, or are refused."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import benchmark, in_this_process

from modeling_rasalore.benchmark.finished import FinishedBenchmark, comparable
from modeling_rasalore.benchmark.output import failure_rows
from modeling_rasalore.benchmark.pictures import rank_patients, write_ranked_grid
from modeling_rasalore.benchmark.pooling import PoolRecipe, pool_folds
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.recipes import load_recipe

SYSTEMS = "systems=chance,threshold"
Results = dict[str, Any]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, two folds of them, and the finished benchmark of each: 1/ and 2/."""
    folder = tmp_path_factory.mktemp("study")
    write_phantoms(folder / "scans", 4, seed=3, healthy_patients=1, shape=(44, 54, 44),
                   voxel_size=4.0, processes=1)  # fmt: skip
    patients = find_patients(folder / "scans")
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        for fold in (1, 2):
            (folder / f"stage1_{fold}").mkdir()
            split = split_patients(patients, 0, validation=1, folds=2, fold=fold)
            write_split(split, folder / f"stage1_{fold}" / "split.json")
            score_fold(folder, fold, folder / str(fold))
    return folder


def score_fold(study: Path, fold: int, out: Path, *words: str) -> Path:
    benchmark([f"data.root={study / 'scans'}", "data.skip_slices=8", SYSTEMS,
                        f"stage1={study / f'stage1_{fold}'}", f"out={out}", *words])  # fmt: skip
    return out


def pool(out: Path, *folders: Path, **words: object) -> Results:
    listed = ",".join(str(folder) for folder in folders)
    told = [f"folders=[{listed}]", f"out={out}", *(f"{k}={v}" for k, v in words.items())]
    pool_folds(load_recipe(PoolRecipe, told))
    return dict(json.loads((out / "results.json").read_text()))


def results_of(folder: Path) -> Results:
    return dict(json.loads((folder / "results.json").read_text()))


def find(results: Results, system: str, view: str, threshold: str) -> dict[str, Any]:
    (row,) = [r for r in results["rows"] if (r["system"], r["view"], r["threshold"]) ==
              (system, view, threshold)]  # fmt: skip
    return row


@pytest.fixture
def copies(study: Path, tmp_path: Path) -> list[Path]:
    """Copies of the two benchmarks, to be changed."""
    return [Path(shutil.copytree(study / name, tmp_path / name)) for name in ("1", "2")]


def rewrite(folder: Path, path: str = "results.json", **meta: Any) -> None:
    content = json.loads((folder / path).read_text())
    content["meta"] |= meta
    (folder / path).write_text(json.dumps(content))


def rewrite_rows(folder: Path, stays: Callable[[dict[str, Any]], bool]) -> None:
    content = json.loads((folder / "results.json").read_text())
    content["rows"] = [row for row in content["rows"] if stays(row)]
    (folder / "results.json").write_text(json.dumps(content))


def test_every_patient_is_a_row_s_patient_once(study: Path, tmp_path: Path) -> None:
    folds = [results_of(study / name) for name in ("1", "2")]
    pooled = pool(tmp_path, study / "1", study / "2")
    everyone = sorted(p.patient_id for p in find_patients(study / "scans"))
    assert pooled["meta"]["test_patients"] == everyone
    assert pooled["meta"]["seeds"] == 1
    for system in ("chance", "threshold"):
        row = find(pooled, system, "volume", "0.5")
        assert row["patients"] == find(pooled, system, "volume", "label_free")["patients"] == 4
        apart = [find(fold, system, "volume", "0.5") for fold in folds]
        assert row["dice_by_patient"] == {
            patient: dice for found in apart for patient, dice in found["dice_by_patient"].items()
        }
    compared = pooled["meta"]["against_threshold"]
    assert {row["system"] for row in compared} == {"chance"}
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("Scored: 4 of 4 patients of `scans` (t2), each as a test patient, in 2")
    assert "| Chance | paper | oracle (no claim) | Intensity threshold | -" in text
    for picture in ("results.png", "results_grid.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


def test_patients_are_drawn_from_best_to_worst(study: Path, tmp_path: Path) -> None:
    asked = {"ranked_by": "threshold", "columns": "[chance]"}
    pooled = pool(tmp_path / "out", study / "1", study / "2", **asked)
    assert (tmp_path / "out" / "results_ranked.png").stat().st_size > 10_000
    precisions = rank_patients(pooled["rows"], "threshold")
    assert list(precisions.values()) == sorted(precisions.values(), reverse=True)
    row = find(pooled, "threshold", "paper", "0.5")
    slices = [row["average_precision_by_patient"][patient][1] for patient in precisions]
    mean = np.average([*precisions.values()], weights=slices)
    assert mean == pytest.approx(row["average_precision"])
    healthy = set(pooled["meta"]["test_patients"]) - set(precisions)
    assert len(precisions) == 3 and len(healthy) == 1  # without a lesion there is none to rank
    of_second = results_of(study / "2")["meta"]["test_patients"]
    folders = {p: study / ("2" if p in of_second else "1") for p in precisions}
    patients = {p.patient_id: p for p in find_patients(study / "scans")}
    drawn = partial(write_ranked_grid, tmp_path / "ranked.png", patients,
                    FinishedBenchmark(study / "1").data, pooled["rows"], folders)  # fmt: skip
    assert drawn("threshold", ["chance"]) == list(precisions)
    with pytest.raises(ValueError, match="one of chance, threshold, got 'mirror'"):
        drawn("mirror")


def test_systems_that_cannot_be_drawn_are_refused_before_anything_is_scored(
    study: Path, tmp_path: Path
) -> None:
    for asked in ({"ranked_by": "dae"}, {"ranked_by": "threshold", "columns": "[dae]"}):
        with pytest.raises(ValueError, match="columns take chance, threshold, got dae"):
            pool(tmp_path / "out", study / "1", study / "2", **asked)
    assert not (tmp_path / "out").exists()


def test_patients_of_other_folds_give_a_fold_its_threshold(study: Path, tmp_path: Path) -> None:
    folds = [results_of(study / name) for name in ("1", "2")]
    pooled = pool(tmp_path, study / "1", study / "2")
    needed = [find(fold, "chance", "paper", "0.5")["healthy_thresholds"] for fold in folds]
    assert [set(of_fold) for of_fold in needed] == [set(f["meta"]["test_patients"]) for f in folds]
    strictest = [max(of_fold.values()) for of_fold in reversed(needed)]
    assert pooled["meta"]["label_free_thresholds"]["chance"] == strictest
    row = find(pooled, "chance", "volume", "label_free")
    assert (row["promise"]["rank"], row["promise"]["scans"]) == (1, 2)
    assert "in at most 1 of 3 scans is more than 1 % of" in (tmp_path / "results.md").read_text()
    assert 0 <= row["scans_above_rate"] <= 1


def test_folds_without_thresholds_of_their_patients_keep_the_stated_one(
    copies: list[Path], tmp_path: Path
) -> None:
    for folder in copies:
        content = results_of(folder)
        rows = [row | {"healthy_thresholds": None, "promise": None} for row in content["rows"]]
        (folder / "results.json").write_text(json.dumps(content | {"rows": rows}))
    pooled = pool(tmp_path / "out", *copies)
    free = [find(results_of(f), "chance", "paper", "label_free")["threshold_value"] for f in copies]
    assert pooled["meta"]["label_free_thresholds"]["chance"] == free
    assert find(pooled, "chance", "volume", "label_free")["promise"] is None


def test_seeds_are_averaged_and_counted(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    others = [score_fold(study, fold, tmp_path / f"{fold}_again", "seed=5") for fold in (1, 2)]
    for other in others:  # chance has no part in the threshold: one seed tells it
        rewrite_rows(other, lambda row: row["system"] != "threshold")
    pooled = pool(tmp_path / "out", study / "1", study / "2", *others)
    assert pooled["meta"]["seeds"] == 2
    assert find(pooled, "threshold", "volume", "0.5")["patients"] == 4
    patient, (mean, _) = next(
        iter(find(pooled, "chance", "volume", "0.5")["dice_by_patient"].items())
    )
    seen = [
        found["dice_by_patient"][patient][0]
        for found in (find(results_of(f), "chance", "volume", "0.5") for f in
                      (study / "1", study / "2", *others))
        if patient in found["dice_by_patient"]
    ]  # fmt: skip
    assert len(seen) == 2 and seen[0] != seen[1]
    assert mean == pytest.approx(sum(seen) / 2)
    assert "seeds: 2, averaged" in (tmp_path / "out" / "results.md").read_text()
    with pytest.raises(ValueError, match=r"at each of the seeds \[0, 5\]"):
        pool(tmp_path / "out", study / "1", study / "2", others[0])


def test_runs_on_another_data_set_are_averaged_patient_by_patient(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    write_phantoms(tmp_path / "other", 2, seed=8, shape=(44, 54, 44), voxel_size=4.0, processes=1)
    words = (f"cross.root={tmp_path / 'other'}", "cross.modality=flair")
    outs = [
        score_fold(study, fold, tmp_path / str(fold), f"seed={fold}", *words) for fold in (1, 2)
    ]
    folders = [out / "cross" / "other" for out in outs]
    pooled = pool(tmp_path / "out", *folders)
    assert pooled["meta"]["averaged"] == 2
    assert len(pooled["meta"]["test_patients"]) == 2
    for system in ("chance", "threshold"):
        apart = [find(results_of(f), system, "volume", "label_free") for f in folders]
        dices = [found["dice_by_patient"] for found in apart]
        assert find(pooled, system, "volume", "label_free")["dice_by_patient"] == {
            patient: [pytest.approx((first + dices[1][patient][0]) / 2), 1]
            for patient, (first, _) in dices[0].items()
        }
        assert apart[0]["threshold_value"] != apart[1]["threshold_value"]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "2 patients of `other` (flair) in each of 2 runs that learned from `scans` (t2)" in text
    with pytest.raises(ValueError, match=r"is a test patient of .* at the seed 1; pool different"):
        pool(tmp_path / "out", folders[0], folders[0])
    with pytest.raises(ValueError, match="read other scans"):
        pool(tmp_path / "out", study / "1", folders[1])


def test_a_system_that_failed_in_one_fold_is_a_row_that_says_why(
    copies: list[Path], tmp_path: Path
) -> None:
    content = results_of(copies[1])
    content["rows"] = [row for row in content["rows"] if row["system"] == "threshold"]
    content["rows"] += failure_rows("chance", "Chance", "t2", "OSError: no luck")
    (copies[1] / "results.json").write_text(json.dumps(content))
    pooled = pool(tmp_path / "out", *copies)
    failures = {row["system"]: row["failure"] for row in pooled["rows"] if "failure" in row}
    assert failures == {"chance": f"{copies[1]} has none: OSError: no luck"}
    assert find(pooled, "threshold", "volume", "0.5")["patients"] == 4


def test_one_patient_in_two_runs_of_a_seed_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a test patient of .* at the seed 0"):
        pool(tmp_path, study / "1", study / "1")


def test_runs_of_other_scans_are_refused(copies: list[Path], tmp_path: Path) -> None:
    rewrite(copies[1], data_sha256="another")
    with pytest.raises(ValueError, match="read other scans"):
        pool(tmp_path / "out", *copies)


def test_runs_with_other_settings_are_refused(copies: list[Path], tmp_path: Path) -> None:
    path = copies[1] / "systems" / "threshold" / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "false_alarm_rate": 0.5}))
    with pytest.raises(ValueError, match=r"threshold in different ways: false_alarm_rate is 0.01"):
        pool(tmp_path / "out", *copies)


def test_what_is_no_finished_benchmark_is_refused(
    study: Path, copies: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="takes two folders or more"):
        pool(tmp_path, study / "1")
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        pool(tmp_path, study / "1", study / "scans")
    empty = {**results_of(copies[0]), "rows": failure_rows("chance", "Chance", "t2", "no luck")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "results.json").write_text(json.dumps(empty))
    with pytest.raises(ValueError, match=r"no system of .*empty has scores"):
        pool(tmp_path, study / "1", tmp_path / "empty")
    rewrite(copies[0], scored_on={"root": "elsewhere"})
    with pytest.raises(ValueError, match="scores another data set"):
        pool(tmp_path, *copies)
    shutil.rmtree(copies[1] / "systems" / "chance" / "scores")
    with pytest.raises(ValueError, match="is missing; delete its system's folder"):
        pool(tmp_path, study / "1", copies[1])


def test_folds_and_seeds_may_differ_in_nothing_else(tmp_path: Path) -> None:
    def settings(name: str, steps: int, **recipe: Any) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        loop = {"max_steps": steps, "seed": len(name)}
        made = {"out": name, "loop": loop, "split": {"fold": len(name), "folds": 4}, **recipe}
        (folder / "recipe.yaml").write_text(json.dumps(made))
        fields = {"heatmap": name, "temperature": len(name), "dropout": 0.1}
        (folder / "config.json").write_text(json.dumps(fields))
        masks = {"threshold": 0.5, "appearance": name, "split_sha256": name}
        summary = {"stage": "rasalore", "seconds": steps, "pseudo_masks": masks}
        return {"seed": len(name), "split_sha256": name, "data": {"root": name, "skip_slices": 8},
                str(folder): json.dumps(summary)}  # fmt: skip

    first, second = settings("a", 5), settings("bb", 5)
    assert comparable(first) == comparable(second)
    assert comparable(first)["model 1.config.dropout"] == 0.1
    assert comparable(first)["model 1.masks.sharpened"] is True
    assert comparable(first) != comparable(settings("ccc", 6))
    assert comparable(first) != comparable({**second, "data": {"root": "bb", "skip_slices": 9}})
