"""The files that are uploaded as a Space."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from space import SPACE, save_model

from modeling_rasalore import __version__

pytest.importorskip("gradio")
import app


def test_the_header_of_the_space_agrees_with_its_requirements() -> None:
    header = (SPACE / "README.md").read_text("utf-8").split("---")[1]
    requirements = (SPACE / "requirements.txt").read_text("utf-8")
    pins = (SPACE.parent / "constraints.txt").read_text("utf-8")
    version = re.search(r"^sdk_version: (.+)$", header, re.MULTILINE)
    assert version
    assert f"gradio[mcp]=={version[1]}" in requirements
    assert f"gradio=={version[1]}\n" in pins
    assert f"rasalore=={__version__}\n" in requirements
    for name in ("torch", "pydicom", "highdicom", "pynrrd"):
        assert re.search(rf"^{name}==[\d.]+$", requirements, re.MULTILINE)[0] in pins  # type: ignore[index]
    assert "app_file: app.py" in header


def test_the_3_d_viewer_is_its_authors_file_and_comes_with_its_licences() -> None:
    viewer = (SPACE / "niivue" / "niivue.umd.js").read_bytes()
    digest = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # npm, 0.69.0
    assert hashlib.sha256(viewer).hexdigest() == digest
    licences = (SPACE / "niivue" / "LICENSES.txt").read_text("utf-8")
    assert licences.count("Permission is hereby granted") >= 10
    assert "Copyright (c) 2021, Niivue" in licences


def test_the_app_serves_the_models_that_are_named_on_the_port_that_is_named(
    tmp_path: Path,
) -> None:
    models = [save_model(tmp_path / name, name) for name in ("flair", "t2")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = os.environ | {
        "RASALORE_MODEL": ", ".join(map(str, models)),
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": str(SPACE.parent),
    }
    words = [sys.executable, str(SPACE / "app.py")]
    with subprocess.Popen(words, env=told, cwd=tmp_path, stdout=subprocess.DEVNULL) as running:
        try:
            page = ask_until_it_answers(f"http://127.0.0.1:{port}/config", running)
        finally:
            running.terminate()
    assert "**FLAIR** or **T2**" in page


def ask_until_it_answers(
    address: str, running: subprocess.Popen[bytes], seconds: float = 120
) -> str:
    """What a server answers once it runs."""
    end = time.monotonic() + seconds
    while running.poll() is None and time.monotonic() < end:
        try:
            return httpx.get(address).raise_for_status().text
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError("the app did not answer")


def test_a_model_that_cannot_be_read_ends_the_app_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RASALORE_MODEL", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs a folder with a config\.json") as ended:
        app.main()
    assert "\n" not in str(ended.value)
