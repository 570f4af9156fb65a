"""The files that are uploaded as a Space."""

import hashlib
import re

import pytest
from space import SPACE

from modeling_rasalore import __version__

pytest.importorskip("gradio")


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
