"""Measure how processor time grows with slices, patients, points, image size, processes and shards.

Each series takes doubling sizes and fits a power law, seconds = a * size^exponent. What should be
linear has an exponent of 1, what costs the same whatever its size has 0. Times are those of
processors, the least of some rounds, so that other programs count little.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.run import predict_scans
from modeling_rasalore.prediction.volume import predict_slices

ROUNDS = 3
Work = Callable[[], Any]


@dataclass(frozen=True)
class Series:
    """One way to grow.

    Attributes:
        sizes: numbers of what the name says.
        expected: exponent of a cost that is linear in it, 1, or does not depend on it, 0; None
            where part of the work grows and part of it does not.
        work_of: size -> what is timed.
    """

    sizes: Sequence[int]
    expected: float | None
    work_of: Callable[[int], Work]


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent of the power law through sizes and seconds, by least squares of logs."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def measure_growth(
    config: RasaloreConfig, scans: Sequence[Path], folder: Path, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Return sizes, seconds, exponent and expected exponent of each series, by its name.

    Args:
        config: of the stage-2 network of the series about slices, points, pixels and processes;
            those about patients and shards have the `tiny` one, beside which files count.
        scans: at least 8 files.
        folder: empty; gets the results of the scans.
        device: that the networks run on.
    """
    results = {}
    for name, series in list_series(config, scans, folder, device).items():
        seconds = [least_seconds(series.work_of(size)) for size in series.sizes]
        results[name] = {
            "sizes": list(series.sizes),
            "seconds": [round(value, 4) for value in seconds],
            "exponent": round(fit_exponent(series.sizes, seconds), 2),
            "expected": series.expected,
        }
    return results


def list_series(
    config: RasaloreConfig, scans: Sequence[Path], folder: Path, device: torch.device
) -> dict[str, Series]:
    """Return what is measured, by name."""
    size, grid = config.image_size, config.grid_size
    grids = (grid // 4, grid // 2, grid)
    sizes = (size // 4 * 2, size // 4 * 3, size)
    return {
        "slices": Series((4, 8, 16), 1.0, partial(segment_slices, config, device)),
        "patients": Series((2, 4, 8), 1.0, partial(segment_patients, scans, folder)),
        "points": Series(
            [side**2 for side in grids],
            None,
            lambda points: run_network(config, device, grid_size=round(points**0.5)),
        ),
        "pixels": Series(
            [side**2 for side in sizes],
            1.0,
            lambda pixels: run_network(config, device, image_size=round(pixels**0.5)),
        ),
        "processes": Series((1, 2), 1.0, partial(segment_apart, config)),
        "shards": Series((1, 2, 4, 8), 0.0, partial(segment_shards, scans, folder)),
    }


def least_seconds(work: Work) -> float:
    """Return the least processor time of some rounds of `work`, which may tell it itself."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        told = work()
        seconds.append(told if isinstance(told, float) else time.process_time() - began)
    return min(seconds)


# --- Work -----------------------------------------------------------------------------------------
def make_network(config: RasaloreConfig, device: torch.device, **fields: Any) -> RasaloreModel:
    """Return a network with random weights, some fields of its configuration replaced."""
    changed = RasaloreConfig(**{**config.to_diff_dict(), **fields})
    return RasaloreModel(changed).eval().to(device)


def run_network(config: RasaloreConfig, device: torch.device, **fields: Any) -> Work:
    """Return a pass of two slices through a network."""
    network = make_network(config, device, **fields)
    side = network.config.image_size
    pixel_values = torch.rand(2, network.config.num_channels, side, side, device=device)

    @torch.inference_mode()
    def work() -> None:
        network(pixel_values)

    return work


def segment_slices(config: RasaloreConfig, device: torch.device, count: int) -> Work:
    """Return the segmentation of slices of 240 x 240, in batches of 4."""
    network = make_network(config, device, num_channels=1)
    processor = RasaloreImageProcessor(config.image_size, 1)
    images = np.random.default_rng(0).uniform(1, 2, (count, 240, 240)).astype(np.float32)
    return lambda: predict_slices(network, processor, list(images))


def segment_patients(scans: Sequence[Path], folder: Path, count: int, shards: int = 1) -> Work:
    """Return the segmentation of scans, in shards one after the other, with all of its files."""
    config = RasaloreConfig.preset("tiny")
    network, processor = RasaloreModel(config).eval(), RasaloreImageProcessor(config.image_size, 1)
    options, numbers = PredictionOptions(modality="t2"), iter(range(ROUNDS))

    def work() -> None:
        out = folder / f"{count}_{shards}_{next(numbers)}"
        for shard in range(shards):
            predict_scans(
                *(network, processor, scans[:count], out, options),
                shard=(shard, shards),
                say=lambda line: None,
            )

    return work


def segment_shards(scans: Sequence[Path], folder: Path, shards: int) -> Work:
    """Return the segmentation of 8 scans in so many shards."""
    return segment_patients(scans, folder, 8, shards)


def segment_apart(config: RasaloreConfig, processes: int) -> Work:
    """Return the segmentation of as many slices in each of some processes, which tells its time."""

    def work() -> float:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            return sum(pool.map(time_slices, [config.to_diff_dict()] * processes))

    return work


def time_slices(fields: dict[str, Any]) -> float:
    """Return the processor time of 8 slices in this process, after a first one."""
    torch.set_num_threads(1)
    config, cpu = RasaloreConfig(**fields), torch.device("cpu")
    segment_slices(config, cpu, 1)()
    work = segment_slices(config, cpu, 8)
    began = time.process_time()
    work()
    return time.process_time() - began


def show_growth(growth: dict[str, dict[str, Any]]) -> None:
    """Print the exponents."""
    for name, series in growth.items():
        pairs = zip(series["sizes"], series["seconds"], strict=True)
        steps = ", ".join(f"{size}: {seconds:g} s" for size, seconds in pairs)
        expected = "-" if series["expected"] is None else f"{series['expected']:g}"
        print(f"{name:>10} exponent {series['exponent']:5.2f} (expected {expected})  {steps}")
