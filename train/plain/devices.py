"""Measure training steps, inference and an epoch of stage 2 on one device, in each float type.

For `speed.py --device cuda`: step time, slices per second and peak memory of float32, TF32,
bfloat16 and compiled bfloat16, then an epoch from Parquet to the last step with the loader's share.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import generated_patient, make_masks

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.shard_writing import SliceChoice, write_manifest, write_part
from modeling_rasalore.precision import choose_precision, computing_in
from modeling_rasalore.recipes import load_recipe, preset_folder
from modeling_rasalore.training.examples import choose_training, collate_masked, prepare_masked
from modeling_rasalore.training.slice_loader import SliceLoader
from modeling_rasalore.training.stage2 import Stage2Recipe, build_objective
from modeling_rasalore.training.work_list import WorkList

# Of the printed table: heading, key, width, digits.
COLUMNS = (
    ("step ms", "step_ms", 10, 1),
    ("slices/s", "training_slices_per_second", 10, 1),
    ("MiB", "training_peak_mib", 8, 0),
    ("inference/s", "inference_slices_per_second", 13, 1),
    ("MiB", "inference_peak_mib", 8, 0),
)


@dataclass(frozen=True)
class Form:
    """One way to compute: float type, whether TF32 may stand for float32, whether compiled."""

    precision: str
    tf32: bool = False
    compiled: bool = False


FORMS = {
    "float32": Form("float32"),
    "TF32": Form("float32", tf32=True),
    "bfloat16": Form("bfloat16"),
    "bfloat16, compiled": Form("bfloat16", compiled=True),
}


@dataclass(frozen=True)
class Amount:
    """How much is measured: presets, slices of a batch, rounds, and scans of the epoch."""

    presets: tuple[str, ...]
    batch: int
    rounds: int
    patients: int
    shape: tuple[int, int, int]


FULL = Amount(("rasalore-base", "rasalore"), 16, 10, 4, (240, 240, 155))
SHORT = Amount(("rasalore-tiny",), 2, 1, 1, (120, 120, 40))


def measure_device(device: torch.device, short: bool, folder: Path) -> dict[str, Any]:
    """Return the figures of each preset: by form, and of an epoch; prints them on the way.

    Args:
        device: that computes.
        short: take sizes that only show that everything runs.
        folder: empty; gets the scans and prepared slices of the epoch.
    """
    amount, results = SHORT if short else FULL, dict[str, Any]()
    forms = {n: f for n, f in FORMS.items() if device.type == "cuda" or not f.tf32}
    for preset in amount.presets:
        print(f"{preset:24}" + "".join(f"{heading:>{width}}" for heading, _, width, _ in COLUMNS))
        figures = {}
        for name, form in forms.items():
            figures[name] = measure_form(preset, form, device, amount)
            print(f"{name:24}{row_of(figures[name])}", flush=True)
        epoch = time_epoch(preset, device, amount, folder / preset)
        print(
            f"{preset}: an epoch of {epoch['slices']} slices from Parquet in {epoch['precision']}: "
            f"{epoch['seconds']:.1f} s, {epoch['slices_per_second']:.1f} slices/s, of which the "
            f"loader has {epoch['loader_share']:.0%}",
            flush=True,
        )
        results[preset] = {"forms": figures, "epoch": epoch}
    return results


def row_of(figure: dict[str, Any]) -> str:
    """Return the cells of a printed line; "-" stands for what was not measured."""
    return "".join(
        f"{'-':>{width}}" if figure[key] is None else f"{figure[key]:{width}.{digits}f}"
        for _, key, width, digits in COLUMNS
    )


# --- Steps ----------------------------------------------------------------------------------------
def measure_form(preset: str, form: Form, device: torch.device, amount: Amount) -> dict[str, Any]:
    """Return milliseconds of a training step, slices per second and peaks, on random slices."""
    torch.set_float32_matmul_precision("high" if form.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = form.tf32
    torch.manual_seed(0)
    config = RasaloreConfig.from_pretrained(preset_folder(preset))
    network: Any = RasaloreModel(config).train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=device.type == "cuda")
    size = config.image_size
    pixel_values = torch.rand(amount.batch, config.num_channels, size, size, device=device)
    labels = make_masks(amount.batch, 2 * size)[0].to(device)
    if form.compiled:
        network.compile()
    reduced = form.precision == "bfloat16"
    computing = partial(torch.autocast, device.type, torch.bfloat16, enabled=reduced)

    def step() -> None:
        with computing():
            loss = network(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def infer() -> None:
        with computing():
            network(pixel_values)

    seconds, peak = time_work(step, device, amount.rounds)
    network.eval()
    inference_seconds, inference_peak = time_work(infer, device, amount.rounds)
    torch.compiler.reset()
    return {
        "step_ms": 1000 * seconds,
        "training_slices_per_second": amount.batch / seconds,
        "training_peak_mib": peak,
        "inference_slices_per_second": amount.batch / inference_seconds,
        "inference_peak_mib": inference_peak,
    }


def time_work(
    work: Callable[[], None], device: torch.device, rounds: int
) -> tuple[float, float | None]:
    """Return the median seconds of `work` after two first runs, and the GPU's peak in MiB."""
    for _ in range(2):  # compiles, chooses kernels
        work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(rounds):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    on_gpu = device.type == "cuda"
    return median(seconds), torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# --- An epoch -------------------------------------------------------------------------------------
