"""Runs of several folds and seeds in one table: folds add patients, seeds are averaged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from small_scores import SHAPE, make_patient

from modeling_rasalore.evaluation.patient_scores import PatientScores
from modeling_rasalore.evaluation.rows import (
    Row,
    ScoredRun,
    Thresholds,
    compare_rows,
    evaluate_runs,
)

COST = ("seconds", "peak_mib", "weights")


def run(names: str, label_free: float | None = 0.37, seed: int = 0, noise: int = 0) -> ScoredRun:
    """A run of patients by their letters; `noise` tells the maps of two seeds apart."""
    return ScoredRun([noisy(name, noise) for name in names], Thresholds(label_free, 0.02), seed)


def noisy(name: str, noise: int) -> PatientScores:
    patient = make_patient(name)
    added = np.random.default_rng(noise).uniform(0, 0.3 * bool(noise), SHAPE)
    return make_patient(name, scores=np.clip(patient.scores + added, 0, 1))


def evaluate(*runs: ScoredRun) -> list[Row]:
    return evaluate_runs("ae", runs, "t2", seed=1)


def find(rows: Sequence[Row], view: str, threshold: str) -> Row:
    (row,) = [row for row in rows if (row["view"], row["threshold"]) == (view, threshold)]
    return row


def without_source(rows: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "threshold_source"} for row in rows]


def test_folds_of_one_threshold_are_scored_as_if_they_were_one_test_set() -> None:
    pooled = evaluate(run("ab"), run("cde"))
    assert without_source(pooled) == without_source(evaluate(run("abcde")))
    assert "of all runs" in find(pooled, "paper", "oracle")["threshold_source"]


def test_each_fold_keeps_its_own_label_free_threshold() -> None:
    folds = run("ab", 0.2), run("cd", 0.6)
    pooled = evaluate(*folds)
    for view in ("paper", "volume"):
        found = find(pooled, view, "label_free")
        apart = [find(evaluate(fold), view, "label_free")["dice_by_patient"] for fold in folds]
        assert found["dice_by_patient"] == apart[0] | apart[1]
        assert found["threshold_value"] is None
        assert "of each run" in found["threshold_source"]
        assert find(pooled, view, "0.5")["threshold_value"] == 0.5


def test_a_fold_without_a_label_free_threshold_takes_the_column_away() -> None:
    pooled = evaluate(run("ab", None), run("cd"))
    assert {row["threshold"] for row in pooled} == {"0.5", "oracle"}


def test_the_oracle_is_one_threshold_for_all_folds() -> None:
    pooled = find(evaluate(run("ab", 0.2), run("cd", 0.6)), "paper", "oracle")
    together = find(evaluate(run("abcd", None)), "paper", "oracle")
    assert pooled["threshold_value"] == together["threshold_value"]
    apart = [find(evaluate(run(names)), "paper", "oracle") for names in ("ab", "cd")]
    assert pooled["dice"] <= np.average(
        [r["dice"] for r in apart], weights=[r["slices"] for r in apart]
    )


def test_seeds_are_averaged_patient_by_patient() -> None:
    seeds = run("abc", 0.2), run("abc", 0.4, seed=1, noise=1)
    pooled, *apart = evaluate(*seeds), evaluate(seeds[0]), evaluate(seeds[1])
    for view in ("paper", "volume"):
        for threshold in ("0.5", "label_free"):
            row, *others = (find(rows, view, threshold) for rows in (pooled, *apart))
            assert (row["patients"], row["slices"]) == (3, others[0]["slices"])
            for name in ("dice", "average_precision", "average_precision_brain", "auroc"):
                assert row[name] == pytest.approx(np.mean([other[name] for other in others]))
            for patient, (mean, count) in row["dice_by_patient"].items():
                seen = [other["dice_by_patient"][patient] for other in others]
                assert [mean, count] == [pytest.approx(np.mean([s[0] for s in seen])), seen[0][1]]
    volume = find(pooled, "volume", "0.5")
    assert volume["expected_calibration_error_low"] <= volume["expected_calibration_error_high"]


def test_a_seed_that_repeats_another_changes_nothing() -> None:
    once, twice = evaluate(run("abc")), evaluate(run("abc"), run("abc", seed=7))
    for row, other in zip(without_source(once), without_source(twice), strict=True):
        assert row == {
            name: pytest.approx(value) if isinstance(value, float) else value
            for name, value in other.items()
        }


def test_pooled_rows_are_compared_patient_by_patient() -> None:
    first = find(evaluate(run("ab", 0.2), run("cd", 0.6)), "paper", "label_free")
    second = find(evaluate(run("ab", 0.3, noise=1), run("cd", 0.5, noise=1)), "paper", "label_free")
    compared = compare_rows(first, second)
    assert compared["dice_difference"] == pytest.approx(first["dice"] - second["dice"])
    assert compared["patients"] == 4


def test_maps_of_a_generator_are_kept() -> None:
    lazily = ScoredRun(iter(run("ab").patients), Thresholds(0.37, 0.02))
    assert evaluate(lazily) == evaluate(run("ab"))


def test_a_patient_twice_at_one_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="got b in test and test"):
        evaluate(run("ab"), run("bc"))


def test_a_patient_that_lacks_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at each of the seeds \[0, 1\], but c is at 1 of them"):
        evaluate(run("abc"), run("ab", seed=1))


def test_seeds_with_another_truth_are_refused() -> None:
    changed = make_patient("a", truth=make_patient("b").truth)
    with pytest.raises(ValueError, match="must show the same slices of a"):
        evaluate(run("a"), ScoredRun([changed], Thresholds(0.37, 0.02), 1))
