"""Start a command soon: what a process of its own settles first, and imports without delay."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import modeling_rasalore


def begin_process() -> None:
    """Settle what holds for a process that runs one command and nothing else."""
    modeling_rasalore.runs_one_command = True
    # Bars of libraries, such as of loading weights, do not belong between the lines of a command.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without a search for garbage, where a process runs one command and nothing else.

    Python would go through thousands of new functions and classes again and again, a sixth of the
    time of all imports. They never become garbage, so later searches leave them out too.
    """
    if not modeling_rasalore.runs_one_command:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
