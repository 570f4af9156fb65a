"""The server killed while keys are pressed: the table is complete up to the last key."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="servers are forked")
def test_fifty_kills_lose_no_answered_key(tmp_path: Path) -> None:
    words = [sys.executable, str(HELPERS / "killed_labelling.py"), str(tmp_path), "50"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["kills"], told["lost"]) == (50, [])
    assert told["answered"] > 50
