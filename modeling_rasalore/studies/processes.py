"""Runs work in processes of its own, which end with the one that started them."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool


def run_apart(work: Callable[[], object]) -> str:
    """Return why `work` failed in a process of its own, in one line; "" where it ended well.

    It must be a thing that can be sent there, such as a method of a row. The process starts afresh,
    so that the peak of its memory is that of the work, and ends with this one.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(reason_of_failure, work).result()
        except BrokenProcessPool:
            return "its process was killed, most often for memory"


def reason_of_failure(work: Callable[[], object]) -> str:
    """Return why `work` failed, in one line; "" where it ended well."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone, however that one ended."""
    parent = multiprocessing.parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()
