"""Whether learning from labels helped, by a paired interval over patients, in one sentence."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modeling_rasalore.evaluation.rows import Row, compare_rows
from modeling_rasalore.studies.recipe import (
    HEALTHY_SLICES,
    NOTHING,
    PSEUDO_MASKS,
    StudyRecipe,
)
from modeling_rasalore.studies.report import (
    html_table,
    judge_learning,
    paper_row,
    threshold_lines,
)


def row(system: str, *precisions: float, threshold: str = "0.5") -> Row:
    by_patient = {f"p{number}": [value, 4] for number, value in enumerate(precisions)}
    facts = {"view": "paper", "threshold": threshold, "modality": "t2", "patients": len(precisions)}
    names = ("dice_by_patient", "average_precision_by_patient")
    return {"system": system, **facts, **dict.fromkeys(names, by_patient)}


def study_of(folder: Path, rows: list[Row], **fields: Any) -> tuple[StudyRecipe, list[Any]]:
    """A study with finished scores, and its one run."""
    (folder / "results.json").write_text(json.dumps({"meta": {}, "rows": rows}))
    run = SimpleNamespace(
        out=folder, start=folder / "start/stage2", unscored=[], learns_from=PSEUDO_MASKS
    )
    for name in ("unscored", "learns_from"):
        setattr(run, name, fields.pop(name, getattr(run, name)))
    study = StudyRecipe(out=str(folder), preset="rasalore-base", **{"start": "scans", **fields})
    run.line = SimpleNamespace(study=study)
    return study, [run]


FREE = [row("smoothed_rank", 0.1, 0.2, 0.1, 0.2), row("mirror", 0.55, 0.7, 0.8, 0.5)]
BETTER = [*FREE, row("synthetic_only", 0.5, 0.6, 0.7, 0.4), row("rasalore", 0.6, 0.72, 0.78, 0.5)]


def test_labels_that_help_all_patients_beat_the_start(tmp_path: Path) -> None:
    study, runs = study_of(tmp_path, BETTER)
    verdict = judge_learning(study, runs, tmp_path / "model")
    assert verdict.model == tmp_path / "model"
    assert verdict.sentence.startswith(
        "Learning from these labels beat the start on painted lesions: average precision +10.0 "
    )
    assert "over 4 test patients" in verdict.sentence
    low = compare_rows(BETTER[3], BETTER[2], study.seed)["average_precision_difference_low"]
    assert f"95 % interval {100 * low:+.1f} to" in verdict.sentence and low > 0
    # Of both maps that learn nothing the stronger one counts: by 5, 2, -2 and 0 points.
    assert "It does not beat smoothed intensity and its mirror image" in verdict.sentence
    assert "average precision +1.2 points" in verdict.sentence


def test_a_network_above_both_free_maps_says_so(tmp_path: Path) -> None:
    weak = [row("smoothed_rank", 0.1, 0.2, 0.1, 0.2), row("mirror", 0.2, 0.2, 0.2, 0.2)]
    study, runs = study_of(tmp_path, [*weak, *BETTER[2:]])
    sentence = judge_learning(study, runs, tmp_path / "model").sentence
    assert "It beats smoothed intensity and its mirror image, which learns nothing" in sentence


def test_an_interval_around_0_says_to_use_the_start(tmp_path: Path) -> None:
    rows = [*FREE, row("synthetic_only", 0.5, 0.6, 0.7, 0.4), row("rasalore", 0.7, 0.5, 0.71, 0.3)]
    study, runs = study_of(tmp_path, rows)
    verdict = judge_learning(study, runs, tmp_path / "model")
    assert verdict.model == tmp_path / "start/stage2"
    assert "did not beat the start" in verdict.sentence
    assert f"rasalore predict with --model {verdict.model}" in verdict.sentence


def test_the_package_s_own_weights_need_no_model_to_be_named(tmp_path: Path) -> None:
    worse = row("package", 0.5, 0.6, 0.7, 0.6), row("rasalore", 0.4, 0.5, 0.6, 0.5)
    rows = [*FREE, *worse]
    study, runs = study_of(tmp_path, rows, start="package")
    verdict = judge_learning(study, runs, tmp_path / "model")
    assert verdict.model is None
    assert "Use the package's own weights: rasalore predict without --model." in verdict.sentence


def test_few_patients_are_judged_by_the_network_of_their_healthy_slices(tmp_path: Path) -> None:
    scored = row("package", 0.5, 0.6, 0.7, 0.6), row("rasalore_control", 0.5, 0.59, 0.71, 0.6)
    at_threshold = [
        row(name, *dices, threshold="label_free")
        for name, dices in (
            ("package", (0.3, 0.4, 0.2, 0.3)),
            ("rasalore_control", (0.5, 0.5, 0.45, 0.5)),
        )
    ]
    rows = [*FREE, *scored, *at_threshold]
    study, runs = study_of(tmp_path, rows, start="package", learns_from=HEALTHY_SLICES)
    verdict = judge_learning(study, runs, tmp_path / "model")
    assert verdict.model == tmp_path / "model"
    assert "fewer patients to learn from than fuse_from=20" in verdict.sentence
    assert "beat the package's own weights: average precision +0.0 points" in verdict.sentence
    assert "Dice at the threshold of healthy slices +18.8 points" in verdict.sentence


def test_what_is_better_at_a_threshold_and_ranks_worse_beats_nothing(tmp_path: Path) -> None:
    scored = row("package", 0.5, 0.6, 0.7, 0.6), row("rasalore", 0.4, 0.5, 0.6, 0.5)
    at_threshold = [
        row("package", 0.3, 0.4, 0.2, 0.3, threshold="label_free"),
        row("rasalore", 0.5, 0.5, 0.45, 0.5, threshold="label_free"),
    ]
    rows = [*FREE, *scored, *at_threshold]
    study, runs = study_of(tmp_path, rows, start="package")
    assert judge_learning(study, runs, tmp_path / "model").model is None


def test_one_test_patient_decides_nothing(tmp_path: Path) -> None:
    free = row("smoothed_rank", 0.2), row("mirror", 0.3)
    study, runs = study_of(tmp_path, [*free, row("synthetic_only", 0.1), row("rasalore", 0.9)])
    verdict = judge_learning(study, runs, tmp_path / "model")
    assert "cannot be told: an interval needs two test patients" in verdict.sentence


def test_lesions_too_small_to_be_scored_decide_nothing(tmp_path: Path) -> None:
    systems = ("smoothed_rank", "mirror", "synthetic_only", "rasalore")
    study, runs = study_of(tmp_path, [row(system) for system in systems])
    sentence = judge_learning(study, runs, tmp_path / "model").sentence
    assert "cannot be told: an interval needs two test patients with a lesion of more" in sentence
    assert "and there are 0. Nor what it is worth: no test slice has a lesion of" in sentence


def test_without_masks_or_with_few_patients_nothing_is_claimed(tmp_path: Path) -> None:
    study, runs = study_of(tmp_path, [], unscored=["p1"])
    assert (
        "is not known: no test patient has a mask" in judge_learning(study, runs, tmp_path).sentence
    )
    study, runs = study_of(tmp_path, [], learns_from=NOTHING)
    sentence = judge_learning(study, runs, tmp_path).sentence
    assert "No network learned from these labels" in sentence and "fuse_from=20" in sentence


def test_a_row_that_was_not_scored_is_named() -> None:
    failed = row("rasalore", 0.5) | {"failure": "killed"}
    with pytest.raises(ValueError, match="rasalore has no scores"):
        paper_row([row("mirror", 0.5), failed], "rasalore")


def test_a_table_of_markdown_becomes_one_of_html() -> None:
    table = html_table("| System | Dice |\n| --- | ---: |\n| a & b | 71.2 [65.0, 77.3] |\n")
    assert "<th>System</th><th>Dice</th>" in table
    assert "<td>a &amp; b</td><td>71.2 [65.0, 77.3]</td>" in table


def test_a_model_without_thresholds_says_so(tmp_path: Path) -> None:
    assert "false alarms are not known" in threshold_lines(tmp_path)[0]
