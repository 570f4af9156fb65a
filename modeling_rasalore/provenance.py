"""What computed a result: versions, machine, commit; and what a folder of results says of it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import indent
from typing import Any

DISCLAIMER = (
    "Research software, not a medical device: do not diagnose with it. "
    "An empty mask does not exclude disease."
)
PACKAGES = (
    *("rasalore", "torch", "transformers", "datasets", "accelerate", "safetensors"),
    *("numpy", "nibabel"),
)


def provenance() -> dict[str, Any]:
    """Return the versions of what computed a result, the machine and the checkout's commit."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": read_commit(),
    }


def peak_mib() -> float | None:
    """Return the most memory this process has held, in MiB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def available_cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_commit() -> str | None:
    """Return the checkout's commit; None for an installed package, or where there is no git."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # a repository around it, of others, does not count
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, of those that are installed."""
    installed = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


# What the scripts leave in a folder, in the order in which it is told.
RECORDS = ("run.json", "progress.json", "slices.json", "manifest.json", "results.json")
VIEWS = ("manifest.json", "results.csv", "report.html", "results.parquet")  # of a prediction
JOURNALS = "journals"  # of a prediction that is under way
LONG_LISTS = ("parts", "scans", "rows", "test_patients")  # told as a count


def is_result(folder: Path) -> bool:
    """Whether a folder holds what a script made or began, rather than scans."""
    begun = (folder / JOURNALS).is_dir() or is_training(folder)
    return begun or any((folder / name).is_file() for name in RECORDS)


def is_training(folder: Path) -> bool:
    """Whether a folder holds a training run, however far it came."""
    recipe = folder / "recipe.yaml"
    return recipe.is_file() and "\nloop:" in recipe.read_text(encoding="utf-8", errors="replace")


def inspect_folder(folder: Path) -> dict[str, Any]:
    """Return what a folder of results says of itself: its records, recipe and checkpoints.

    Of a training run, `state` says in words how far it is.

    Raises:
        ValueError: a record that is no JSON.
    """
    facts: dict[str, Any] = {"folder": str(folder)}
    for name in RECORDS:
        if (folder / name).is_file():
            content = _read_record(folder / name)
            facts |= {key: _short(key, value) for key, value in content.items()}
    if isinstance(facts.get("meta"), dict):  # of a benchmark
        facts |= {key: _short(key, value) for key, value in facts.pop("meta").items()}
    for name in ("recipe.yaml", "settings.json"):
        if (folder / name).is_file():
            facts["recipe"] = (folder / name).read_text(encoding="utf-8").strip()
    steps = sorted((folder / "checkpoints").glob("step-*[0-9]"))
    if steps:
        facts["checkpoints"] = [path.name for path in steps]
    if is_training(folder):
        facts |= describe_training(folder, steps)
    return facts


def describe_training(folder: Path, checkpoints: Sequence[Path]) -> dict[str, Any]:
    """Return how far a training run is: `state` in words, and where its newest checkpoint is."""
    if (folder / "run.json").is_file():
        return {"state": "finished"}
    if not checkpoints:
        listed = " after its slices were listed" * (folder / "work_list.parquet").is_file()
        return {
            "state": f"not finished: it ended{listed} before its first checkpoint, or is running; "
            "the same command begins it anew"
        }
    newest = _read_record(checkpoints[-1] / "progress.json")
    step, last = newest["step"], newest.get("last_step")
    of = f" of {last} ({step / last:.0%})" if last else ""
    saved = datetime.fromtimestamp(checkpoints[-1].stat().st_mtime).isoformat(" ", "minutes")
    return newest | {
        "state": f"not finished: its newest checkpoint, of {saved}, is that of step {step}{of}; it "
        "is running, or the same command goes on from there"
    }


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON; delete it, and look again.") from error
    return content


def describe_folder(facts: dict[str, Any]) -> str:
    """Lines for people about the result of `inspect_folder`."""
    lines = []
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"{key}:\n{indent(text, '  ')}" if "\n" in text else f"{key}: {text}")
    return "\n".join(lines)


def _short(key: str, value: Any) -> Any:
    return len(value) if key in LONG_LISTS and isinstance(value, list | dict) else value
