"""Where results go where nobody says so: beside the scans, and never over anything."""

import os
import sys
from pathlib import Path

import pytest

from modeling_rasalore.commands.places import make_results_folder
from modeling_rasalore.provenance import JOURNALS


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        (["p/a.nii.gz"], "p/a_rasalore"),
        (["p/series.zip"], "p/series_rasalore"),
        (["p"], "p_rasalore"),
        (["p/a.nii.gz", "p/b.nii", "p/c.nii"], "p/a_and_2_more_rasalore"),
        (["p/a.nii.gz", "q/a.nii.gz"], "a_and_1_more_rasalore"),
    ],
)
def test_results_lie_beside_what_was_given(tmp_path: Path, scans: list[str], expected: str) -> None:
    paths = [tmp_path / scan for scan in scans]
    for path in paths:
        if path.suffix:
            touch(path)
    (tmp_path / "p").mkdir(exist_ok=True)
    assert make_results_folder(paths, resume=False) == tmp_path / expected
    assert (tmp_path / expected).is_dir()


def test_a_dot_is_the_folder_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path / "scans")
    assert make_results_folder([Path(".")], resume=False) == tmp_path / "scans_rasalore"


def test_what_is_there_is_left_alone_but_for_an_empty_folder(tmp_path: Path) -> None:
    scan = touch(tmp_path / "a.nii.gz")
    first = make_results_folder([scan], resume=False)
    assert make_results_folder([scan], resume=False) == first  # nothing is in it
    touch(first / "notes.txt")
    touch(tmp_path / "a_rasalore_2")  # a file
    third = make_results_folder([scan], resume=False)
    assert third.name == "a_rasalore_3"


def test_resume_goes_on_in_the_last_run_and_begins_where_there_is_none(tmp_path: Path) -> None:
    scan = touch(tmp_path / "a.nii.gz")
    for number in ("", "_2", "_3"):
        touch(tmp_path / f"a_rasalore{number}" / "x")
    assert make_results_folder([scan], resume=True).name == "a_rasalore_4"
    (tmp_path / "a_rasalore" / JOURNALS).mkdir()
    (tmp_path / "a_rasalore_2" / JOURNALS).mkdir()
    assert make_results_folder([scan], resume=True).name == "a_rasalore_2"


def test_a_scan_that_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder; correct the name"):
        make_results_folder([tmp_path / "p" / "a.nii.gz"], resume=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a read-only folder")
def test_a_read_only_folder_says_out(tmp_path: Path) -> None:
    scan = touch(tmp_path / "p" / "a.nii.gz")
    scan.parent.chmod(0o555)
    with pytest.raises(ValueError, match="Say where they go with --out FOLDER"):
        make_results_folder([scan], resume=False)


def test_a_folder_that_cannot_be_made_says_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    scan = touch(tmp_path / "a.nii.gz")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"a_rasalore: permission denied\. Say where .* --out"):
        make_results_folder([scan], resume=False)
