"""Measure what a user waits for on one scan: this package's networks beside those of others.

    pip install "rasalore[peers]"
    python train/plain/peers.py out=runs/peers
    python train/plain/peers.py out=runs/peers toy=true

All have random weights and see a scan of 240 x 240 x 155 voxels: the table says what a user waits
for, and not how good it is. Every network runs in a process of its own with as many threads; they
take turns, so that whatever else the machine does slows all. A diffusion model's time is that of
one of its steps times their number. Writes peers.json and prints seconds, processor seconds and
peak memory beyond the weights, which is measured on Linux.

Sizes: SegResNet as in MONAI's bundle brats_mri_segmentation, on the whole scan at once; DynUNet as
nnU-Net plans 3d_fullres for BraTS, on windows of 128 voxels that overlap by half; the U-Net of
AnoFPDM, which passes each slice of 128 x 128 twice in each of 600 steps. Of the last two one window
and one pass are timed, and multiplied.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from plain_rasalore import plain_forward
from speed import CLEAR_PEAK, memory_mib
from torch import Tensor, nn

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.files import write_json
from modeling_rasalore.precision import choose_for_model, computing_in
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import run_script

SCAN = (155, 240, 240)  # slices, rows, columns
TOY_SCAN = (32, 64, 64)
WHOLE = (160, 240, 240)  # what SegResNet makes of a scan: sides that halve three times
PATCH = (128, 128, 128)
PASSES = 2 * 600  # of a slice through the diffusion U-Net
BATCH = 4
Work = Callable[[], Any]


@dataclass
class PeersRecipe:
    """What is measured.

    Attributes:
        out: folder of peers.json.
        names: networks to measure; empty: all.
        rounds: turns of each network.
        threads: that torch computes with.
        toy: take a small scan, which only shows that everything runs.
    """

    out: str = "runs/peers"
    names: list[str] = field(default_factory=list)
    rounds: int = 1
    threads: int = 2
    toy: bool = False


@dataclass(frozen=True)
class Peer:
    """One network on a scan.

    Attributes:
        times: how often `work` is done for the scan; above 1 for what is too slow to be done often.
        work: what is timed.
    """

    times: float
    work: Work


def main(recipe: PeersRecipe) -> None:
    names = list(recipe.names or PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"names must be some of {', '.join(PEERS)}, got {', '.join(unknown)}.")
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(recipe.rounds):
        for name in names:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                turns[name].append(pool.submit(measure, name, recipe.threads, recipe.toy).result())
    figures = {
        name: {key: median(turn[key] for turn in of_name) for key in of_name[0]}
        for name, of_name in turns.items()
    }
    Path(recipe.out).mkdir(parents=True, exist_ok=True)
    facts = {**provenance(), "threads": recipe.threads, "toy": recipe.toy, "networks": figures}
    write_json(Path(recipe.out) / "peers.json", facts)
    show(figures)


def measure(name: str, threads: int, toy: bool) -> dict[str, float]:
    """Return seconds, processor seconds and peak memory of a network on one scan."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    peer = PEERS[name](TOY_SCAN if toy else SCAN)
    before = memory_mib("VmRSS") if CLEAR_PEAK.exists() else 0.0
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")
    began, cpu_began = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        peer.work()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = memory_mib("VmHWM") - before if CLEAR_PEAK.exists() else float("nan")
    figures = {"seconds": seconds * peer.times, "cpu_seconds": cpu_seconds * peer.times}
    return {**figures, "peak_mib": peak}


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    print(f"{'network':28}{'s':>10}{'cpu s':>10}{'MiB':>8}")
    for name, figure in figures.items():
        print(f"{name:28}" + "{seconds:10.1f}{cpu_seconds:10.1f}{peak_mib:8.0f}".format(**figure))


# --- Networks -------------------------------------------------------------------------------------
def rasalore(preset: str, scan: tuple[int, int, int], precision: str = "float32") -> Peer:
    """Return a preset of stage 2, slice by slice in batches."""
    network, batch = make_rasalore(preset)
    chosen = choose_for_model(network, precision).name

    def work() -> None:
        with computing_in(chosen, network):
            for _ in range(0, scan[0], BATCH):
                network(batch)

    return Peer(1, work)


def released(scan: tuple[int, int, int]) -> Peer:
    """Return the plain form of the released modules."""
    network, batch = make_rasalore("released")
    return Peer(-(-scan[0] // BATCH), lambda: plain_forward(network, batch))


def make_rasalore(preset: str) -> tuple[RasaloreModel, Tensor]:
    """Return a preset of stage 2, and a batch of slices for it."""
    network = RasaloreModel(RasaloreConfig.preset(preset)).eval()
    config = network.config
    return network, torch.rand(BATCH, config.num_channels, config.image_size, config.image_size)


def segresnet(scan: tuple[int, int, int]) -> Peer:
    """Return MONAI's SegResNet at the size of its BraTS bundle, four sequences."""
    from monai.networks.nets import SegResNet

    network = SegResNet(
        *(3, 16, 4, 3),
        dropout_prob=0.2,
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
    )
    return on_windows(network, scan, WHOLE)


def dynunet(scan: tuple[int, int, int]) -> Peer:
    """Return MONAI's DynUNet as nnU-Net plans it for BraTS, four sequences."""
    from monai.networks.nets import DynUNet

    strides = [1, 2, 2, 2, 2, 2]
    network = DynUNet(
        *(3, 4, 4, [3] * 6, strides, strides[1:]),
        filters=[32, 64, 128, 256, 320, 320],
        norm_name="instance",
    )
    return on_windows(network, scan, PATCH)


def on_windows(
    network: nn.Module, scan: tuple[int, int, int], largest: tuple[int, int, int]
) -> Peer:
    """Return a network of windows of a scan that overlap by half, of which one is timed."""
    window = [min(side, 32 * -(-n // 32)) for side, n in zip(largest, scan, strict=True)]
    steps = [1 + max(0, -(-(n - w) // (w // 2))) for n, w in zip(scan, window, strict=True)]
    voxels = torch.rand(1, 4, *window)
    return Peer(int(np.prod(steps)), partial(network.eval(), voxels))


def diffusion(scan: tuple[int, int, int]) -> Peer:
    """Return a pass of one slice through AnoFPDM's U-Net, times its passes and slices."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=128,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 384, 512),
        down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",) * 2,
        norm_num_groups=8,
        attention_head_dim=128,
        resnet_time_scale_shift="scale_shift",
    ).eval()
    return Peer(scan[0] * PASSES, partial(network, torch.rand(1, 1, 128, 128), 10))


PEERS: dict[str, Callable[[tuple[int, int, int]], Peer]] = {
    "rasalore tiny": partial(rasalore, "tiny"),
    "rasalore base": partial(rasalore, "base"),
    "rasalore base, fastest": partial(rasalore, "base", precision="auto"),
    "rasalore poster": partial(rasalore, "poster"),
    "rasalore poster, fastest": partial(rasalore, "poster", precision="auto"),
    "released modules, plain": released,
    "MONAI SegResNet": segresnet,
    "MONAI DynUNet": dynunet,
    "diffusion U-Net": diffusion,
}

if __name__ == "__main__":
    run_script(main)