def time_epoch(preset: str, device: torch.device, amount: Amount, folder: Path) -> dict[str, Any]:
    """Return how long an epoch takes from prepared slices, with lesions painted into them."""
    prepare_scans(folder, amount)
    words = ["data.modality=t2", "synthetic_lesions.share=1", f"data.root={folder / 'prepared'}"]
    training = preset_folder(preset) / "training.yaml"
    recipe = load_recipe(Stage2Recipe, [str(training), *words, f"out={folder / 'run'}"])
    processor = RasaloreImageProcessor.from_pretrained(preset_folder(preset))
    config = RasaloreConfig.from_pretrained(preset_folder(preset))
    network: Any = RasaloreModel(config).train().to(device)
    chosen = choose_precision(network.config, device).name
    optimizer = torch.optim.AdamW(network.parameters())
    losses = build_objective(recipe, processor).losses
    loader = open_loader(recipe, processor, network.config.output_size)
    began, waited, slices = time.perf_counter(), 0.0, 0
    steps = iter(loader.steps(0))
    while True:
        asked = time.perf_counter()
        step = next(steps, None)
        waited += time.perf_counter() - asked
        if step is None:
            break
        for _, size, batch in step.pieces:
            batch = {name: value.to(device) for name, value in batch.items()}
            with computing_in(chosen, network):
                loss = losses(network, batch, 0)["loss"]
            loss.backward()
            slices += size
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait_for(device)
    seconds = time.perf_counter() - began
    rates = {"slices_per_second": slices / seconds, "loader_share": waited / seconds}
    return {"slices": slices, "precision": chosen, "seconds": seconds, **rates}


def open_loader(recipe: Stage2Recipe, processor: Any, size: int) -> SliceLoader:
    """Return the loader of healthy slices of all prepared patients."""
    patients = find_patients(recipe.data.root)
    listed = WorkList.of(patients, recipe.data.modality, recipe.data.skip_slices)
    chosen = choose_training(recipe.synthetic_lesions, listed, None, recipe.loop.seed)
    prepare = partial(prepare_masked, processor, None, size)
    return SliceLoader(
        *(chosen, chosen, recipe.data, recipe.loop, prepare, collate_masked), see=processor.see
    )


def prepare_scans(folder: Path, amount: Amount) -> None:
    """Write generated scans as prepared slices into `folder`/prepared."""
    patients = []
    for number in range(amount.patients):
        scans = folder / f"scan_{number}"
        scans.mkdir(parents=True)
        patient = generated_patient(scans, amount.shape)
        patients.append(replace(patient, patient_id=f"ball_{number}"))
    choice = SliceChoice(("t2",))
    part = write_part(folder / "prepared", "part-00000", patients, choice)
    write_manifest(folder / "prepared", [part], choice)
