"""Segment many scans, here or on a Ray cluster: each alone, what is done kept in journals.

Any number of processes may share the work: each takes a shard of the scans and appends to its own
journal. Everything that describes the whole run is a view that the last one writes of all journals.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..brains.reading import read_brain
from ..files import SCAN_ERRORS, LeftOut, common_folder, first_line, printable, remove_drafts, some
from ..provenance import DISCLAIMER, VIEWS
from ..reports.tables import require_pyarrow, write_views
from ..scans.bids import DESCRIPTION, bids_stem, write_description
from ..scans.finding import FoundScans
from ..scans.reading import hash_scan
from ..scans.volumes import Volume
from .journal import WHOLE, Entry, Record, open_journal, read_journals
from .options import DEFAULT_OPTIONS, PredictionOptions
from .outputs import (
    FILES,
    describe,
    describe_input,
    details,
    endings_of,
    measures,
    name_files,
    refuse_to_overwrite,
    require_format,
    write_prediction,
)
from .planning import LoadedScan, Outcome, Run, ScoredScan, Task, plan_run, plan_tasks
from .volume import predict_volume

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
OpenModel = Callable[[], tuple[Any, Any]]  # -> model, processor; called on each worker of a cluster
ClusterItem = dict[str, Any]  # what Ray hands from step to step
SegmentTasks = Callable[[Run, Sequence[Task]], Iterator[Outcome]]


def predict_scans(
    model: Any,
    processor: Any,
    scans: Sequence[Path] | FoundScans,
    out: Path,
    options: PredictionOptions = DEFAULT_OPTIONS,
    *,
    files: Sequence[str] = FILES,
    shard: tuple[int, int] = WHOLE,
    resume: bool = False,
    parquet: bool = False,
    say: Callable[[str], None] = print,
    segment_tasks: SegmentTasks | None = None,
) -> dict[str, Any]:
    """Return the manifest after segmenting a shard's scans; a bad scan never stops the others.

    `out` gets the files of `write_prediction` per scan and a journal. When no scan is left, it gets
    `manifest.json`, `results.csv` and `report.html` too; for scans of a BIDS data set it is a BIDS
    derivative. Scans of earlier runs into `out` stay in all of them, as `earlier` in the manifest;
    those with another model or other settings say so. Files of an earlier run that a scan does not
    get again are removed.

    Args:
        model, processor: as for `predict_volume`.
        scans: files and DICOM folders of all shards, or what `find_scans` returned, so that the
            views list what was left out; `out` mirrors their folders.
        files: which to write per scan: mask, scores, spread, overlay, summary.
        shard: which part of the scans, counted from 0, and of how many; shards always resume.
        resume: skip scans that a journal in `out` has with equal input, model, settings, versions
            and kind of device; else all are segmented again.
        parquet: write `results.parquet` too.
        say: gets one line per scan.
        segment_tasks: who computes; None: this process.

    Raises:
        ValueError: two scans would share their outputs, a word in `files` that is none, Parquet
            without pyarrow, or a shard of a folder with results of other settings.
    """
    if parquet:
        require_pyarrow()
    found = scans if isinstance(scans, FoundScans) else FoundScans([*scans], used=len(scans))
    run = plan_run(model, found.scans, out, options, files)
    tasks = plan_tasks(run, found.scans, shard, resume)
    if resume and (changed := [task.key for task in tasks if task.otherwise]):
        say(f"made before with other settings, and made again: {some(changed)}")
    segment_tasks = segment_tasks or partial(segment_here, model, processor)
    outcomes = segment_tasks(run, tasks[shard[0] :: shard[1]])
    with open_journal(out, shard, run.facts) as append:
        for outcome in outcomes:
            if outcome.entry is not None:
                append(outcome.key, outcome.entry)
            for line in outcome.lines:
                say(printable(line))
    return conclude(run, tasks, found, shard, parquet)


def segment_here(model: Any, processor: Any, run: Run, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Yield what becomes of each scan.

    While the model computes, the next one is read and the last one is written.
    """
    loading = read_ahead(partial(load_scan, run), tasks)
    scored = (score_scan(run, model, processor, loaded.result()) for _, loaded in loading)
    for _, written in read_ahead(partial(write_scan, run), scored):
        yield written.result()


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], depth: int = 1
) -> Iterator[tuple[Item, "Future[Loaded]"]]:
    """Yield every item with what a thread makes of it; at most `depth` wait in memory.

    Where the items end with an error, those that came before it are yielded first.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        failure: BaseException | None = None
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > depth:
                    yield waiting.popleft()
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        while waiting:
            yield waiting.popleft()
        if failure is not None:
            raise failure


def load_scan(run: Run, task: Task) -> LoadedScan | Outcome:
    """Return the scan of a task, or the outcome where it is finished or cannot be read."""
    start = time.monotonic()
    try:
        digest = hash_scan(task.scan) if task.scan.exists() else ""  # the reader says so
        if is_finished(run, task, digest):
            entry = None if task.listed else task.finished
            return Outcome(task.key, entry, (f"{task.scan}: finished before, skipped",))
        trained_on = run.facts["model"]["modality"]
        options = run.options
        brain: dict[str, Any] = {"brain_mask": options.brain_mask, "strip": options.strip}
        volume = read_brain(task.scan, *options.reading, trained_on=trained_on, **brain)
        require_format(volume, run.options.format)
        paths = name_files(run.out / task.key, endings_of(task.scan), run.files, run.options.format)
        refuse_to_overwrite(task.scan, paths.values(), [run.out / name for name in task.files])
    except SCAN_ERRORS as error:
        return tell_failure(run, task, error)
    return LoadedScan(task, volume, digest, time.monotonic() - start)


def is_finished(run: Run, task: Task, digest: str) -> bool:
    """Whether a journal has a scan with the same content, and its files are there."""
    if task.finished is None or task.finished["input_sha256"] != digest:
        return False
    return all((run.out / path).is_file() for path in task.finished["outputs"].values())


def score_scan(
    run: Run, model: Any, processor: Any, loaded: LoadedScan | Outcome
) -> ScoredScan | Outcome:
    """Return a scan with its scores, or the outcome where there are none; one is passed on."""
    if isinstance(loaded, Outcome):
        return loaded
    volume, start, facts = loaded.volume, time.monotonic(), run.facts["model"]
    try:
        source = describe_input(volume, loaded.digest, facts["modality"])
        prediction = predict_volume(model, processor, volume, run.options, facts)
    except SCAN_ERRORS as error:
        return tell_failure(run, loaded.task, error)
    return ScoredScan(loaded, prediction, source, loaded.seconds + time.monotonic() - start)


def write_scan(run: Run, scored: ScoredScan | Outcome) -> Outcome:
    """Return what becomes of a scan, after writing its files; an outcome is passed on."""
    if isinstance(scored, Outcome):
        return scored
    task, volume, start = scored.loaded.task, scored.loaded.volume, time.monotonic()
    prediction, source = scored.prediction, scored.source
    try:
        folder, name = (run.out / task.key).parent, Path(task.key).name
        endings, mask_format = endings_of(task.scan), run.options.format
        paths = write_prediction(
            prediction, volume, folder, name, endings, source, run.files, mask_format
        )
    except SCAN_ERRORS as error:
        return tell_failure(run, task, error)
    seconds = round(scored.seconds + time.monotonic() - start, 2)
    entry = {
        "input": task.scan.name,
        "status": "done",
        "modality": volume.sequence,
        "modality_source": volume.sequence_source,
        "brain_source": volume.brain_source,
        **measures(prediction),
        **details(prediction),
        "bounding_box_mm": prediction.bounding_box_mm,
        "seconds": seconds,
        "warnings": source["warnings"],
        "input_sha256": scored.loaded.digest,
        "outputs": {role: path.relative_to(run.out).as_posix() for role, path in paths.items()},
    }
    others = [name for name in earlier_files(run, task) if name not in entry["outputs"].values()]
    for name in others:
        (run.out / name).unlink()
    lines = [f"warning: {task.scan}: {warning}" for warning in source["warnings"]]
    lines.append(f"{task.scan}: {describe(prediction)}, {seconds:.1f} s{tell_sources(volume)}")
    if others:
        lines.append(f"{task.scan}: files of an earlier run removed: {', '.join(others)}")
    return Outcome(task.key, entry, tuple(lines))


def tell_sources(volume: Volume) -> str:
    """Return in brackets what told a scan's sequence, and its brain where that was needed."""
    brain = f"; brain: {volume.brain_source}" if volume.brain_source else ""
    return f" ({volume.sequence_source or 'its sequence is not told'}{brain})"


