"""Work in processes of its own: failures are told, and none outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest
import torch

from modeling_rasalore.processes import Helper, end_child, run_apart


def fail() -> None:
    raise ValueError("no\nluck")


def write_threads(path: Path) -> None:
    print("said")
    path.write_text(str(torch.get_num_threads()))


def test_a_failure_is_one_line_and_a_killed_process_says_so() -> None:
    assert run_apart(partial(time.sleep, 0)) == ""
    assert run_apart(fail) == "ValueError: no luck"
    assert "was killed" in run_apart(partial(os._exit, 9))


def test_a_helper_works_beside_and_writes_a_log(tmp_path: Path) -> None:
    with Helper() as helper:
        first = helper.start(partial(write_threads, tmp_path / "a"), 1, tmp_path / "logs" / "a.log")
        first.result()
        with pytest.raises(ValueError, match="luck"):
            helper.start(fail, 1, tmp_path / "b.log").result()
    assert (tmp_path / "a").read_text() == "1"
    assert (tmp_path / "logs" / "a.log").read_text() == "said\n"


def test_a_helper_ends_at_once_where_this_process_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad input"), Helper() as helper:
        helper.start(partial(time.sleep, 600), 1, tmp_path / "log")
        raise ValueError("bad input")


def ignore_the_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


@pytest.mark.skipif(os.name == "nt", reason="ends processes without asking")
def test_a_helper_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    with Helper() as helper:
        future = helper.start(ignore_the_end, 1, tmp_path / "log")
        process_id = helper.process_id.result()
        while not (tmp_path / "log").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        end_child(process_id, patience=0.5)
        with pytest.raises(BrokenProcessPool):
            future.result(timeout=60)


BUSY = """
import sys, time
from functools import partial
from pathlib import Path
from modeling_rasalore.processes import Helper
if __name__ == "__main__":
    with Helper() as helper:
        helper.start(partial(time.sleep, 600), 1, Path(sys.argv[1]))
        time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_a_helper_ends_with_a_process_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "busy.py"), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
    )
    while not (tmp_path / "log").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # its output ends when the helper, which shares it, does
    assert process.returncode == -signal.SIGKILL  # and not by itself, before the helper was there
