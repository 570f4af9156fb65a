"""Measure what a million scans cost on this machine, which stage is the narrowest, what grows how.

    python train/plain/scale.py out=runs/scale
    python train/plain/scale.py out=runs/scale root=scans modality=t2 scans=8

Every stage of a scan's way is timed alone, on one thread: decode, prepare, stage 1, heatmap,
stage 2, write. On a processor the time is the process's own, so other programs do not count; on a
GPU it is the clock's, with the GPU waited for. Then the slices of an epoch are read twice, from the
scans and from prepared slices, and `growth.py` says how the cost grows with size. Writes scale.json
and prints its tables.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from growth import measure_growth, show_growth
from omegaconf import MISSING

from modeling_rasalore import (
    DdptConfig,
    DdptModel,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.shard_writing import SliceChoice, write_manifest, write_part
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.files import write_json
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import run_script
from modeling_rasalore.scans.background import zero_background
from modeling_rasalore.scans.volume_writing import write_nifti, write_volume
from modeling_rasalore.scans.volumes import read_volume

MILLION = 1_000_000
STAGES = ("decode", "prepare", "stage 1", "heatmap", "stage 2", "write")
INFERENCE = ("decode", "prepare", "stage 2", "write")  # what one scan of an archive needs
MODELS = ("stage 1", "heatmap", "stage 2")  # run on the device; all else on a core


@dataclass
class ScaleRecipe:
    """What is measured.

    Attributes:
        out: folder of scale.json.
        root: folder of scans; "": generated volumes of 155 slices of 240 x 240.
        modality: t1, t1ce, t2 or flair.
        skip_slices: lowest and highest slices that an epoch leaves out.
        scans: how many are read.
        batch_size: slices that a network sees at once.
        stage1: folder of a stage-1 configuration; its weights are random.
        stage2: folder of a stage-2 configuration; its weights are random.
        device: that the networks run on.
        growth: whether to measure how cost grows, which takes longest.
    """

    out: str = MISSING
    root: str = ""
    modality: str = "t2"
    skip_slices: int = 15
    scans: int = 4
    batch_size: int = 8
    stage1: str = "hub_configs/ddpt"
    stage2: str = "hub_configs/rasalore"
    device: str = "cpu"
    growth: bool = True


def main(recipe: ScaleRecipe) -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        root = Path(recipe.root or generate_scans(Path(scratch) / "scans", recipe.scans))
        patients = find_patients(root)[: recipe.scans]
        seconds, slices = time_stages(recipe, patients, Path(scratch))
        reading = time_reading(recipe, patients, Path(scratch) / "prepared")
        growth = time_growth(recipe, Path(scratch)) if recipe.growth else {}
    results = {
        **provenance(),
        "device": recipe.device,
        "slices_per_scan": slices,
        "stages": {name: stage_row(taken, slices) for name, taken in seconds.items()},
        "million_scans": cost(recipe, seconds),
        "reading": reading,
        "growth": growth,
    }
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(recipe.out) / "scale.json", results)
    show(results)


# --- The stages of a scan's way ---------------------------------------------------------------
class Stopwatch:
    """Seconds of each stage, a number per scan."""

    def __init__(self, device: torch.device):
        self.clock = clock_of(device)
        self.seconds: dict[str, list[float]] = {name: [] for name in STAGES}

    def time(self, stage: str, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Return what `work` returns, and note how long it took."""
        began = self.clock()
        result = work(*given, **named)
        self.seconds[stage].append(self.clock() - began)
        return result


class Networks:
    """Both stages with random weights on a device, and what prepares slices for them."""

    def __init__(self, recipe: ScaleRecipe, device: torch.device):
        self.device = device
        self.stage1 = DdptModel(DdptConfig.from_pretrained(recipe.stage1)).eval().to(device)
        self.stage2 = RasaloreModel(RasaloreConfig.from_pretrained(recipe.stage2)).eval().to(device)
        self.processor1 = RasaloreImageProcessor.from_pretrained(recipe.stage1)
        self.processor2 = RasaloreImageProcessor.from_pretrained(recipe.stage2)

    def time_batch(self, watch: Stopwatch, batch: list[np.ndarray]) -> None:
        """Time preparing, both stages and the heatmaps of a batch of slices (H, W)."""
        with torch.inference_mode():
            inputs = watch.time("prepare", self.processor2, batch, return_tensors="pt")
            inputs = inputs["pixel_values"].to(self.device)
            prompted = self.processor1(batch, return_tensors="pt")["pixel_values"].to(self.device)
            watch.time("stage 1", self.stage1, prompted)
            watch.time("stage 2", self.stage2, inputs)
        watch.time("heatmap", self.stage1.heatmaps, prompted)


