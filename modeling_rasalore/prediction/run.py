"""Segment many scans: each alone, next ones read ahead, what is done kept in journals.

Any number of processes may share the work: each takes a shard of the scans and appends to its own
journal. Everything that describes the whole run is a view that the last one writes of all journals.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ..files import LeftOut, first_line, printable, remove_drafts, sha256_of
from ..formats.endings import require_writer
from ..provenance import DISCLAIMER, VIEWS, provenance
from ..scans.bids import (
    BIDS_ENDINGS,
    DESCRIPTION,
    bids_stem,
    output_stems,
    write_description,
)
from ..scans.finding import FoundScans
from ..scans.reading import read_scan
from ..scans.volumes import Volume
from .journal import (
    WHOLE,
    Entry,
    Facts,
    Record,
    open_journal,
    pack_journals,
    read_journals,
    same_list,
    same_origin,
)
from .loading import choose_precision
from .options import DEFAULT_OPTIONS, FORMATS, PredictionOptions
from .outputs import (
    ENDINGS,
    FILES,
    describe,
    describe_input,
    measures,
    require_format,
    write_prediction,
)
from .report import clear_views, require_pyarrow, write_views
from .volume import describe_model, predict_volume

SCAN_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Run:
    """What all processes of a run know.

    Attributes:
        out: folder of the results.
        options: of the predictions.
        files: which are written per scan, of `outputs.FILES`.
        facts: what makes the results, for the journals.
    """

    out: Path
    options: PredictionOptions
    files: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True)
class Task:
    """One scan to segment.

    Attributes:
        key: its name in the results: where its files begin, below the run's folder.
        scan: file, or folder of a DICOM series.
        finished: what a journal says of it; None: nothing that still counts.
        listed: whether that was said by a run of the same scans.
        files: what an earlier run wrote for it, below the run's folder.
    """

    key: str
    scan: Path
    finished: Entry | None = None
    listed: bool = False
    files: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan in memory.

    Attributes:
        task: whose scan.
        volume: its voxels.
        digest: SHA-256 of its file or files.
        seconds: that reading took.
    """

    task: Task
    volume: Volume
    digest: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a scan.

    Attributes:
        key: as of its task.
        entry: for the journal; None: one is there.
        lines: for people.
    """

    key: str
    entry: Entry | None
    lines: tuple[str, ...]


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
    segment_tasks = segment_tasks or partial(segment_here, model, processor)
    outcomes = segment_tasks(run, tasks[shard[0] :: shard[1]])
    with open_journal(out, shard, run.facts) as append:
        for outcome in outcomes:
            if outcome.entry is not None:
                append(outcome.key, outcome.entry)
            for line in outcome.lines:
                say(printable(line))
    return conclude(run, tasks, found, shard, parquet)


def plan_run(
    model: Any, scans: Sequence[Path], out: Path, options: PredictionOptions, files: Sequence[str]
) -> Run:
    """Return what all processes of a run know."""
    if unknown := [name for name in files if name not in FILES]:
        raise ValueError(f"files must be some of {', '.join(FILES)}, got {', '.join(unknown)}.")
    require_writer(FORMATS[options.format])
    options = replace(options, precision=choose_precision(model, options.precision))
    settings = asdict(options) | {"files": list(files)}
    settings["volume"] = settings.pop("channel")  # as the command line calls it
    keys = scan_keys(scans, out)
    facts = {
        "model": describe_model(model),
        "settings": settings,
        "device": str(next(model.parameters()).device),
        **provenance(),
        "scans": len(scans),
        "scan_list": sha256("\n".join(sorted(keys)).encode(errors="replace")).hexdigest(),
    }
    return Run(out, options, tuple(files), facts)


def scan_keys(scans: Sequence[Path], out: Path) -> list[str]:
    """Return the name of each scan in the results; ValueError where two share one."""
    return [stem.relative_to(out).as_posix() for stem in output_stems(scans, out)]


def plan_tasks(run: Run, scans: Sequence[Path], shard: tuple[int, int], resume: bool) -> list[Task]:
    """Return one task per scan, with what the journals still have of it.

    Raises:
        ValueError: two scans would share their outputs, or a shard of a folder with results of
            other settings.
    """
    keys = scan_keys(scans, run.out)
    run.out.mkdir(parents=True, exist_ok=True)
    anew = shard == WHOLE and not resume
    if anew:
        pack_journals(run.out)
        clear_views(run.out)
    journals = read_journals(run.out)
    if shard != WHOLE and (names := journals.differences(run.facts)):
        raise ValueError(
            f"{run.out} holds results made with other settings ({', '.join(names)}), which would "
            "be mixed with these; give --out another folder or delete it."
        )
    records = (journals.records.get(key) for key in keys)
    return [
        plan_task(run, key, scan, record, anew)
        for key, scan, record in zip(keys, scans, records, strict=True)
    ]


def plan_task(run: Run, key: str, scan: Path, record: Record | None, anew: bool) -> Task:
    """Return the task of one scan, of which the journals have this record."""
    if record is None:
        return Task(key, scan)
    files = tuple(record.entry.get("outputs", {}).values())
    done = record.entry["status"] == "done" and same_origin(record.facts, run.facts)
    finished = record.entry if done and not anew else None
    return Task(key, scan, finished, same_list(record.facts, run.facts), files)


def segment_here(model: Any, processor: Any, run: Run, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Yield what becomes of each scan; the next one is read while the model computes."""
    for _, loading in read_ahead(partial(load_scan, run), tasks):
        yield segment_scan(run, model, processor, loading.result())


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], depth: int = 1
) -> Iterator[tuple[Item, "Future[Loaded]"]]:
    """Yield every item with what a thread loads for it; at most `depth` wait in memory."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def load_scan(run: Run, task: Task) -> LoadedScan | Outcome:
    """Return the scan of a task, or the outcome where it is finished or cannot be read."""
    start = time.monotonic()
    try:
        digest = sha256_of(task.scan) if task.scan.exists() else ""  # the reader says so
        if is_finished(run, task, digest):
            entry = None if task.listed else task.finished
            return Outcome(task.key, entry, (f"{task.scan}: finished before, skipped",))
        trained_on = run.facts["model"]["modality"]
        volume = read_scan(task.scan, *run.options.reading, trained_on=trained_on)
        require_format(volume, run.options.format)
    except SCAN_ERRORS as error:
        return tell_failure(run, task, error)
    return LoadedScan(task, volume, digest, time.monotonic() - start)


def is_finished(run: Run, task: Task, digest: str) -> bool:
    """Whether a journal has a scan with the same content, and its files are there."""
    if task.finished is None or task.finished["input_sha256"] != digest:
        return False
    return all((run.out / path).is_file() for path in task.finished["outputs"].values())


def segment_scan(run: Run, model: Any, processor: Any, loaded: LoadedScan | Outcome) -> Outcome:
    """Return what becomes of a scan, after writing its files; an outcome is passed on."""
    if isinstance(loaded, Outcome):
        return loaded
    task, volume, start = loaded.task, loaded.volume, time.monotonic()
    model_facts = run.facts["model"]
    endings = ENDINGS | (BIDS_ENDINGS if bids_stem(task.scan) else {})
    try:
        source = describe_input(volume, loaded.digest, model_facts["modality"])
        prediction = predict_volume(model, processor, volume, run.options, model_facts)
        folder, name = (run.out / task.key).parent, Path(task.key).name
        paths = write_prediction(
            prediction, volume, folder, name, endings, source, run.files, run.options.format
        )
    except SCAN_ERRORS as error:
        return tell_failure(run, task, error)
    seconds = round(loaded.seconds + time.monotonic() - start, 2)
    entry = {
        "input": task.scan.name,
        "status": "done",
        "modality": volume.sequence,
        **measures(prediction),
        "bounding_box_mm": prediction.bounding_box_mm,
        "seconds": seconds,
        "warnings": source["warnings"],
        "input_sha256": loaded.digest,
        "outputs": {role: path.relative_to(run.out).as_posix() for role, path in paths.items()},
    }
    others = [name for name in earlier_files(run, task) if name not in entry["outputs"].values()]
    for name in others:
        (run.out / name).unlink()
    lines = [f"warning: {task.scan}: {warning}" for warning in source["warnings"]]
    lines.append(f"{task.scan}: {describe(prediction)}, {seconds:.1f} s")
    if others:
        lines.append(f"{task.scan}: files of an earlier run removed: {', '.join(others)}")
    return Outcome(task.key, entry, tuple(lines))


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
    common = Path(os.path.commonpath([path.parent for path in paths]))

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
