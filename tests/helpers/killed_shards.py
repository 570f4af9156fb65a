"""Segment scans in three shards, two of them killed, and beside that in a run nobody disturbs.

    python tests/helpers/killed_shards.py FOLDER 500

writes that many toy scans, one of them damaged, segments them both ways and prints JSON: whether
the tables and the files are the same, what was left behind, and the resident memory on the way.
"""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch
from small_study import MODEL, write_scans

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.journal import read_journals
from modeling_rasalore.scans.finding import find_scans

SHARDS = 3


def save_model(folder: Path) -> Path:
    torch.manual_seed(0)
    RasaloreModel(RasaloreConfig(**MODEL)).save_pretrained(folder)
    RasaloreImageProcessor(MODEL["image_size"], 1).save_pretrained(folder)
    return folder


def start(folder: Path, out: Path, shard: str) -> subprocess.Popen[bytes]:
    """A process that segments one shard."""
    words = ["predict", folder / "scans", "--model", folder / "model", "--out", out]
    words += ["--modality", "t2", "--files", "mask,scores", "--parquet", "--shard", shard]
    command = [sys.executable, "-m", "modeling_rasalore.cli", *map(str, words), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for shards; 1: a scan failed."""
    assert all(process.wait() in (0, 1) for process in processes)


def count_scans(journal: Path) -> int:
    """How many scans a journal has, without its first line."""
    return journal.read_bytes().count(b'"scan":') if journal.exists() else 0


def watch_memory(process: subprocess.Popen[bytes], journal: Path, count: int) -> dict[str, float]:
    """Resident MiB of a process after a fifth of the scans and at the last one."""
    resident: list[float] = []
    while (done := count_scans(journal)) < count:  # then it imports pyarrow
        assert process.poll() is None
        if done > count / 5:
            resident.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        time.sleep(0.005)
    return {"early": resident[0], "end": resident[-1], "peak": max(resident)}


def kill(process: subprocess.Popen[bytes], journal: Path, scans: int, pause: float) -> None:
    """End a process a moment after it has done so many scans."""
    while count_scans(journal) < scans:
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    assert process.wait() not in (0, 1), "it had finished"


def read_files(out: Path) -> dict[str, str]:
    """Every file of the scans and what is in it, hidden ones too."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*/*"))
        if path.is_file() and path.parent.name != "journals"
    }


def main(folder: Path, count: int) -> dict[str, Any]:
    save_model(folder / "model")
    scans = find_scans([write_scans(folder / "scans", count)], "t2").scans
    scans[count // 2].write_bytes(b"damaged")
    single, sharded = folder / "single", folder / "sharded"
    began = time.monotonic()
    process = start(folder, single, "0/1")
    memory = watch_memory(process, single / "journals" / "00000-of-00001.jsonl", count)
    finish([process])
    moments = random.Random(1)
    processes = [start(folder, sharded, f"{number}/{SHARDS}") for number in range(SHARDS)]
    for victim, share in ((0, 0.2), (2, 0.5)):
        journal = sharded / "journals" / f"{victim:05d}-of-{SHARDS:05d}.jsonl"
        kill(processes[victim], journal, round(share * count / SHARDS), moments.uniform(0, 0.02))
        processes[victim] = start(folder, sharded, f"{victim}/{SHARDS}")
    finish(processes)
    tables = [pq.read_table(out / "results.parquet") for out in (single, sharded)]
    return {
        "same_table": tables[0].equals(tables[1]),
        "rows": tables[0].num_rows,
        "failed": [
            row for row in tables[1].select(["scan", "reason"]).to_pylist() if row["reason"]
        ],
        "same_files": read_files(single) == read_files(sharded),
        "files": len([name for name in read_files(sharded) if "_mask" in name]),
        "drafts": [p.name for p in sharded.rglob(".*")],
        "progress": read_journals(sharded).progress(),
        "seconds": round(time.monotonic() - began, 1),
        "memory": memory,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
