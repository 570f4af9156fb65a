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

import numpy as np
import torch
from omegaconf import MISSING
from plain.ddpt import plain_heatmaps, plain_step
from plain.rasalore import plain_forward, plain_loss
from plain.slices import plain_cut
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from modeling_rasalore import DdptConfig, DdptModel, RasaloreConfig, RasaloreModel
from modeling_rasalore.files import write_json
from modeling_rasalore.layouts import Patient, find_patients
from modeling_rasalore.modeling_rasalore import RasaloreOutput
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.slices import read_slices
from modeling_rasalore.volumes import write_nifti

NAMES = ["inference_b1", "inference_b4", "training_b4", "poster_training_b4", "losses"]
NAMES += ["stage1_step", "heatmaps", "cut_volume"]
SLICES_SKIPPED = 15
TOY: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 2,
    "grid_size": 8,
    "refiner_grid": 8,
    "num_attention_heads": 2,
}


@dataclass
class SpeedRecipe:
    """What is measured, and how often."""

    out: str = MISSING  # folder of speed.json
    names: list[str] = field(default_factory=lambda: list(NAMES))
    rounds: int = 5  # turns of each form
    threads: int = 2
    toy: bool = False  # sizes that only show that everything runs
    root: str = ""  # folder of scans, whose first patient is cut; "": a generated volume


@dataclass
class Case:
    """Two ways to the same result, each a function of nothing that returns it.

    tolerance: how far the results may lie apart; None where the forms differ on purpose.
    """

    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    tolerance: float | None = 1e-3


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
            yield cut_case(recipe, Path(folder))
        elif name in ("stage1_step", "heatmaps"):
            yield stage1_case(name, recipe.toy)
        elif name == "losses":
            yield loss_case(recipe.toy)
        elif name.startswith("inference"):
            yield inference_case(int(name[-1]), recipe.toy)
        else:
            yield training_case("poster" if name.startswith("poster") else "released", recipe.toy)


# --- Stage 2 ----------------------------------------------------------------------------------
def make_model(preset: str, toy: bool) -> RasaloreModel:
    """A preset of stage 2 with random weights."""
    sizes = {**TOY, "attention_head_dim": 16 if preset == "released" else None} if toy else {}
    return RasaloreModel(RasaloreConfig.preset(preset, **sizes))


