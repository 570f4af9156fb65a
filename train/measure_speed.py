"""How much faster the package computes than the plain formulations, on this machine.

    python train/measure_speed.py out=runs/speed
    python train/measure_speed.py out=runs/speed names=[losses,heatmaps] rounds=9 root=scans
    python train/measure_speed.py scale out=runs/scale    (see measure_scale.py)

Each figure is a ratio of median wall times; plain form, ours and a matrix product take turns in one
process, so that whatever else the machine does slows all three. On a busy machine threads=1 and the
ratio of processor times ("cpu") disturb less. Peak memory is measured in a fresh process per form.
Writes speed.json after every figure and prints a table: ratio of wall and of processor times,
seconds, operations and peak memory of both forms, the rate of a matrix product beside them, and how
many times longer ours takes than its operations would at that rate, which is the limit.
"""

import runpy
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import MISSING
from plain.cases import Case, cut_case, inference_case, loss_case, stage1_case, training_case
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from modeling_rasalore.files import write_json
from modeling_rasalore.recipes import load_recipe

NAMES = ["inference_b1", "inference_b4", "training_b4", "poster_training_b4", "losses"]
NAMES += ["stage1_step", "heatmaps", "cut_volume"]


@dataclass
class SpeedRecipe:
    """What is measured, and how often."""

    out: str = MISSING  # folder of speed.json
    names: list[str] = field(default_factory=lambda: list(NAMES))
    rounds: int = 5  # turns of each form
    threads: int = 2
    toy: bool = False  # sizes that only show that everything runs
    root: str = ""  # folder of scans, whose first patient is cut; "": a generated volume


def main(words: list[str]) -> None:
    if words[:1] == ["scale"]:
        sys.argv = ["measure_scale.py", *words[1:]]
        runpy.run_path(str(Path(__file__).with_name("measure_scale.py")), run_name="__main__")
        return
    recipe = load_recipe(SpeedRecipe, words)
    unknown = [name for name in recipe.names if name not in NAMES]
    if unknown or recipe.rounds < 1:
        raise ValueError(
            f"names must be some of {', '.join(NAMES)} and rounds at least 1, got "
            f"{', '.join(recipe.names)} and {recipe.rounds}."
        )
    figures: dict[str, Any] = {}
    print(
        f"{'figure':20}{'ratio':>7}{'cpu':>7}{'s':>9}{'plain s':>9}{'GFLOP':>8}{'plain':>8}"
        f"{'MiB':>7}{'plain':>7}{'product GFLOP/s':>17}{'x limit':>9}"
    )
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    for name in recipe.names:
        figures[name] = measure(name, recipe)
        print(row_of(name, figures[name]), flush=True)
        write_json(Path(recipe.out) / "speed.json", figures)


def measure(name: str, recipe: SpeedRecipe) -> dict[str, Any]:
    """One figure: times, operations, peak memory and the distance from the limit."""
    with prepared(name, recipe) as case:
        result, gflop = count_gflop(case.ours)  # the first run of each also warms up
        plain_result, plain_gflop = count_gflop(case.plain)
        check_agreement(name, plain_result, result, case.tolerance)
        times: dict[str, list[float]] = {"plain": [], "ours": [], "product": []}
        cpu_times: dict[str, list[float]] = {"plain": [], "ours": [], "product": []}
        for _ in range(recipe.rounds):
            for form, run in (("plain", case.plain), ("ours", case.ours), ("product", product)):
                started, cpu_started = time.perf_counter(), time.process_time()
                run()
                times[form].append(time.perf_counter() - started)
                cpu_times[form].append(time.process_time() - cpu_started)
    seconds, plain_seconds = median(times["ours"]), median(times["plain"])
    cpu_seconds, plain_cpu_seconds = median(cpu_times["ours"]), median(cpu_times["plain"])
    rate = 2 * PRODUCT_SIDE**3 / 1e9 / median(times["product"])
    limit = gflop / rate
    return {
        "ratio": plain_seconds / seconds,
        "seconds": seconds,
        "plain_seconds": plain_seconds,
        "cpu_ratio": plain_cpu_seconds / cpu_seconds,
        "cpu_seconds": cpu_seconds,
        "plain_cpu_seconds": plain_cpu_seconds,
        "gflop": gflop,
        "plain_gflop": plain_gflop,
        "peak_mib": peak_mib(name, recipe, "ours"),
        "plain_peak_mib": peak_mib(name, recipe, "plain"),
        # What the processor does in a matrix product, and how many times longer ours takes than its
        # operations would at that rate.
        "product_gflop_per_second": rate,
        "product_gflop_per_cpu_second": 2 * PRODUCT_SIDE**3 / 1e9 / median(cpu_times["product"]),
        "limit_seconds": limit,
        "times_limit": seconds / limit if limit else None,
    }


