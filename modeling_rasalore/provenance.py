"""What computed a result: versions, machine, commit; and what a folder of results says of it."""

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("rasalore", "torch", "transformers", "datasets", "accelerate", "safetensors", "numpy")


def provenance() -> dict[str, Any]:
    """Return the versions of what computed a result, the machine and the checkout's commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": commit.stdout.strip() or None,
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, of those that are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
