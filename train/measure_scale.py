"""What a million scans cost on this machine, stage by stage, and which stage is the narrow one.

    python train/measure_speed.py scale out=runs/scale
    python train/measure_speed.py scale out=runs/scale root=scans modality=t2 scans=8

Every stage of a scan's way is timed alone, on one thread: decode, prepare, stage 1, heatmap,
stage 2, write. On a processor the time is the process's own, so other programs do not count; on a
GPU it is the clock's, with the GPU waited for. Then the slices of an epoch are read twice, from the
scans and from prepared slices. Writes scale.json and prints both tables.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from modeling_rasalore import (
    DdptConfig,
    DdptModel,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice, Patient
from modeling_rasalore.data.shard_writing import SliceChoice, write_manifest, write_part
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.files import write_json
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.background import zero_background
from modeling_rasalore.scans.volume_writing import write_nifti, write_volume
from modeling_rasalore.scans.volumes import read_volume

MILLION = 1_000_000
INFERENCE = ("decode", "prepare", "stage 2", "write")  # what one scan of an archive needs
MODELS = ("stage 1", "heatmap", "stage 2")  # run on the device; all else on a core


@dataclass
class ScaleRecipe:
    """What is measured."""

    out: str = MISSING  # folder of scale.json
    root: str = ""  # folder of scans; "": generated volumes of 155 slices of 240 x 240
    modality: str = "t2"
    skip_slices: int = 15  # lowest and highest slices that an epoch leaves out
    scans: int = 4  # how many are read
    batch_size: int = 8
    stage1: str = "hub_configs/ddpt"  # folders of configurations; weights are random
    stage2: str = "hub_configs/rasalore"
    device: str = "cpu"


def main(words: list[str]) -> None:
    recipe = load_recipe(ScaleRecipe, words)
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        root = Path(recipe.root or generate(Path(scratch) / "scans", recipe.scans))
        patients = find_patients(root)[: recipe.scans]
        seconds, slices = time_stages(recipe, patients, Path(scratch))
        reading = time_reading(recipe, patients, Path(scratch) / "prepared")
    results = {
        **provenance(),
        "device": recipe.device,
        "slices_per_scan": slices,
        "stages": {name: stage_row(taken, slices) for name, taken in seconds.items()},
        "million_scans": cost(recipe, seconds),
        "reading": reading,
    }
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(recipe.out) / "scale.json", results)
    show(results)


# --- The stages of a scan's way ---------------------------------------------------------------
def time_stages(
    recipe: ScaleRecipe, patients: list[Patient], scratch: Path
) -> tuple[dict[str, float], float]:
    """Seconds per scan of every stage, and the slices with brain per scan."""
    device = torch.device(recipe.device)
    clock = clock_of(device)
    classifier = DdptModel(DdptConfig.from_pretrained(recipe.stage1)).eval().to(device)
    network = RasaloreModel(RasaloreConfig.from_pretrained(recipe.stage2)).eval().to(device)
    first, second = (
        RasaloreImageProcessor.from_pretrained(name) for name in (recipe.stage1, recipe.stage2)
    )
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
        began = clock()
        result = work(*given, **named)
        taken.setdefault(name, []).append(clock() - began)
        return result

    counts = []
    for patient in patients:
        path, channel = patient.images[recipe.modality], patient.channels.get(recipe.modality)
        volume = timed("decode", read_volume, path, channel)
        images = [image for image in zero_background(volume.slices) if image.any()]
        counts.append(len(images))
        batch = images[len(images) // 2 :][: recipe.batch_size]
        # One batch stands for the scan: a network's time does not depend on what it sees.
        share = len(images) / len(batch)
        with torch.inference_mode():
            inputs = timed("prepare", second, batch, return_tensors="pt")
            inputs = inputs["pixel_values"].to(device)
            tuned = first(batch, return_tensors="pt")["pixel_values"].to(device)
            timed("stage 1", classifier, tuned)
            scores = timed("stage 2", network, inputs).logits.sigmoid()
        timed("heatmap", classifier.heatmaps, tuned)
        second.post_process_maps(scores, batch)
        for name in ("prepare", *MODELS):
            taken[name][-1] *= share
        mask = (volume.slices > np.median(volume.slices[volume.slices > 0])).astype(np.uint8)
        path = scratch / "mask.nii.gz"
        timed("write", write_volume, path, mask, volume, np.uint8)
    order = ("decode", "prepare", "stage 1", "heatmap", "stage 2", "write")
    return {name: float(np.median(taken[name])) for name in order}, float(np.mean(counts))


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time of this process, or on a GPU the time once it has finished."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return clock


def stage_row(seconds: float, slices: float) -> dict[str, float]:
    """Throughput of one stage."""
    return {
        "seconds_per_scan": round(seconds, 4),
        "scans_per_second": round(1 / seconds, 3),
        "slices_per_second": round(slices / seconds, 1),
    }


def cost(recipe: ScaleRecipe, seconds: dict[str, float]) -> dict[str, Any]:
    """Hours of a core and of a GPU for a million scans through stage 2, and the slowest stage."""
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


# --- An epoch's reading -----------------------------------------------------------------------
def time_reading(recipe: ScaleRecipe, patients: list[Patient], folder: Path) -> dict[str, float]:
    """Slices per second with a label to train on, from scans and from prepared slices."""
    choice = SliceChoice((recipe.modality,))
    write_manifest(folder, [write_part(folder, "part-00000", patients, choice)], choice)
    prepared = find_patients(folder)
    rates = {}
    for name, found in (("scans", patients), ("prepared", prepared)):
        best = 0.0
        for _ in range(3):
            began = time.process_time()
            count = sum(1 for patient in found for _ in labelled(patient, recipe))
            best = max(best, count / (time.process_time() - began))
        rates[f"{name}_slices_per_second"] = round(best, 1)
    ratio = rates["prepared_slices_per_second"] / rates["scans_slices_per_second"]
    stored = sum(path.stat().st_size for path in (folder / "data").iterdir())
    scans = sum(patient.images[recipe.modality].stat().st_size for patient in patients)
    return {
        **rates,
        "ratio": round(ratio, 2),
        "bytes_of_prepared_to_scans": round(stored / scans, 2),
    }


def labelled(patient: Patient, recipe: ScaleRecipe) -> Iterator[LabelledSlice]:
    return read_slices(patient, recipe.modality, skip=recipe.skip_slices, labels={0, 1})


def generate(folder: Path, count: int) -> Path:
    """Scans of the size of BraTS, smooth as tissue is, with a mask each."""
    random = np.random.default_rng(0)
    shape = (240, 240, 155)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = sum((axis / 0.75) ** 2 for axis in axes) < 1
    tumour = sum((axis - 0.2) ** 2 for axis in axes) < 0.03
    for number in range(count):
        name = f"BraTS2021_{number:05d}"
        tissue = 400 + 150 * np.sin(9 * axes[0] + number) * np.cos(7 * axes[1] * axes[2])
        scan = np.where(inside, tissue + random.normal(0, 12, shape) + 200 * tumour, 0)
        (folder / name).mkdir(parents=True)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        write_nifti(folder / name / f"{name}_t2.nii.gz", scan.astype(np.int16), affine)
        mask = np.logical_and(tumour, inside).astype(np.uint8)
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


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