def time_stages(
    recipe: ScaleRecipe, patients: list[Patient], scratch: Path
) -> tuple[dict[str, float], float]:
    """Return the median seconds per scan of every stage, and the slices with brain per scan."""
    device = torch.device(recipe.device)
    networks, watch, counts = Networks(recipe, device), Stopwatch(device), []
    for patient in patients:
        path, channel = patient.images[recipe.modality], patient.channels.get(recipe.modality)
        volume = watch.time("decode", read_volume, path, channel)
        images = [image for image in zero_background(volume.slices) if image.any()]
        batch = images[len(images) // 2 :][: recipe.batch_size]
        networks.time_batch(watch, batch)
        # One batch stands for the scan: a network's time does not depend on what it sees.
        for name in ("prepare", *MODELS):
            watch.seconds[name][-1] *= len(images) / len(batch)
        mask = (volume.slices > np.median(volume.slices[volume.slices > 0])).astype(np.uint8)
        watch.time("write", write_volume, scratch / "mask.nii.gz", mask, volume, np.uint8)
        counts.append(len(images))
    medians = {name: float(np.median(taken)) for name, taken in watch.seconds.items()}
    return medians, float(np.mean(counts))


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the processor time of this process, or on a GPU the time once it has finished."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return clock


def stage_row(seconds: float, slices: float) -> dict[str, float]:
    """Return the throughput of one stage."""
    return {
        "seconds_per_scan": round(seconds, 4),
        "scans_per_second": round(1 / seconds, 3),
        "slices_per_second": round(slices / seconds, 1),
    }


def cost(recipe: ScaleRecipe, seconds: dict[str, float]) -> dict[str, Any]:
    """Return core-hours and GPU-hours of a million scans through stage 2, and the slowest stage."""
    hours = {name: seconds[name] * MILLION / 3600 for name in INFERENCE}
    on_gpu = sum(hours[name] for name in INFERENCE if name in MODELS and recipe.device != "cpu")
    core = sum(hours.values()) - on_gpu
    bottleneck = max(hours, key=lambda name: hours[name])
    return {
        "core_hours": round(core),
        "gpu_hours": round(on_gpu),
        "bottleneck": bottleneck,
        "bottleneck_share": round(hours[bottleneck] / sum(hours.values()), 3),
        "cores_per_gpu": round(core / on_gpu, 1) if on_gpu else None,
    }


def time_growth(recipe: ScaleRecipe, scratch: Path) -> dict[str, dict[str, Any]]:
    """Return what `measure_growth` does, on small scans."""
    root = generate_scans(scratch / "small", 8, (48, 48, 40))
    scans = [patient.images["t2"] for patient in find_patients(root)]
    config, device = RasaloreConfig.from_pretrained(recipe.stage2), torch.device(recipe.device)
    return measure_growth(config, scans, scratch / "results", device)


# --- An epoch's reading -----------------------------------------------------------------------
def time_reading(recipe: ScaleRecipe, patients: list[Patient], folder: Path) -> dict[str, float]:
    """Return the labelled slices per second, from scans and from prepared slices."""
    choice = SliceChoice((recipe.modality,))
    write_manifest(folder, [write_part(folder, "part-00000", patients, choice)], choice)
    rates = {
        "scans_slices_per_second": rate_of(patients, recipe),
        "prepared_slices_per_second": rate_of(find_patients(folder), recipe),
    }
    ratio = rates["prepared_slices_per_second"] / rates["scans_slices_per_second"]
    stored = sum(path.stat().st_size for path in (folder / "data").iterdir())
    scans = sum(patient.images[recipe.modality].stat().st_size for patient in patients)
    return {
        **rates,
        "ratio": round(ratio, 2),
        "bytes_of_prepared_to_scans": round(stored / scans, 2),
    }


def rate_of(patients: list[Patient], recipe: ScaleRecipe) -> float:
    """Return the labelled slices read per second of processor time, the best of three."""
    best = 0.0
    for _ in range(3):
        began, count = time.process_time(), 0
        for patient in patients:
            slices = read_slices(patient, recipe.modality, skip=recipe.skip_slices, labels={0, 1})
            count += sum(1 for _ in slices)
        best = max(best, count / (time.process_time() - began))
    return round(best, 1)


def generate_scans(folder: Path, count: int, shape: tuple[int, int, int] = (240, 240, 155)) -> Path:
    """Return `folder` with scans, by default of BraTS's size, smooth as tissue is, with masks."""
    random = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = sum((axis / 0.75) ** 2 for axis in axes) < 1
    tumour = sum((axis - 0.2) ** 2 for axis in axes) < 0.03
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    for number in range(count):
        name = f"BraTS2021_{number:05d}"
        tissue = 400 + 150 * np.sin(9 * axes[0] + number) * np.cos(7 * axes[1] * axes[2])
        scan = np.where(inside, tissue + random.normal(0, 12, shape) + 200 * tumour, 0)
        mask = np.logical_and(tumour, inside).astype(np.uint8)
        (folder / name).mkdir(parents=True)
        write_nifti(folder / name / f"{name}_t2.nii.gz", scan.astype(np.int16), affine)
        write_nifti(folder / name / f"{name}_seg.nii.gz", mask, affine)
    return folder


def show(results: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{'stage':>10} {'s/scan':>9} {'scans/s':>9} {'slices/s':>9}")
    for name, row in results["stages"].items():
        print(f"{name:>10} " + " ".join(f"{value:>9.3f}" for value in row.values()))
    million, reading = results["million_scans"], results["reading"]
    print(
        f"a million scans through stage 2: {million['core_hours']:,} core-hours and "
        f"{million['gpu_hours']:,} GPU-hours; the bottleneck is {million['bottleneck']} "
        f"({million['bottleneck_share']:.0%})"
    )
    print(
        f"reading an epoch: {reading['prepared_slices_per_second']:,} slices/s prepared, "
        f"{reading['scans_slices_per_second']:,} from scans: {reading['ratio']:g} times"
    )
    show_growth(results["growth"])


if __name__ == "__main__":
    run_script(main)