def earlier_files(run: Run, task: Task) -> list[str]:
    """Return the files that an earlier run wrote for a scan and that are still there."""
    inside = run.out.resolve()
    paths = {name: run.out / name for name in task.files}
    return [
        name
        for name, path in paths.items()
        if path.is_file() and path.resolve().is_relative_to(inside)
    ]


def tell_failure(run: Run, task: Task, error: Exception) -> Outcome:
    """Return the outcome of a scan that cannot be segmented; its entry names no folder."""
    reason = first_line(error)
    named = reason.replace(str(task.scan), task.scan.name)  # folders may name a person
    line = reason if str(task.scan) in reason else f"{task.scan}: {reason}"
    entry: Entry = {"input": task.scan.name, "status": "failed", "reason": named}
    if files := earlier_files(run, task):
        entry["warnings"] = [f"files of an earlier run are still there: {', '.join(files)}."]
    warnings = (f"warning: {task.scan}: {sentence}" for sentence in entry.get("warnings", []))
    return Outcome(task.key, entry, (f"error: {line}", *warnings))


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


def load_item(item: ClusterItem, run: Run) -> ClusterItem:
    """Return the item with its loaded scan in place of the task."""
    return {"loaded": load_scan(run, item["task"])}


class Worker:
    """Holds the model on a cluster; turns an item's loaded scan into its outcome."""

    def __init__(self, run: Run, open_model: OpenModel):
        self.run, (self.model, self.processor) = run, open_model()

    def __call__(self, item: ClusterItem) -> ClusterItem:
        scored = score_scan(self.run, self.model, self.processor, item["loaded"])
        return {"outcome": write_scan(self.run, scored)}