def row_of(name: str, figure: dict[str, Any]) -> str:
    """One line of the printed table."""
    limit, rate = figure["times_limit"], figure["product_gflop_per_second"]
    return (
        f"{name:20}{figure['ratio']:7.2f}{figure['cpu_ratio']:7.2f}{figure['seconds']:9.3f}"
        f"{figure['plain_seconds']:9.3f}{figure['gflop']:8.1f}{figure['plain_gflop']:8.1f}"
        f"{figure['peak_mib']:7.0f}{figure['plain_peak_mib']:7.0f}{rate:17.1f}"
        + (f"{limit:9.2f}" if limit else f"{'-':>9}")
    )


# --- Instruments ------------------------------------------------------------------------------
PRODUCT_SIDE = 1024
CLEAR_PEAK = Path("/proc/self/clear_refs")  # "5" starts VmHWM anew
FACTOR = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE)


def product() -> Tensor:
    """The matrix product that tells the machine's rate."""
    return FACTOR @ FACTOR


def count_gflop(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """The result, and the operations of matrix products, convolutions and attention, in 10^9."""
    aten = torch.ops.aten

    # The counter knows the fused attention of GPUs only.
    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = run()
    return result, counter.get_total_flops() / 1e9


def check_agreement(name: str, plain: Tensor, ours: Tensor, tolerance: float | None) -> None:
    """ValueError where both forms should give the same result and do not."""
    if tolerance is None:
        return
    apart = float((plain - ours).abs().max())
    if not apart <= tolerance:
        raise ValueError(
            f"{name}: both forms must agree to {tolerance:g}, got {apart:g}; time is worth "
            "measuring only for the same result."
        )


def peak_mib(name: str, recipe: SpeedRecipe, form: str) -> float:
    """Memory that one run of a form takes beyond its model and data, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run_for_peak, name, recipe, form).result()


def run_for_peak(name: str, recipe: SpeedRecipe, form: str) -> float:
    """Peak memory of this process beyond what it needed before the run, in MiB."""
    with prepared(name, recipe) as case:
        before = memory_mib("VmRSS")
        CLEAR_PEAK.write_text("5")
        getattr(case, form)()
        return memory_mib("VmHWM") - before


def memory_mib(field: str) -> float:
    """Memory of this process as Linux counts it: VmRSS now, VmHWM at its peak.

    Not getrusage, whose peak a new process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) / 1024


@contextmanager
def prepared(name: str, recipe: SpeedRecipe) -> Iterator[Case]:
    """The two forms of a figure, with models and data at hand."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        if name == "cut_volume":
            yield cut_case(recipe.root, Path(folder), recipe.toy)
        elif name in ("stage1_step", "heatmaps"):
            yield stage1_case(name, recipe.toy)
        elif name == "losses":
            yield loss_case(recipe.toy)
        elif name.startswith("inference"):
            yield inference_case(int(name[-1]), recipe.toy)
        else:
            yield training_case("poster" if name.startswith("poster") else "released", recipe.toy)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
