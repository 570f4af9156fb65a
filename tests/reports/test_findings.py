"""Findings by hand: their order, volume, place, and the planes that show the first of them."""

import numpy as np
import pytest

from modeling_rasalore.reports.findings import (
    count_large,
    locate_main_finding,
    measure_findings,
)

AFFINE = np.array([[0, 0, -2.0, 10], [0, -3, 0, 20], [5, 0, 0, 30], [0, 0, 0, 1]])


def small_scan() -> tuple[np.ndarray, np.ndarray]:
    """A faint part of 4 voxels, a certain one of 3, and a single voxel that touches nothing."""
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[1, 1, 1:5] = 1
    mask[3:5, 4, 2] = mask[4, 5, 3] = 1  # the last touches by a corner
    mask[0, 5, 6] = 1
    scores = np.zeros(mask.shape, np.float32)
    scores[1], scores[3:], scores[0] = 0.5, 0.75, 1
    return mask, scores


def test_findings_are_ordered_by_volume_times_mean_score() -> None:
    rows, others = measure_findings(*small_scan(), 500.0, AFFINE)
    assert others == {"count": 0, "millilitres": 0}
    assert [row["millilitres"] for row in rows] == [1.5, 2.0, 0.5]  # 3 of 0.75 before 4 of 0.5
    assert [row["mean_score"] for row in rows] == [0.75, 0.5, 1]
    assert [(row["lowest_slice"], row["highest_slice"]) for row in rows] == [(3, 4), (1, 1), (0, 0)]
    # Slice 11 / 3, row 13 / 3, column 7 / 3; columns go to -x, rows to -y, slices to z.
    assert rows[0]["centre_mm"] == [round(10 - 14 / 3, 1), 7.0, round(30 + 55 / 3, 1)]
    assert count_large(rows) == 2


def test_what_has_no_row_is_counted() -> None:
    rows, others = measure_findings(*small_scan(), 500.0, most=1)
    assert [row["millilitres"] for row in rows] == [1.5] and "centre_mm" not in rows[0]
    assert others == {"count": 2, "millilitres": 2.5}


def test_an_empty_mask_has_no_findings() -> None:
    mask, scores = small_scan()
    assert measure_findings(mask * 0, scores, 1.0) == ([], {"count": 0, "millilitres": 0})
    assert locate_main_finding(mask * 0, scores) is None


def test_the_planes_cut_most_of_the_finding_that_comes_first() -> None:
    assert locate_main_finding(*small_scan()) == (4, 4, 2)
    ring = np.zeros((3, 9, 9), np.uint8)
    ring[1, 2:7, 2:7] = 1
    ring[1, 3:6, 3:6] = 0  # its centre is healthy
    index, row, column = locate_main_finding(ring, ring.astype(np.float32)) or (0, 0, 0)
    assert (index, row, column) == (1, 2, 2) and ring[index, row, column]


def test_findings_are_the_same_wherever_the_mask_lies() -> None:
    generator = np.random.default_rng(0)
    mask = (generator.random((6, 9, 8)) < 0.1).astype(np.uint8)
    scores = generator.random(mask.shape).astype(np.float32)
    moved = [np.pad(array, ((2, 0), (0, 3), (4, 0))) for array in (mask, scores)]
    rows, shifted = (measure_findings(*pair, 1.0)[0] for pair in ((mask, scores), moved))
    assert len(rows) > 3
    for row, other in zip(rows, shifted, strict=True):
        assert other["lowest_slice"] == row["lowest_slice"] + 2
        assert other["mean_score"] == pytest.approx(row["mean_score"])
    assert sum(row["millilitres"] for row in rows) == pytest.approx(mask.sum() / 1000)