def conclude(
    run: Run, tasks: Sequence[Task], found: FoundScans, shard: tuple[int, int], parquet: bool
) -> dict[str, Any]:
    """Return the manifest of all shards; when no scan is left, the views are written."""
    journals = read_journals(run.out)
    records = journals.results_of(run.facts)
    records = {task.key: records[task.key] for task in tasks if task.key in records}
    earlier = journals.earlier(run.out, run.facts, {task.key for task in tasks})
    manifest = {"disclaimer": DISCLAIMER, **run.facts, **summarize(records), "earlier": earlier}
    manifest |= {"file_counts": found.counts, "left_out": list_left_out(found)}
    if len(records) < len(tasks):
        return manifest
    remove_drafts(run.out, but=() if shard == WHOLE else (*VIEWS, DESCRIPTION))
    if any(bids_stem(task.scan) for task in tasks):
        write_description(run.out, run.facts["versions"]["rasalore"])
    write_views(run.out, manifest, parquet)
    return manifest


def list_left_out(found: FoundScans) -> list[dict[str, Any]]:
    """Return what was left out, as JSON can hold it; folders above all files stay unnamed."""
    paths = [path.absolute() for path in (*found.scans, *(entry.path for entry in found.left_out))]
    common = common_folder(path.parent for path in paths)

    def describe_entry(entry: LeftOut) -> dict[str, Any]:
        path = entry.path.absolute().relative_to(common).as_posix()
        return {"path": path, "reason": entry.reason, "files": entry.files}

    return [describe_entry(entry) for entry in found.left_out]


def summarize(records: Mapping[str, Record]) -> dict[str, Any]:
    """Return the entries of all scans, the time they took and the most memory of a process."""
    scans = {key: record.entry for key, record in records.items()}
    peaks = [record.peak_mib for record in records.values() if record.peak_mib is not None]
    return {
        "scans": scans,
        "seconds": round(sum(entry.get("seconds", 0) for entry in scans.values()), 2),
        "peak_memory_mib": max(peaks, default=None),
    }
