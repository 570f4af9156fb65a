"""Rows of two systems compared patient by patient, and results.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_scores import SHAPE, evaluate, find, make_patient

from modeling_rasalore.evaluation.rows import Row, compare_rows, write_results


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return evaluate(*(make_patient(name) for name in "abcd"))


def test_a_system_does_not_differ_from_itself(rows: list[Row]) -> None:
    same = compare_rows(find(rows, "paper"), find(rows, "paper"))
    bounds = same["dice_difference_low"], same["dice_difference_high"]
    assert (same["dice_difference"], *bounds) == (0.0, 0.0, 0.0)


def test_a_paired_difference_is_the_difference_of_the_means(rows: list[Row]) -> None:
    row, reference = find(rows, "paper", "label_free"), find(rows, "paper")
    found = compare_rows(row, reference)
    assert found["dice_difference"] == pytest.approx(row["dice"] - reference["dice"])
    assert found["dice_difference_low"] <= found["dice_difference"] <= found["dice_difference_high"]
    assert found["reference"] == "ae"
    # One and the same map: its ranking does not depend on the threshold.
    assert [found[f"average_precision_difference{end}"] for end in ("", "_low", "_high")] == [0] * 3


def test_average_precision_is_compared_where_both_rows_have_it(rows: list[Row]) -> None:
    patients = [make_patient("a"), make_patient("b")]
    faint = [make_patient(p.patient_id, scores=p.scores * (p.scores < 0.5)) for p in patients]
    clean, noisy = (find(evaluate(*group), "paper") for group in (patients, faint))
    found = compare_rows(clean, noisy)
    expected = clean["average_precision"] - noisy["average_precision"]
    assert found["average_precision_difference"] == pytest.approx(expected)
    assert found["average_precision_difference_low"] <= expected
    volume = compare_rows(find(rows, "volume"), find(rows, "volume"))
    assert volume["average_precision_difference"] is None


def test_rows_of_other_patients_or_views_are_not_compared() -> None:
    single = np.zeros(SHAPE, bool)
    single[7, 8:20, 8:20] = True  # one slice, so that both views hold one value
    found = evaluate(make_patient("a", truth=single))
    other = evaluate(make_patient("b", truth=single))
    for reference in (find(other, "paper"), find(found, "volume")):
        with pytest.raises(ValueError, match="same patients"):
            compare_rows(find(found, "paper"), reference)


def test_lesions_too_small_for_the_view_have_no_difference() -> None:
    small = np.zeros(SHAPE, bool)
    small[7, 8:10, 8:10] = True  # 16 mm2
    paper = find(evaluate(make_patient("a", truth=small)), "paper")
    found = compare_rows(paper, paper)
    assert (found["dice_difference"], found["average_precision_difference"]) == (None, None)


def test_results_are_written_with_null_for_nan(tmp_path: Path) -> None:
    rows: list[Row] = [{"dice": np.float32(0.5), "auroc": np.nan, "edges": np.array([1, np.inf])}]
    path = write_results(tmp_path / "new" / "results.json", {"patients": np.int64(3)}, rows)
    expected = {"patients": 3}, [{"dice": 0.5, "auroc": None, "edges": [1.0, None]}]
    assert tuple(json.loads(path.read_text()).values()) == expected
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_former_results(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", {"run": 1}, [])
    with pytest.raises(TypeError):
        write_results(path, {"run": object()}, [])
    assert json.loads(path.read_text())["meta"] == {"run": 1}