def make_masks(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Pseudo-masks and SAM masks: overlapping discs in random places, (B, 1, size, size)."""
    axis = torch.arange(size, dtype=torch.float32)
    centre = size * (0.3 + 0.4 * torch.rand(batch, 2, 1, 1, 1))
    distance = ((axis[:, None] - centre[:, 0]) ** 2 + (axis - centre[:, 1]) ** 2).sqrt()
    return (distance < 0.15 * size).float(), (distance < 0.12 * size).float()


def inference_case(batch: int, toy: bool) -> Case:
    model = make_model("released", toy).eval()
    pixel_values = torch.rand(batch, 1, model.config.image_size, model.config.image_size)

    @torch.no_grad()
    def plain() -> Tensor:
        return plain_forward(model, pixel_values)["logits"]

    @torch.no_grad()
    def ours() -> Tensor:
        return model(pixel_values).logits

    return Case(plain, ours)


def training_case(preset: str, toy: bool) -> Case:
    """One SGD step at batch 4, against the plain step of the released preset."""
    batch = 4
    plain_model, model = make_model("released", toy), make_model(preset, toy)
    if preset == "released":
        model.load_state_dict(plain_model.state_dict())
    config = plain_model.config
    assert isinstance(config, RasaloreConfig)
    size = config.image_size
    pixel_values = torch.rand(batch, 1, size, size)
    masks = make_masks(batch, 2 * size)
    # Rate 0: every step does all the work from the same weights.
    plain_optimizer = torch.optim.SGD(plain_model.parameters(), lr=0.0, momentum=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(0)  # the same dropout in both
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def plain_loss_now() -> Tensor:
        outputs = plain_forward(plain_model, pixel_values)
        return plain_loss(config, outputs, *masks)

    plain_model.train()
    model.train()
    return Case(
        lambda: step(plain_optimizer, plain_loss_now),
        lambda: step(optimizer, lambda: model(pixel_values, *masks).loss),
        1e-3 if preset == "released" else None,
    )


def loss_case(toy: bool) -> Case:
    """All losses and the gradient of the logits, at the released batch of 16."""
    batch = 4 if toy else 16
    model = make_model("released", toy)
    config = model.config
    assert isinstance(config, RasaloreConfig)
    logits = torch.randn(batch, 1, config.output_size, config.output_size, requires_grad=True)
    points = config.grid_size**2
    activations = torch.rand(batch, points)
    embeddings = torch.randn(batch, points, config.embedding_dim)
    masks = make_masks(batch, config.output_size)
    outputs = {"logits": logits, "point_activations": activations, "point_embeddings": embeddings}

    def gradient(loss: Tensor | None) -> Tensor:
        assert loss is not None  # masks are given
        return torch.cat([loss.detach()[None], torch.autograd.grad(loss, logits)[0].flatten()])

    def ours() -> Tensor:
        output = RasaloreOutput(**outputs)
        model.add_losses(output, *masks)
        return gradient(output.loss)

    return Case(lambda: gradient(plain_loss(config, outputs, *masks)), ours)


# --- Stage 1 ----------------------------------------------------------------------------------
def stage1_case(name: str, toy: bool) -> Case:
    """One guided step at batch 8, or the heatmaps of 16 slices; ViT-B/32 with random weights."""
    fields = {"heatmap_views": 1} if toy else {"base_model_name_or_path": None}
    model = DdptModel(DdptConfig.preset("tiny" if toy else "released", **fields))
    vision = model.config.clip_config.vision_config
    batch = 8 if name == "stage1_step" else 4 if toy else 16
    pixel_values = torch.rand(batch, vision.num_channels, vision.image_size, vision.image_size)
    if name == "heatmaps":
        model.eval()
        return Case(
            lambda: plain_heatmaps(model, pixel_values),
            lambda: model.heatmaps(pixel_values, "cls_attention"),
        )
    labels = torch.arange(batch) % 2
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9)
    model.train()

    def step(loss: Tensor) -> Tensor:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Case(
        lambda: step(plain_step(model, pixel_values, labels)),
        lambda: step(model(pixel_values, labels=labels, guidance=True).loss),
    )


# --- Data -------------------------------------------------------------------------------------
def cut_case(recipe: SpeedRecipe, folder: Path) -> Case:
    """A volume and its mask, cut into slices; the result is how many there are."""
    if recipe.root:
        patient = next(p for p in find_patients(recipe.root) if p.mask and "t2" in p.images)
    else:
        patient = generated_patient(folder, (48, 48, 40) if recipe.toy else (240, 240, 155))
    scan, mask = patient.images["t2"], patient.mask
    assert mask is not None
    return Case(
        lambda: torch.tensor(plain_cut(scan, mask, folder, SLICES_SKIPPED)),
        lambda: torch.tensor(
            len(list(read_slices(patient, "t2", with_mask=True, skip=SLICES_SKIPPED)))
        ),
    )


def generated_patient(folder: Path, shape: tuple[int, int, int]) -> Patient:
    """A noisy ball with a smaller one as its lesion, in the files of one patient."""
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, side) for side in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(600, 100, shape)
    brain = np.where(radius < 1, noise, 0).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # as BraTS: columns to the left, rows to the back
    scan = write_nifti(folder / "ball_t2.nii.gz", brain, affine)
    mask = write_nifti(folder / "ball_seg.nii.gz", (radius < 0.4).astype(np.uint8), affine)
    return Patient("ball", {"t2": scan}, mask=mask)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
