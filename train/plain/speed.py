"""Measure how much faster the package computes than the plain formulations, on this machine.

    python train/plain/speed.py out=runs/speed
    python train/plain/speed.py out=runs/speed names=[losses,heatmaps] rounds=9 root=scans
    python train/plain/speed.py out=runs/speed names=[inference_b4,training_b4] precision=bfloat16
    python train/plain/speed.py --device cuda
    python train/plain/speed.py --device cpu --short

Each figure is a ratio of median wall times; plain form, ours and a matrix product take turns in one
process, so that whatever else the machine does slows all three. On a busy machine threads=1 and the
ratio of processor times ("cpu") disturb less. Peak memory is measured in a fresh process per form,
on Linux. Writes speed.json after every figure and prints a table: ratio of wall and of processor
times, seconds, operations and peak memory of both forms, the rate of a matrix product beside them,
and how many times longer ours takes than its operations would at that rate, which is the limit.

With --device it measures what that device does instead: steps, slices per second and peak memory in
float32, TF32, bfloat16 and compiled, and an epoch from Parquet with the loader's share. Sizes of
--short only show that everything runs. Writes device.json.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cases import CASES, Case, cut_case
from devices import measure_device
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from modeling_rasalore.files import write_json
from modeling_rasalore.precision import PRECISIONS, computing_in
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import run_script

NAMES = [*CASES, "cut_volume"]
ROUNDED = 0.05  # how far results of bfloat16 may lie from those of float32
# Of the printed table: heading, key of speed.json, width, digits.
COLUMNS = [
    ("ratio", "ratio", 7, 2),
    ("cpu", "cpu_ratio", 7, 2),
    ("s", "seconds", 9, 3),
    ("plain s", "plain_seconds", 9, 3),
    ("GFLOP", "gflop", 8, 1),
    ("plain", "plain_gflop", 8, 1),
    ("MiB", "peak_mib", 7, 0),
    ("plain", "plain_peak_mib", 7, 0),
    ("product GFLOP/s", "product_gflop_per_second", 17, 1),
    ("x limit", "times_limit", 9, 2),
]


@dataclass
class SpeedRecipe:
    """What is measured, and how often.

    Attributes:
        out: folder of speed.json, or of device.json.
        names: figures to measure.
        rounds: turns of each form.
        threads: that torch computes with.
        toy: take sizes that only show that everything runs, as --short.
        device: what to measure alone, as --device; "": compare with the plain forms on a processor.
        root: folder of scans, whose first patient is cut; "": a generated volume.
        precision: float type that the package's networks compute in; plain forms stay in float32.
    """

    out: str = "runs/speed"
    names: list[str] = field(default_factory=lambda: list(NAMES))
    rounds: int = 5
    threads: int = 2
    toy: bool = False
    device: str = ""
    root: str = ""
    precision: str = "float32"


def main(recipe: SpeedRecipe) -> None:
    unknown = [name for name in recipe.names if name not in NAMES]
    if unknown or recipe.rounds < 1:
        raise ValueError(
            f"names must be some of {', '.join(NAMES)} and rounds at least 1, got "
            f"{', '.join(recipe.names)} and {recipe.rounds}."
        )
    if recipe.precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {recipe.precision}.")
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    if recipe.device:
        write_device_figures(recipe)
        return
    figures: dict[str, Any] = {}
    print(f"{'figure':20}" + "".join(f"{heading:>{width}}" for heading, _, width, _ in COLUMNS))
    for name in recipe.names:
        figures[name] = measure(name, recipe)
        print(row_of(name, figures[name]), flush=True)
        write_json(Path(recipe.out) / "speed.json", figures)


def write_device_figures(recipe: SpeedRecipe) -> None:
    """Print and write what a device does."""
    device = torch.device(recipe.device)
    with TemporaryDirectory() as folder:
        figures = measure_device(device, recipe.toy, Path(folder))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = {**provenance(), "device": name, "short": recipe.toy, "presets": figures}
    write_json(Path(recipe.out) / "device.json", facts)


def words_of(arguments: Sequence[str]) -> list[str]:
    """Return the words of a recipe for a command line that may have --device NAME and --short."""
    words, rest = [], iter(arguments)
    for word in rest:
        if word == "--device":
            words.append(f"device={next(rest, '')}")
        else:
            words.append("toy=true" if word == "--short" else word)
    return words


def measure(name: str, recipe: SpeedRecipe) -> dict[str, Any]:
    """Return one figure: times, operations, peak memory and the distance from the limit."""
    with prepared(name, recipe) as case:
        result, gflop = count_gflop(case.ours)  # the first run of each also warms up
        plain_result, plain_gflop = count_gflop(case.plain)
        check_agreement(name, plain_result, result, case.tolerance)
        forms = {"plain": case.plain, "ours": case.ours, "product": product}
        wall, cpu = time_in_turns(forms, recipe.rounds)
    rate = PRODUCT_GFLOP / wall["product"]
    limit = gflop / rate
    return {
        "ratio": wall["plain"] / wall["ours"],
        "seconds": wall["ours"],
        "plain_seconds": wall["plain"],
        "cpu_ratio": cpu["plain"] / cpu["ours"],
        "cpu_seconds": cpu["ours"],
        "plain_cpu_seconds": cpu["plain"],
        "gflop": gflop,
        "plain_gflop": plain_gflop,
        "peak_mib": measure_peak(name, recipe, "ours"),
        "plain_peak_mib": measure_peak(name, recipe, "plain"),
        # What the processor does in a matrix product, and how many times longer ours takes than its
        # operations would at that rate.
        "product_gflop_per_second": rate,
        "product_gflop_per_cpu_second": PRODUCT_GFLOP / cpu["product"],
        "limit_seconds": limit,
        "times_limit": wall["ours"] / limit if limit else None,
    }


@contextmanager
def prepared(name: str, recipe: SpeedRecipe) -> Iterator[Case]:
    """Yield the two forms of a figure, with models and data at hand."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        if name == "cut_volume":
            yield cut_case(recipe.root, Path(folder), recipe.toy)
            return
        case = CASES[name](recipe.toy)
        if case.model is None or recipe.precision == "float32":
            yield case
            return
        with computing_in(recipe.precision, case.model):
            yield replace(case, tolerance=case.tolerance and ROUNDED)


