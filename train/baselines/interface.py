"""Gives systems that learn what all of them have in common: frames, scores and files."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_rasalore.benchmark.systems import Image, select
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.patient import See
from modeling_rasalore.files import replace_file, write_json
from modeling_rasalore.scans.background import brain_of

from .grids import ScanGrid, SliceGrid

HEALTHY_SHARE = 0.98  # of healthy training pixels that a residual's native threshold lets pass


class LearnedSystem(ABC):
    """A system that learns from slices and their labels, and never sees a mask.

    A subclass says which networks it has, how they learn from images on a square grid, and what map
    they give; frames, scores and files are the same for all.

    Attributes:
        SIZES: settings by size, "small" (two cores, minutes) and "paper" (the authors').
        ALL_SEQUENCES: whether slices hold all four sequences, (4, H, W), instead of one.
        SCAN_CHANNELS: what of its scan a slice is seen with, the slice itself first, by the names
            of `scan_channels`; none for the slice alone in the square of its scan, as whatever
            makes one slice of another needs it: its map is the difference of the two.
        HEALTHY_ONLY: whether unhealthy slices are dropped before anything is learned.
        numbers: what was learned besides weights, such as the native threshold `half`, the value
            of a raw map that becomes the score 0.5.
        grid: how it sees slices.

    Args:
        settings: one of `SIZES`.
        seed: of everything random.
        view: "slice", or "scan" for slices in the square of their scan.
    """

    SIZES: ClassVar[dict[str, Any]]
    ALL_SEQUENCES: ClassVar[bool] = False
    SCAN_CHANNELS: ClassVar[tuple[str, ...]] = ()
    whole_scans: bool = False
    HEALTHY_ONLY: ClassVar[bool] = False
    RESIDUAL: ClassVar[bool] = False  # its native threshold is read off healthy training slices
    weights = "trained"
    seconds: float | None = None
    peak_mib: float | None = None

    def __init__(self, settings: Any, seed: int = 0, view: str = "slice"):
        self.settings, self.seed = settings, seed
        self.grid: SliceGrid | ScanGrid = SliceGrid(settings.pixels)
        if view == "scan":
            self.grid = ScanGrid(settings.pixels, self.SCAN_CHANNELS)
        self.see: See | None = self.grid.see
        self.channels = 4 if self.ALL_SEQUENCES else self.grid.channels
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.numbers: dict[str, float] = {"half": 0.5}
        torch.manual_seed(seed)
        self.networks = nn.ModuleDict(self.build()).to(self.device)

    @abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """The untrained networks, by name."""

    @abstractmethod
    def learn(self, images: Tensor, labels: Tensor) -> None:
        """Train the networks on images (N, C, p, p), background 0, and labels (N,) of 0 and 1."""

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """Raw anomaly maps (N, p, p), at least 0, of images (N, C, p, p)."""

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """Learn from slices whose scan's brain has its 99th percentile at 1.

        Raises:
            ValueError: labels other than 0 and 1, or none of a kind that the system needs.
        """
        known = np.asarray(labels)
        if len(known) != len(slices) or not np.isin(known, (HEALTHY, UNHEALTHY)).all():
            raise ValueError(
                f"every training slice needs the label 0 or 1, got {len(known)} labels "
                f"{sorted(set(known.tolist()))} for {len(slices)} slices."
            )
        needed = {HEALTHY} if self.HEALTHY_ONLY else {HEALTHY, UNHEALTHY}
        if missing := needed - set(known.tolist()):
            raise ValueError(f"{type(self).__name__} needs slices labelled {missing}, got none.")
        used = [i for i, label in enumerate(labels) if label == HEALTHY or not self.HEALTHY_ONLY]
        images = self.grid.images(select(slices, used))
        if self.ALL_SEQUENCES and not images.amax((0, 2, 3)).all():
            raise ValueError(
                f"{type(self).__name__} learns from all four sequences, but the training patients "
                "lack one; leave it out of systems."
            )
        torch.manual_seed(self.seed)
        targets = torch.from_numpy(known[used]).long().to(self.device)
        self.networks.train()
        self.learn(images.to(self.device), targets)
        self.networks.eval()
        if self.RESIDUAL:
            self.numbers["half"] = self.healthy_level(images[(targets == HEALTHY).cpu()])

    def score(self, slices: Sequence[Image]) -> list[Image]:
        """Scores in [0, 1] of slices, each (H, W) in its own frame; 0 outside the brain.

        A raw map m becomes m / (m + half): a fixed, increasing function, so that the system's own
        threshold is the score 0.5 for every slice.
        """
        half = self.numbers["half"]
        scores = []
        for start in range(0, len(slices), 32):
            batch = select(slices, range(start, min(start + 32, len(slices))))
            raw = self.raw_maps(self.grid.images(batch).to(self.device))
            for values, image in zip(self.grid.maps(raw, batch), batch, strict=True):
                in_frame = values.clamp(min=0)
                score = (in_frame / (in_frame + half)).numpy()
                scores.append(np.where(brain_of(image), score, 0).astype(np.float32))
        return scores

    def raw_maps(self, images: Tensor) -> Tensor:
        """`maps` on the CPU, with everything switched to inference."""
        self.networks.eval()
        return self.maps(images).detach().float().cpu()

    def healthy_level(self, healthy: Tensor) -> float:
        """The map's `HEALTHY_SHARE` quantile inside the brain of up to 256 healthy slices."""
        chosen = healthy[:: max(1, len(healthy) // 256)]
        inside = [
            self.raw_maps(part.to(self.device))[(part > 0).any(1)] for part in chosen.split(32)
        ]
        level = float(np.quantile(torch.cat(inside).numpy(), HEALTHY_SHARE))
        return max(level, 1e-6)

    def save(self, folder: Path) -> None:
        """Write weights and numbers into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous().cpu() for k, v in self.networks.state_dict().items()}
        replace_file(folder / "model.safetensors", lambda draft: save_file(state, draft))
        numbers = {**self.numbers, "weights": self.weights}
        write_json(folder / "system.json", numbers)

    @classmethod
    def load(cls, folder: Path, settings: Any, view: str = "slice", seed: int = 0) -> Self:
        """The system that `save` wrote, built with the same settings, view and seed."""
        system = cls(settings, seed, view)
        system.networks.load_state_dict(load_file(folder / "model.safetensors"))
        numbers = json.loads((folder / "system.json").read_text())
        system.weights = numbers.pop("weights")
        system.numbers = numbers
        system.networks.eval()
        return system

    # --- For subclasses -------------------------------------------------------------------------
    def batches(self, labels: Tensor, steps: int, batch_size: int) -> Iterator[Tensor]:
        """`steps` seeded index tensors (batch_size,), both labels equally often if both occur."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = [torch.nonzero(labels.cpu() == label)[:, 0] for label in labels.unique().tolist()]
        share = max(1, batch_size // len(groups))
        for _ in range(steps):
            drawn = [
                group[torch.randint(len(group), (share,), generator=generator)] for group in groups
            ]
            yield torch.cat(drawn).to(self.device)

    def optimizer(self, *names: str, rate: float, **options: Any) -> torch.optim.Optimizer:
        """Adam over the named networks, options as Adam's."""
        parameters = [p for name in names for p in self.networks[name].parameters()]
        return torch.optim.Adam(parameters, lr=rate, **options)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimizer step; ValueError when the loss is not finite."""
    if not torch.isfinite(loss):
        raise ValueError(f"the loss became {loss.item()}; lower the learning rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
