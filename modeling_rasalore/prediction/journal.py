"""Keep the journals of a run: one line per scan, appended when the scan's files are complete.

Each process of a run appends to a journal of its own, so any number may work on any machines that
share the folder. A process begins with a line that says what makes its results (model, settings,
device, versions); the scans after it count for a later run that says the same.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import replace_file
from ..provenance import JOURNALS, peak_mib

PACKED = "earlier.jsonl"  # the results of runs before the last one
WHOLE = (0, 1)  # the only shard: which, counted from 0, of how many
Entry = dict[str, Any]  # what manifest.json says of one scan
Facts = dict[str, Any]  # what makes the results of a run


def pick_shard(text: str | None) -> tuple[int, int]:
    """Return number and count of this process's shard; processes of one launch share the given one.

    Args:
        text: such as "0/4", counted from 0; None: all scans.

    Raises:
        ValueError: no such shard.
    """
    number, _, count = (text or "0/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard must be like 0/4, counted from 0, got {text!r}.")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return int(number) * ranks + rank, int(count) * ranks


@dataclass(frozen=True)
class Record:
    """The last line about a scan.

    Attributes:
        entry: what it says.
        facts: of the process that wrote it.
        time: when, in seconds since 1970.
        peak_mib: the most memory that the process had held; None: unknown.
    """

    entry: Entry
    facts: Facts
    time: float
    peak_mib: float | None


@dataclass(frozen=True)
class Journals:
    """All that the journals of a folder say.

    Attributes:
        records: by the scan's name in the results.
        facts: of the process that started last; {} where none did.
    """

    records: dict[str, Record]
    facts: Facts

    def results_of(self, facts: Facts) -> dict[str, Record]:
        """Return the records that were made with the model and the settings of `facts`."""
        return {key: r for key, r in self.records.items() if same_results(r.facts, facts)}

    def earlier(self, out: Path, facts: Facts, keys: Collection[str]) -> dict[str, Entry]:
        """Return the entries of scans besides `keys`, without those whose files are gone.

        What was made with another model or other settings than `facts` says so, as `made_with` and
        in its warnings.
        """
        entries = {}
        for key, record in self.records.items():
            files = record.entry.get("outputs", {}).values()
            if key in keys or (files and not any((out / name).exists() for name in files)):
                continue
            entries[key] = record.entry
            if choices := other_choices(record.facts, facts):
                model = (choices.get("model") or {}).get("name")
                words = (
                    f"{name} {model if name == 'model' else choices[name]}" for name in choices
                )
                warning = f"made by an earlier run with another setting: {', '.join(words)}."
                warnings = [*record.entry.get("warnings", []), warning]
                entries[key] = record.entry | {"made_with": choices, "warnings": warnings}
        return entries

    def differences(self, facts: Facts) -> list[str]:
        """Return what some records were made otherwise with: names of settings, or "model"."""
        others = (other_choices(record.facts, facts) for record in self.records.values())
        return sorted({name for choices in others for name in choices})

    def progress(self) -> dict[str, int]:
        """Return how many scans the last run has, and how many are done, failed and left."""
        scans, records = self.facts.get("scans", 0), self.results_of(self.facts).values()
        states = [r.entry["status"] for r in records if same_list(r.facts, self.facts)]
        done, failed = states.count("done"), states.count("failed")
        left = max(scans - done - failed, 0)
        return {"scans": scans, "done": done, "failed": failed, "left": left}


def same_list(facts: Facts, other: Facts) -> bool:
    """Whether two processes segment the same scans, or share them."""
    return facts.get("scan_list") == other.get("scan_list")


def other_choices(facts: Facts, other: Facts) -> dict[str, Any]:
    """Return the settings, or the model, of `facts` that are not those of `other`."""
    theirs, ours = _choices(facts), _choices(other)
    return {name: theirs.get(name) for name in theirs | ours if theirs.get(name) != ours.get(name)}


def same_results(facts: Facts, other: Facts) -> bool:
    """Whether two processes make results of one kind, which may stand side by side."""
    return _choices(facts) == _choices(other)


def same_origin(facts: Facts, other: Facts) -> bool:
    """Whether two processes make equal results: their versions and kind of device agree too."""
    devices = {str(each.get("device")).split(":")[0] for each in (facts, other)}
    same_machines = len(devices) == 1 and facts.get("versions") == other.get("versions")
    return same_results(facts, other) and same_machines


def _choices(facts: Facts) -> dict[str, Any]:
    return {"model": facts.get("model"), **facts.get("settings", {})}


def read_journals(out: Path) -> Journals:
    """Return the last line of every scan, and what the last process to start said of itself."""
    records: dict[str, Record] = {}
    started, last_facts = 0.0, Facts()
    for path in sorted((out / JOURNALS).glob("*.jsonl")):
        facts = Facts()
        for line in read_lines(path):
            if "facts" in line:
                facts = line["facts"]
                if line["time"] >= started:
                    started, last_facts = line["time"], facts
                continue
            record = Record(line["entry"], facts, line["time"], line["peak_mib"])
            if line["scan"] not in records or records[line["scan"]].time <= record.time:
                records[line["scan"]] = record
    return Journals(records, last_facts)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a journal; a kill may leave half of one."""
    with path.open("rb") as journal:
        for line in journal:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            yield content


def describe_run(out: Path) -> dict[str, Any]:
    """Return what the journals of a folder say of its run, and how far it is; {} without any."""
    journals = read_journals(out)
    return {**journals.facts, "progress": journals.progress()} if journals.facts else {}


@contextmanager
def open_journal(
    out: Path, shard: tuple[int, int], facts: Facts
) -> Iterator[Callable[[str, Entry], None]]:
    """Yield a function that appends a scan and its entry to the journal of a shard, on disk.

    Args:
        shard: which one, counted from 0, of how many.
        facts: what makes the entries.
    """
    number, count = shard
    path = out / JOURNALS / f"{number:05d}-of-{count:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    close_line(path)
    with path.open("a", encoding="utf-8") as journal:

        def append(content: dict[str, Any]) -> None:
            journal.write(json.dumps({"time": time.time(), **content}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

        append({"facts": facts})
        yield lambda key, entry: append({"scan": key, "entry": entry, "peak_mib": peak_mib()})


def close_line(path: Path) -> None:
    """End the half line that a kill left, so that the next line begins anew."""
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
        with path.open("ab") as journal:
            journal.write(b"\n")


def pack_journals(out: Path) -> None:
    """Put the last line of every scan into one journal in place of all others.

    They count as results of earlier runs then, not as progress of the one that begins.
    """
    paths = sorted((out / JOURNALS).glob("*.jsonl"))
    records = sorted(read_journals(out).records.items(), key=lambda item: item[1].time)
    lines, facts = [], None
    for key, record in records:
        theirs = {name: fact for name, fact in record.facts.items() if name != "scan_list"}
        if theirs != facts:
            facts = theirs
            lines.append({"time": record.time, "facts": facts})
        line = {"scan": key, "entry": record.entry, "peak_mib": record.peak_mib}
        lines.append({"time": record.time, **line})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if text:
        packed = out / JOURNALS / PACKED
        replace_file(packed, lambda draft: draft.write_text(text, encoding="utf-8"))
    for path in paths:
        if path.name != PACKED:
            path.unlink()