def row_of(name: str, figure: Mapping[str, Any]) -> str:
    """Return one line of the printed table; "-" stands for what was not measured."""
    cells = [
        f"{'-':>{width}}" if figure[key] is None else f"{figure[key]:{width}.{digits}f}"
        for _, key, width, digits in COLUMNS
    ]
    return f"{name:20}{''.join(cells)}"


# --- Instruments ------------------------------------------------------------------------------
FACTOR = torch.ones(1024, 1024)
PRODUCT_GFLOP = 2 * len(FACTOR) ** 3 / 1e9
CLEAR_PEAK = Path("/proc/self/clear_refs")  # of Linux; "5" starts VmHWM anew


def product() -> Tensor:
    """Return the matrix product that tells the machine's rate."""
    return FACTOR @ FACTOR


def time_in_turns(
    forms: Mapping[str, Callable[[], Tensor]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds of each form, by the clock and of the processor."""
    wall: dict[str, list[float]] = {name: [] for name in forms}
    cpu: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, run in forms.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - cpu_started)
    return {name: median(wall[name]) for name in forms}, {name: median(cpu[name]) for name in forms}


def count_gflop(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return the result, and 10^9 operations of matrix products, convolutions and attention."""
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
    """Raise ValueError where both forms should give the same result and do not."""
    if tolerance is None:
        return
    apart = float((plain - ours).abs().max())
    if not apart <= tolerance:
        raise ValueError(
            f"{name}: both forms must agree to {tolerance:g}, got {apart:g}; time is worth "
            "measuring only for the same result."
        )


def measure_peak(name: str, recipe: SpeedRecipe, form: str) -> float | None:
    """Return the MiB that one run of a form takes beyond its model and data; None but on Linux.

    It runs in a process of its own, whose memory nothing else has stretched.
    """
    if not CLEAR_PEAK.exists():
        return None
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(run_for_peak, name, recipe, form).result()


def run_for_peak(name: str, recipe: SpeedRecipe, form: str) -> float:
    """Return the peak memory of this process beyond what it needed before the run, in MiB."""
    with prepared(name, recipe) as case:
        before = memory_mib("VmRSS")
        CLEAR_PEAK.write_text("5")
        getattr(case, form)()
        return memory_mib("VmHWM") - before


def memory_mib(entry: str) -> float:
    """Return the memory of this process as Linux counts it: VmRSS now, VmHWM at its peak.

    Not getrusage, whose peak a new process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{entry}:")]
    return int(kib) / 1024


if __name__ == "__main__":
    run_script(main, words_of(sys.argv[1:]))
