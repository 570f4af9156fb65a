"""Agreement of two labellers against numbers worked out by hand."""

import json
from math import isnan
from pathlib import Path

import numpy as np
import pytest

from modeling_rasalore.labelling.agreement import (
    Agreement,
    cohens_kappa,
    compare_tables,
    describe_agreement,
)

HEADER = "volume,slice_index,label\n"


def write(path: Path, **volumes: str) -> Path:
    """A table: per volume a letter per slice, h healthy, u unhealthy, - without label."""
    words = {"h": "healthy", "u": "unhealthy"}
    rows = [
        f"{name},{index},{words[letter]}\n"
        for name, letters in volumes.items()
        for index, letter in enumerate(letters)
        if letter != "-"
    ]
    path.write_text(HEADER + "".join(rows))
    return path


def test_kappa_by_hand() -> None:
    # 20 of 50 and 15 of 50 agree; expected (25/50)(30/50) + (25/50)(20/50) = 0.5
    assert cohens_kappa(np.array([[[20.0, 5], [10, 15]]]))[0] == pytest.approx(0.4)


def test_kappa_of_full_no_and_opposite_agreement() -> None:
    tables = np.array([[[5.0, 0], [0, 5]], [[5, 5], [5, 5]], [[0, 5], [5, 0]]])
    assert cohens_kappa(tables).tolist() == pytest.approx([1, 0, -1])


def test_kappa_is_not_defined_where_both_use_one_label() -> None:
    assert isnan(Agreement(np.array([[7, 0], [0, 0]]), 0).kappa)


def test_slices_of_one_table_alone_are_counted_and_not_compared(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", ann="hhuu-", bob="hh")
    second = write(tmp_path / "b.csv", ann="hhuhu", cid="u")
    told = compare_tables(first, second)
    assert told["ann"].counts.tolist() == [[2, 0], [1, 1]]
    assert [(name, told[name].slices, told[name].only_one) for name in sorted(told)] == [
        ("ann", 4, 1),
        ("bob", 0, 2),
        ("cid", 0, 1),
    ]


def test_the_text_has_shares_kappa_its_interval_and_who_says_more(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", ann="hhuu", bob="hhhh")
    second = write(tmp_path / "b.csv", ann="hhuh", bob="hhhh")
    text = describe_agreement(first, second)
    assert "| ann | 4 | 0 | 75.0% | 0.50 |" in text
    assert "agreement on 87.5% of 8 slices that both labelled" in text
    # observed 7/8, expected (7/8)(6/8) + (1/8)(2/8) = 44/64: (56 - 44) / (64 - 44) = 0.6
    assert "Cohen's kappa 0.60 [0.50, 0.60], 95 % over scans" in text
    assert "unhealthy in a.csv only: 1 slices\nunhealthy in b.csv only: 0 slices" in text


def test_scans_labelled_with_help_are_said(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", ann="hu")
    marks = {"shown": [0, 1], "lesion": [[1, 1]], "unsure": [], "begun": None, "complete": True}
    line = {"action": "finish", "volume": "ann", "suggestion": True, "marks": marks}
    (tmp_path / "a.journal.jsonl").write_text(json.dumps(line) + "\n")
    text = describe_agreement(first, write(tmp_path / "b.csv", ann="hu"))
    assert "a.csv: 1 scans were labelled after the model's suggestion was shown" in text


def test_tables_without_a_common_slice_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", ann="h-"), write(tmp_path / "b.csv", ann="-h")
    with pytest.raises(ValueError, match="label no slice in common"):
        compare_tables(first, second)
