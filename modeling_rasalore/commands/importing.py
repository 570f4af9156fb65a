"""Import what a command needs, without delay: most of what a user waits for at the door."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without a search for garbage, where a process runs one command and nothing else.

    Python would go through thousands of new functions and classes again and again, now and while
    scans are computed: a second of six. They never become garbage, so no later search sees them.
    """
    if not sys.modules["modeling_rasalore"].runs_one_command:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
