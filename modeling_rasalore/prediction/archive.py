"""An archive of scans in shards: one row per scan, whatever is killed and started again.

Every shard keeps a journal, one line per scan, written when the scan's files are complete. Journals
are all there is to agree on: a shard skips what any journal has, so shards may be cut anew, and the
last one to finish makes results.parquet of them.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..files import first_line, remove_drafts, replace_file, sha256_of
from ..scans.finding import output_stems
from ..scans.reading import read_scan
from ..scans.volume_writing import write_volume
from ..scans.volumes import Volume
from .outputs import ENDINGS, find_warnings, measures
from .run import SCAN_ERRORS, RunSettings, predict_with
from .volume import VolumePrediction, describe_model

RESULTS = "results.parquet"
JOURNALS = "shards"
VOLUMES = "files"
FILES = ("mask", "scores")
COLUMNS = {
    "scan": "string",  # below the archive's folder
    "status": "string",  # done | failed
    "reason": "string",  # of a failure
    "millilitres": "float64",
    "largest_component_ml": "float64",
    "quality_score": "float64",  # where noise_samples are asked for
    "slices": "int32",
    "slices_with_anomaly": "int32",
    "threshold": "float64",
    "input_sha256": "string",
    "warnings": "string",  # one per line
}
Row = dict[str, Any]
Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Archive:
    """Scans to judge and where their results go; the same for every shard.

    Attributes:
        root: folder of the scans.
        names: their paths below it, in the order of the results.
        out: folder of the results.
        files: which volumes are written per scan: "mask", "scores", both or none.
    """

    root: Path
    names: tuple[str, ...]
    out: Path
    files: tuple[str, ...] = ("mask",)

    def finished(self) -> dict[str, Row]:
        """The last row of every scan that any journal has, whole lines only."""
        rows: dict[str, Row] = {}
        for path in sorted((self.out / JOURNALS).glob("*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"}\n"):  # a kill may leave half a line
                    row = json.loads(line)
                    if rows.get(row["scan"], {}).get("status") != "done":
                        rows[row["scan"]] = row
        return rows

    def left(self, shard: tuple[int, int]) -> list[str]:
        """Names of a shard's scans that no journal has as done; (number from 0, count)."""
        known = {name for name, row in self.finished().items() if row["status"] == "done"}
        return [name for name in self.names[shard[0] :: shard[1]] if name not in known]

    def progress(self) -> dict[str, int]:
        """How many scans there are, are done, failed, and are left, over all shards."""
        rows = self.finished()
        states = [rows[name]["status"] for name in self.names if name in rows]
        done, failed = states.count("done"), states.count("failed")
        return {"scans": len(self.names), "done": done, "failed": failed,
                "left": len(self.names) - done - failed}  # fmt: skip

    def merge(self) -> Path | None:
        """Write results.parquet, one row per scan in the order of the list; None while some lack.

        Drafts that killed processes left behind are deleted.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = self.finished()
        if any(name not in rows for name in self.names):
            return None
        remove_drafts(self.out / VOLUMES)
        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
        ordered = [{name: rows[scan].get(name) for name in COLUMNS} for scan in self.names]
        table = pa.Table.from_pylist(ordered, schema)
        return replace_file(self.out / RESULTS, lambda draft: pq.write_table(table, draft))


def run_shard(
    archive: Archive,
    shard: tuple[int, int],
    model: Any,
    processor: Any,
    settings: RunSettings,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Judge every n-th scan that no journal has yet; returns the progress of all shards.

    The next scans are decoded while the model works. A scan that cannot be judged is listed with
    the reason, and tried again by the next run.

    Args:
        shard: which one, counted from 0, of how many.
    """
    judge = Judge(archive, model, processor, settings)
    ahead = read_ahead(lambda name: load(archive.root / name, settings), archive.left(shard))
    rows = ((name, judge(name, loaded.result)) for name, loaded in ahead)
    return keep(archive, shard, rows, say)


def keep(
    archive: Archive,
    shard: tuple[int, int],
    rows: Iterable[tuple[str, Row]],
    say: Callable[[str], None],
) -> dict[str, int]:
    """Write rows into a shard's journal as they come; returns the progress of all shards."""
    number, count = shard
    path = archive.out / JOURNALS / f"{number:05d}-of-{count:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    close_line(path)
    with path.open("a", encoding="utf-8") as journal:
        for name, row in rows:
            if row["status"] == "failed":
                say(f"error: {name}: {row['reason']}")
            journal.write(json.dumps({"scan": name, **row}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
    archive.merge()
    return archive.progress()


def close_line(path: Path) -> None:
    """End the half line that a kill left, so that the next line begins anew."""
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        with path.open("ab") as journal:
            journal.write(b"\n")


def places_of(archive: Archive) -> dict[str, Path]:
    """Start of the names of each scan's files, by scan: `out` mirrors the archive's folders."""
    paths = [archive.root / name for name in archive.names]
    return dict(zip(archive.names, output_stems(paths, archive.out / VOLUMES), strict=True))


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], depth: int = 2
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


def load(path: Path, settings: RunSettings) -> tuple[Volume, str]:
    """A scan, and the SHA-256 of its file or files."""
    return read_scan(path, settings.volume, settings.modality), sha256_of(path)


class Judge:
    """A model that judges scans of an archive and writes their files."""

    def __init__(self, archive: Archive, model: Any, processor: Any, settings: RunSettings):
        self.archive, self.model, self.processor = archive, model, processor
        self.settings = settings
        self.facts, self.places = describe_model(model), places_of(archive)

    def __call__(self, name: str, loaded: Callable[[], tuple[Volume, str]]) -> Row:
        """Row of a scan, from what `load` returned or raised; a failure has its reason."""
        try:
            volume, digest = loaded()
            prediction = predict_with(self.settings, self.model, self.processor, volume, self.facts)
            write_files(prediction, volume, self.places[name], self.archive.files)
        except SCAN_ERRORS as error:
            reason = first_line(error).replace(f"{self.archive.root}/", "")
            return {"status": "failed", "reason": reason}
        return {
            "status": "done",
            **measures(prediction),
            "input_sha256": digest,
            "warnings": "\n".join(find_warnings(volume, self.facts["modality"])),
        }


def write_files(
    prediction: VolumePrediction, volume: Volume, place: Path, files: Sequence[str]
) -> None:
    """Write the volumes that are asked for, on the scan's own grid."""
    if files:
        place.parent.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, tuple[Any, Any]] = {
        "mask": (prediction.mask, np.uint8),
        "scores": (prediction.scores, np.float32),
    }
    for name in files:
        values, dtype = kinds[name]
        write_volume(place.with_name(f"{place.name}{ENDINGS[name]}"), values, volume, dtype)
