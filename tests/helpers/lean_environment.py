"""A Python that has torch, transformers, numpy, what these three ask for, and nothing else.

A real virtual environment, so nothing is hidden or mocked; its packages are links to those of the
environment that runs the tests, so it costs milliseconds and no download.
"""

import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HUB_RING_NEEDS = ("torch", "transformers", "numpy")


def lean_python(folder: Path) -> Path:
    """Make the environment in a new folder; returns its interpreter."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in sorted(closure(HUB_RING_NEEDS)):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not top.endswith(".pth"):
                (packages / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin" / "python"


def closure(names: tuple[str, ...]) -> set[str]:
    """These packages and all that they need without extras, as installed here."""
    known: set[str] = set()
    wanted = list(names)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in known:
            continue
        known.add(name)
        try:
            needs = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed in {sys.prefix}.") from error
        wanted += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return known
