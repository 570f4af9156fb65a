"""Files appear complete or not at all."""

import json
from pathlib import Path

import pytest

from modeling_rasalore.files import replace_file, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text("old")

    def write_half(draft: Path) -> None:
        draft.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_draft_has_the_ending_that_chooses_the_format(tmp_path: Path) -> None:
    names: list[str] = []

    def write(draft: Path) -> None:
        names.append(draft.name)
        draft.touch()

    assert replace_file(tmp_path / "scan.nii.gz", write).exists()
    assert names[0].endswith("scan.nii.gz")


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    assert json.loads(write_json(tmp_path / "a.json", {"dice": 0.5}).read_text()) == {"dice": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"dice": float("nan")})
    assert not (tmp_path / "b.json").exists()
