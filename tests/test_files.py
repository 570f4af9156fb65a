"""Files appear complete or not at all."""

import json
import ntpath
from pathlib import Path, PureWindowsPath

import pytest

from modeling_rasalore.files import (
    claim_folder,
    common_folder,
    first_line,
    replace_file,
    require_writable,
    write_json,
)


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


def test_a_folder_that_takes_no_files_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert require_writable(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out needs a folder .*file/c: not a directory; name"):
        require_writable(tmp_path / "file" / "c")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)  # as a folder of somebody else does
    with pytest.raises(ValueError, match=r"out= needs a folder that .*: permission denied; name"):
        require_writable(tmp_path, "out=")


def test_a_folder_with_plans_alone_is_taken_over_by_other_settings(tmp_path: Path) -> None:
    claim_folder(tmp_path / "out", {"threshold": 0.5}, "masks")
    (tmp_path / "out" / "split.json").write_text("{}")
    (tmp_path / "out" / ".123-a.parquet").write_text("half")  # as a kill leaves it
    claim_folder(tmp_path / "out", {"threshold": 0.7}, "masks")
    (tmp_path / "out" / "masks").mkdir()
    (tmp_path / "out" / "masks" / "a.parquet").write_text("whole")
    claim_folder(tmp_path / "out", {"threshold": 0.7}, "masks")
    with pytest.raises(ValueError, match="holds masks made with other settings"):
        claim_folder(tmp_path / "out", {"threshold": 0.5}, "masks")


def test_what_the_system_says_of_a_file_begins_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        (tmp_path / "run.json").read_text()
    assert first_line(error.value) == f"{tmp_path}/run.json: no such file or directory."
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(MemoryError()) == "MemoryError"


def test_folders_on_two_drives_have_no_folder_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_rasalore.files.os.path.commonpath", ntpath.commonpath)
    with pytest.raises(ValueError, match="must lie on one drive; start one run for each"):
        common_folder([PureWindowsPath("C:/scans"), PureWindowsPath("D:/scans")])  # type: ignore[list-item]
