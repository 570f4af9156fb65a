"""Findings as the Space tells them: where, how large, in which order, below which warning."""

from typing import Any

import numpy as np
import pytest

from modeling_rasalore.prediction.volume import (
    VolumePrediction,
)

pytest.importorskip("gradio")
from analysis import Analysis
from findings import locate_findings, position_in_words
from words import write_findings, write_result

HEAD = (slice(0, 9), slice(0, 9), slice(0, 9))  # a brain that fills its scan


def test_findings_by_hand() -> None:
    mask = np.zeros((4, 5, 5), np.uint8)
    mask[0, 0, 0] = 1
    mask[1:3, 3, 3:5] = 1
    mask[3, 4, 4] = 1  # touches the second finding by a corner
    scores = np.where(mask, 0.8, 0).astype(np.float32)
    scores[0, 0, 0] = 1
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    prediction = VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {}, affine)
    rows = locate_findings(prediction, (slice(0, 4), slice(0, 5), slice(0, 5)))
    assert rows == [
        {
            "millilitres": 5,
            "mean_score": pytest.approx(0.8),
            "position": "left, back, middle third",
            "centre_mm": [18.0, 32.0, 36.0],
            "lowest_slice": 1,
            "highest_slice": 3,
            "slice": 2,
            "point_mm": [20, 30, 40],  # the voxel nearest to its centre
        },
        {
            "millilitres": 1,
            "mean_score": 1,
            "position": "right, front, lower third",
            "centre_mm": [0.0, 0.0, 0.0],
            "lowest_slice": 0,
            "highest_slice": 0,
            "slice": 0,
            "point_mm": [0, 0, 0],
        },
    ]


def test_findings_are_ordered_by_volume_times_score() -> None:
    mask = np.zeros((1, 1, 6), np.uint8)
    mask[0, 0, :3] = mask[0, 0, 4:] = 1
    scores = np.array([[[0.51, 0.51, 0.51, 0, 0.99, 0.99]]], np.float32)
    prediction = VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {})
    rows = locate_findings(prediction, (slice(0, 1), slice(0, 1), slice(0, 6)))
    assert [row["millilitres"] for row in rows] == [2, 3]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([0, 0, 0], "right, front, lower third"),
        ([8, 8, 8], "left, back, upper third"),
        ([4, 4, 8], "left, centre, middle third"),
        ([3, 2, 3], "right, front, middle third"),
    ],
)
def test_a_position_is_told_in_words(index: list[int], words: str) -> None:
    assert position_in_words(np.array([index]), HEAD) == words


def test_a_finding_across_the_midline_lies_on_both_sides() -> None:
    across = np.array([[0, 0, column] for column in range(3, 7)])  # two of four on either side
    assert position_in_words(across, HEAD).startswith("both sides, ")
    mostly_left = np.array([[0, 0, column] for column in range(4, 9)])  # one of five is not
    assert position_in_words(mostly_left, HEAD).startswith("left, ")


def row_of(millilitres: float) -> dict[str, Any]:
    """A finding as reports have it."""
    where = {"position": "left, back, upper third", "slice": 3, "point_mm": [1, 2, 3]}
    return {"millilitres": millilitres, "mean_score": 0.75, **where}


def test_findings_below_one_millilitre_are_folded() -> None:
    rows, others = [row_of(2.0), row_of(1.0), *[row_of(0.5)] * 3], {"count": 4, "millilitres": 0.3}
    shown = write_findings({"findings": rows, "smaller_findings": others})
    large, _, small = shown.partition("<details>")
    assert (large.count("<tr data-point"), small.count("<tr data-point")) == (2, 3)
    assert "7 small ones, under 1 mL each, 1.8 mL together" in small
    assert 'data-point="1,2,3" data-slice="3"' in large
    only = write_findings(
        {"findings": [row_of(0.5)], "smaller_findings": {"count": 0} | {"millilitres": 0}}
    )
    assert "<details open>" in only and "1 small one," in only
    assert "does not exclude disease" in write_findings({"findings": []})


def test_what_forbids_to_rely_on_a_result_stands_above_every_number(analysis: Analysis) -> None:
    report = analysis.report(0.5, "given")
    told = report | {"unfit_because": ["it is <t2>."], "warnings": ["a note.", "it is <t2>."]}
    html = write_result(told)
    assert html.index("Do not rely on this result") < html.index(" mL marked")
    assert html.count("it is &lt;t2&gt;.") == 1 and "<li>a note.</li>" in html
    assert "unfit" not in write_result(report | {"unfit_because": []})


def test_a_report_lists_a_bounded_number_of_findings_and_adds_up_the_others() -> None:
    mask = np.zeros((2, 200, 200), np.uint8)
    mask[:, ::2, ::2] = 1  # 10,000 parts of two voxels, none touching another
    mask[0, :3, :3] = 1  # and one of 12: four of them, joined
    prediction = VolumePrediction(mask * 0.5, mask, 0.5, (10.0, 10.0, 10.0), {})
    rows = locate_findings(prediction, (slice(0, 2), slice(0, 200), slice(0, 200)))
    others = prediction.findings[1]
    assert len(rows) == 1000
    assert (rows[0]["millilitres"], rows[1]["millilitres"]) == (13, 2)
    assert (others["count"], others["millilitres"]) == (8997, 2 * 8997)
    assert sum(row["millilitres"] for row in rows) + others["millilitres"] == mask.sum()
