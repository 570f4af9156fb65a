"""One process or two, whole, killed or streamed: stage 2 learns the same, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_study import write_study

pytestmark = pytest.mark.slow  # real processes, real kills
ROOT = Path(__file__).parents[2]
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
LAUNCH += " --mixed_precision no --dynamo_backend no"


def run_program(*words: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `forked_runs.py` found with one kill on one process and one on two."""
    printed = run_program("tests/helpers/forked_runs.py", tmp_path_factory.mktemp("runs"), 1)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def assert_same(found: dict[str, float]) -> None:
    assert found["steps"] == 50
    assert found["spread"] > 1, "the loss hardly changed, so it compares nothing"
    assert found["losses"] <= 1e-5
    assert found["weights"] <= 1e-4


def test_two_processes_learn_what_one_learns(runs: dict[str, Any]) -> None:
    assert runs["processes"] == 2
    assert_same(runs["ranks"])


def test_two_processes_learn_what_one_learns_with_steps_that_remember(
    runs: dict[str, Any],
) -> None:
    assert_same(runs["adamw"])


def test_a_run_killed_at_any_moment_ends_like_an_uninterrupted_one(runs: dict[str, Any]) -> None:
    assert [found["ranks"] for found in runs["killed"]] == [1, 2]
    for found in runs["killed"]:
        assert_same(found)
        assert found["losses"] == found["weights"] == 0


def test_workers_change_nothing(runs: dict[str, Any]) -> None:
    assert_same(runs["workers"])


def test_slices_streamed_over_a_cut_network_give_the_same_weights(runs: dict[str, Any]) -> None:
    assert runs["cuts_left"] == 0
    assert runs["warned"]
    assert_same(runs["streamed"])
    assert runs["streamed"]["weights"] == 0


def test_the_launch_command_of_two_processes_has_two(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    words = ["train/stage2.py", study / "training.yaml", f"data.root={study}/scans"]
    run_program(*LAUNCH.split(), "--main_process_port", 0, *words, f"out={tmp_path}/run",
                "loop.max_steps=2", ACCELERATE_USE_CPU="1")  # fmt: skip
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
