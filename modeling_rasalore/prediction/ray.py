"""An archive on a Ray cluster: free processors decode scans, workers with the model judge them.

The same functions as in `archive.py` do the work, and the rows come back to one journal, so a run
may begin here and end there. Needs the extra [ray]; every machine must see the archive's folders.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from .archive import Archive, Judge, Row, keep, load
from .run import SCAN_ERRORS, RunSettings

OpenModel = Callable[[], tuple[Any, Any]]  # -> model, processor; called on each worker
Item = dict[str, Any]  # what Ray hands on: "name", and what the steps add


def run_on_ray(
    archive: Archive,
    shard: tuple[int, int],
    open_model: OpenModel,
    settings: RunSettings,
    workers: int,
    gpus: float = 0,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Judge what a shard has left; returns the progress of all shards.

    Uses the cluster that RAY_ADDRESS names, else one on this machine.

    Args:
        shard: which one, counted from 0, of how many.
        workers: how many hold the model.
        gpus: that each of them takes; a share such as 0.5 lets two use one.

    Raises:
        ValueError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when a cluster is started
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "ray.workers needs the extra [ray]; run pip install 'rasalore[ray]'."
        ) from error

    names = archive.left(shard)

    def rows() -> Iterator[tuple[str, Row]]:
        if not names:
            return
        items = [{"name": name} for name in names]
        # A block per scan: a block is decoded whole before its first scan is judged.
        found = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map(decode, fn_args=(archive, settings))
            .map(
                Worker,
                fn_constructor_args=(archive, settings, open_model),
                concurrency=workers,
                num_gpus=gpus,
            )
        )
        for item in found.iter_rows():
            yield item["name"], json.loads(item["row"])

    return keep(archive, shard, rows(), say)


def decode(item: Item, archive: Archive, settings: RunSettings) -> Item:
    """The item with "scan": what `load` returns, or the error that it raises."""
    try:
        scan: Any = load(archive.root / item["name"], settings)
    except SCAN_ERRORS as error:
        scan = error
    return {**item, "scan": scan}


class Worker:
    """Holds the model; item -> name and row, as JSON, because columns of failed rows lack types."""

    def __init__(self, archive: Archive, settings: RunSettings, open_model: OpenModel):
        self.judge = Judge(archive, *open_model(), settings)

    def __call__(self, item: Item) -> Item:
        def loaded() -> Any:
            if isinstance(item["scan"], Exception):
                raise item["scan"]
            return item["scan"]

        return {"name": item["name"], "row": json.dumps(self.judge(item["name"], loaded))}
