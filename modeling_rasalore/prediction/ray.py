"""Segment a run's scans on a Ray cluster: any free processor reads them, workers hold the model.

The functions of `run.py` do the work, and the outcomes come back to one journal, so a run may begin
here and end there. Needs the extra [ray]; every machine must see the folders of scans and results.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .run import Outcome, Run, Task, load_scan, segment_scan

OpenModel = Callable[[], tuple[Any, Any]]  # -> model, processor; called on each worker
Item = dict[str, Any]  # what Ray hands from step to step


def segment_on_ray(
    open_model: OpenModel, workers: int, gpus: float, run: Run, tasks: Sequence[Task]
) -> Iterator[Outcome]:
    """Return an iterator over what becomes of each scan, in no order.

    Uses the cluster that RAY_ADDRESS names, else one on this machine.

    Args:
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
            "--ray-workers needs the extra [ray]; run pip install 'rasalore[ray]'."
        ) from error
    if not tasks:
        return iter(())
    # A block per scan: a block is read whole before its first scan is segmented.
    items = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks))
    outcomes = items.map(load_item, fn_args=(run,)).map(
        Worker, fn_constructor_args=(run, open_model), concurrency=workers, num_gpus=gpus
    )
    return (item["outcome"] for item in outcomes.iter_rows())


def load_item(item: Item, run: Run) -> Item:
    """Return the item with its loaded scan in place of the task."""
    return {"loaded": load_scan(run, item["task"])}


class Worker:
    """Holds the model; turns an item's loaded scan into its outcome."""

    def __init__(self, run: Run, open_model: OpenModel):
        self.run, (self.model, self.processor) = run, open_model()

    def __call__(self, item: Item) -> Item:
        return {"outcome": segment_scan(self.run, self.model, self.processor, item["loaded"])}
