"""Runs work in processes of its own, which end with the one that started them."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Self

Work = Callable[[], object]  # can be sent to another process: a partial, or a method of a row


def run_apart(work: Work) -> str:
    """Return why `work` failed in a process of its own, in one line; "" where it ended well.

    The process starts afresh, so that the peak of its memory is that of the work.
    """
    with start_process() as pool:
        try:
            return pool.submit(reason_of_failure, work).result()
        except BrokenProcessPool:
            return "its process was killed, most often for memory"


def reason_of_failure(work: Work) -> str:
    """Return why `work` failed, in one line; "" where it ended well."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


class Helper:
    """One more process, started when first needed, for work beside that of this process.

    As a context it is waited for in the end, or ended at once where this process fails.
    """

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self.pool is None:
            return
        if failure:
            with suppress(BrokenProcessPool, OSError):  # it may have ended by itself
                end_child(self.process_id.result())
        self.pool.shutdown()

    def start(self, work: Work, threads: int, log: Path) -> Future[None]:
        """Return the future of `work` with so many threads; what it prints goes to `log`."""
        if self.pool is None:
            self.pool = start_process()
            self.process_id = self.pool.submit(os.getpid)
        return self.pool.submit(run_logged, work, threads, log)


def end_child(process_id: int, patience: float = 5.0) -> None:
    """End a process of a pool: asked to, so that it cleans up, and killed if it does not.

    Args:
        patience: seconds until then. Code that runs while a module is imported, or an object is
            freed, can swallow the exception that asks.
    """
    os.kill(process_id, signal.SIGTERM)
    for child in multiprocessing.active_children():
        if child.pid == process_id:
            child.join(patience)
            child.kill()


def run_logged(work: Work, threads: int, log: Path) -> None:
    """Run `work` with so many threads; what it prints goes to `log`."""
    import torch  # here: not every process computes

    torch.set_num_threads(threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        work()


def start_process() -> ProcessPoolExecutor:
    """Return a pool of one process, the same on every system, that ends with this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=begin_process)


def begin_process() -> None:
    """Let a process of a pool end with its parent, and clean up after itself when it is ended."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop)
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone, however that one ended."""
    parent = multiprocessing.parent_process()

    def wait_for_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()
