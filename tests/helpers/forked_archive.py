"""An archive through three shards, two of them killed, beside a run that nobody disturbed.

    python tests/helpers/forked_archive.py FOLDER 500

writes that many toy scans, one of them damaged, judges them both ways and prints JSON: whether the
tables and the files are the same, what was left behind, and the resident memory on the way.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import pyarrow.parquet as pq
import torch
from small_study import MODEL, write_scans

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.archive import Archive, run_shard
from modeling_rasalore.prediction.run import RunSettings
from modeling_rasalore.scans.finding import find_scans

SETTINGS = RunSettings(threshold=0.5, threshold_source="given", modality="t2")


def start(archive: Archive, shard: tuple[int, int]) -> int:
    """Process id of one shard."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        threading.Thread(target=watch_memory, args=(archive.out,), daemon=True).start()
        torch.manual_seed(0)
        model = RasaloreModel(RasaloreConfig(**MODEL)).eval()
        processor = RasaloreImageProcessor(MODEL["image_size"], 1)
        run_shard(archive, shard, model, processor, SETTINGS, say=lambda line: None)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def watch_memory(out: Path) -> None:
    """Note this process's resident pages several times a second."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"memory-{os.getpid()}").open("w") as file:
        while True:
            file.write(Path("/proc/self/statm").read_text().split()[1] + "\n")
            file.flush()
            time.sleep(0.1)


def memory(out: Path) -> dict[str, float]:
    """Resident MiB after a fifth of the longest process and at its end."""
    longest = max((p.read_text().split() for p in out.glob("memory-*")), key=len)
    pages = [int(page) / 256 for page in longest]
    return {"early": pages[len(pages) // 5], "end": pages[-1], "peak": max(pages)}


def finish(pids: list[int]) -> None:
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0


def wait_for(archive: Archive, scans: int) -> None:
    """Return when so many scans are in the journals."""
    while archive.progress()["left"] > len(archive.names) - scans:
        time.sleep(0.02)


def files(out: Path) -> dict[str, str]:
    """Every file of the results and what is in it, hidden ones too."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / "files").rglob("*"))
        if path.is_file()
    }


def main(folder: Path, count: int) -> dict[str, Any]:
    root = write_scans(folder / "scans", count)
    names = [path.relative_to(root).as_posix() for path in find_scans([root], "t2")]
    (root / names[count // 2]).write_bytes(b"damaged")
    single, sharded = (Archive(root, tuple(names), folder / n) for n in ("single", "sharded"))
    began = time.monotonic()
    finish([start(single, (0, 1))])
    seconds = time.monotonic() - began
    moments = random.Random(1)
    pids = [start(sharded, (number, 3)) for number in range(3)]
    for victim, share in ((0, 0.2), (2, 0.5)):
        wait_for(sharded, round(share * count))
        time.sleep(moments.uniform(0, seconds / count))
        os.kill(pids[victim], signal.SIGKILL)
        os.waitpid(pids[victim], 0)
        pids[victim] = start(sharded, (victim, 3))
    finish(pids)
    tables = [pq.read_table(archive.out / "results.parquet") for archive in (single, sharded)]
    return {
        "same_table": tables[0].equals(tables[1]),
        "rows": tables[0].num_rows,
        "failed": [
            row for row in tables[1].select(["scan", "reason"]).to_pylist() if row["reason"]
        ],
        "same_files": files(single.out) == files(sharded.out),
        "files": len(files(sharded.out)),
        "drafts": [p.name for p in sharded.out.rglob(".*")],
        "progress": sharded.progress(),
        "seconds": round(seconds, 1),
        "memory": memory(single.out),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
