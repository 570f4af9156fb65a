"""Stage 2 as one or two real processes, killed at any moment: what comes out must not show it.

    python tests/helpers/forked_runs.py FOLDER 20

trains the toy study of `small_study.py` whole, with 20 random kills on one and on two processes,
and streamed from a Hub whose network is cut once; it prints JSON with every difference. Processes
are forked from one that has imported everything, so a run costs its steps and not its imports.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from loopback_hub import Blob, LoopbackHub, Repository

if __name__ == "__main__":
    HUB = LoopbackHub()
    os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))
import prepare_slices
from safetensors.torch import load_file
from small_study import run_stage2, write_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_rasalore.training import loop
from modeling_rasalore.training.run import RunFolder

STEPS = 50


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start(words: list[str], ranks: int, log: Path) -> list[int]:
    """Process ids of the ranks of one run."""
    port, pids = free_port(), []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.environ["ACCELERATE_USE_CPU"] = "1"
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        file = log.open("a")
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        code = 0
        try:
            if rank == 0:
                tell_steps(log.with_name("step"))
            run_stage2(words)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    return pids


def finish(pids: list[int], log: Path) -> None:
    """Wait for a run that nobody kills."""
    for pid in pids:
        code = os.waitpid(pid, 0)[1]
        assert code == 0, log.read_text()[-3000:]


def tell_steps(path: Path) -> None:
    """Keep the number of the last finished step in a file."""
    log_losses = loop.log_losses

    def log_and_tell(run: RunFolder, *arguments: Any) -> None:
        log_losses(run, *arguments)
        path.write_text(str(run.progress.step))

    setattr(loop, "log_losses", log_and_tell)  # noqa: B010 - mypy allows no other


def kill(pids: list[int], moment: float, path: Path) -> None:
    """Kill every process of a run some time after a step: 7.5 is 50 ms after the 7th."""
    while not (path.exists() and int(path.read_text() or 0) >= int(moment)):
        time.sleep(0.002)
    time.sleep(moment % 1 / 10)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def train(out: Path, words: list[str], ranks: int, kills: tuple[float, ...] = ()) -> None:
    """Run to the end, killed at each of some moments on the way."""
    out.mkdir(parents=True, exist_ok=True)
    words = [*words, f"out={out}"]
    for moment in kills:
        kill(start(words, ranks, out / "log.txt"), moment, out / "step")
        assert not (out / "run.json").exists(), "the run ended before it was killed"
    finish(start(words, ranks, out / "log.txt"), out / "log.txt")


def losses(out: Path) -> dict[int, float]:
    """Loss of every step, what was logged last where an interrupted run repeated it."""
    found: dict[int, tuple[float, float]] = {}
    for path in sorted(out.rglob("events.*")):
        events = EventAccumulator(str(path), {"scalars": 0})
        events.Reload()
        for event in events.Scalars("loss") if "loss" in events.Tags()["scalars"] else []:
            found[event.step] = max(found.get(event.step, (0, 0)), (event.wall_time, event.value))
    return {step: value for step, (_, value) in found.items()}


def difference(ours: Path, theirs: Path) -> dict[str, float]:
    """Largest difference of weights and of losses of two runs, and the steps compared."""
    a, b = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert a.keys() == b.keys()
    weights = max(float((a[name] - b[name]).abs().max()) for name in a)
    one, two = losses(ours), losses(theirs)
    gaps = [abs(one[step] - two[step]) for step in one.keys() & two.keys()]
    return {"weights": weights, "losses": max(gaps), "steps": len(gaps), "spread": spread(one)}


def spread(values: dict[int, float]) -> float:
    return max(values.values()) - min(values.values())


def publish(folder: Path) -> None:
    """Put prepared slices on the loopback Hub as me/slices."""
    files = {
        path.relative_to(folder).as_posix(): Blob(path.read_bytes(), path.suffix == ".parquet")
        for path in folder.rglob("*.*")
    }
    HUB.repositories["datasets", "me/slices"] = Repository(False, {"0" * 40: files})


def main(folder: Path, kills: int) -> dict[str, Any]:
    study = write_study(folder / "study")
    common = [str(study / "training.yaml"), "loop.evaluate_every=10", "loop.checkpoint_every=4"]
    common += [f"loop.max_steps={STEPS}", "loop.ema=0.9"]
    scans = [*common, f"data.root={study}/scans"]
    for ranks in (1, 2):
        train(folder / f"whole{ranks}", scans, ranks)
    results: dict[str, Any] = {
        "processes": json.loads((folder / "whole2/run.json").read_text())["processes"],
        "ranks": difference(folder / "whole1", folder / "whole2"),
        "killed": [],
    }
    moments = random.Random(0)
    for number in range(kills):
        for ranks in (1, 2):
            out = folder / f"killed{ranks}-{number}"
            moment = moments.uniform(1, STEPS - 1)
            train(out, scans, ranks, (moment,))
            resumed = "going on from step" in (out / "log.txt").read_text()
            found = difference(folder / f"whole{ranks}", out)
            results["killed"].append({"ranks": ranks, "at": moment, "resumed": resumed, **found})
    adamw = [*scans, "optimizer.name=adamw", "optimizer.learning_rate=0.01"]
    for ranks in (1, 2):
        train(folder / f"adamw{ranks}", adamw, ranks)
    results["adamw"] = difference(folder / "adamw1", folder / "adamw2")
    workers = [*scans, "loop.workers=2"]
    train(folder / "workers", workers, 2)
    results["workers"] = difference(folder / "whole1", folder / "workers")
    words = [f"root={study}/scans", f"out={folder}/slices", "patients_per_file=2", "processes=1"]
    prepare_slices.main(words)
    publish(folder / "slices")
    HUB.cuts = {12, 13}
    train(folder / "streamed", [*common, "data.root=me/slices"], 1)
    results["streamed"] = difference(folder / "whole1", folder / "streamed")
    results["cuts_left"] = len(HUB.cuts)
    results["warned"] = "reading goes on" in (folder / "streamed/log.txt").read_text()
    return results


if __name__ == "__main__":
    with HUB:
        print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
