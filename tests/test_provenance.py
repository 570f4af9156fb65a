"""What a folder of results says of itself."""

import json
import subprocess
from pathlib import Path

import pytest

from modeling_rasalore import provenance as module
from modeling_rasalore.cli import main
from modeling_rasalore.provenance import describe_folder, inspect_folder, is_result, provenance


def write_run(folder: Path) -> Path:
    (folder / "checkpoints" / "step-0000004").mkdir(parents=True)
    facts = {**provenance(), "seed": 7, "split_sha256": "aa", "data_sha256": "bb"}
    (folder / "run.json").write_text(json.dumps({**facts, "best_score": 0.5}))
    (folder / "recipe.yaml").write_text("out: x\nloop:\n  seed: 7\n")
    return folder


def test_versions_and_commit_are_told() -> None:
    facts = provenance()
    assert {"rasalore", "torch", "numpy"} <= facts["versions"].keys()
    assert facts["python"].startswith("3.")
    assert "commit" in facts


def test_a_machine_without_git_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = provenance()
    assert facts["commit"] is None
    assert facts["python"].startswith("3.")


def test_an_installed_package_does_not_take_the_commit_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "site-packages" / "modeling_rasalore" / "provenance.py"
    installed.parent.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(module, "__file__", str(installed))
    assert provenance()["commit"] is None
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "provenance.py"))
    assert provenance()["commit"] is not None


def test_a_run_tells_recipe_seed_hashes_scores_and_checkpoints(tmp_path: Path) -> None:
    facts = inspect_folder(write_run(tmp_path))
    assert (facts["seed"], facts["split_sha256"], facts["data_sha256"]) == (7, "aa", "bb")
    assert facts["best_score"] == 0.5
    assert facts["checkpoints"] == ["step-0000004"]
    assert "  seed: 7" in describe_folder(facts)


def test_long_lists_are_told_as_a_count(tmp_path: Path) -> None:
    (tmp_path / "slices.json").write_text(json.dumps({"parts": [1, 2, 3], "slices": 9}))
    assert inspect_folder(tmp_path)["parts"] == 3
    (tmp_path / "results.json").write_text(json.dumps({"meta": {"split_sha256": "a"}, "rows": []}))
    assert inspect_folder(tmp_path)["split_sha256"] == "a"


def test_a_folder_of_scans_is_no_result(tmp_path: Path) -> None:
    assert not is_result(tmp_path)


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_run(tmp_path))]) == 0
    assert "split_sha256: aa" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["seed"] == 7


def test_a_run_without_a_checkpoint_is_a_result_and_scans_beside_a_recipe_are_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x\nloop:\n  seed: 7\n")
    assert is_result(tmp_path)
    assert inspect_folder(tmp_path)["state"].startswith("not finished: it ended before its first")
    (tmp_path / "recipe.yaml").write_text("flour: 200 g\n")
    assert not is_result(tmp_path)


def test_a_record_that_is_cut_off_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text('{"seed": ')
    assert main(["inspect", str(tmp_path)]) == 1
    assert f"{tmp_path}/run.json is not whole JSON; delete it" in capsys.readouterr().err
