"""Registers every competing system with the benchmark, in the order of the table."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modeling_rasalore.benchmark.own import build_heatmap
from modeling_rasalore.benchmark.recipe import BenchmarkRecipe
from modeling_rasalore.benchmark.systems import read_runs, register

from .ae import Ae
from .ame_cam import AmeCam
from .anofpdm import Anofpdm
from .cae import Cae
from .dae import Dae
from .gp_unet import GpUnet
from .grids import SCAN_PIXELS
from .interface import LearnedSystem
from .la_gan import LaGan
from .prompted import MARGIN_FILE, PromptedByStage1, StandIn, tiny_sam, tiny_sam2
from .ts_cam import TsCam
from .vqvae import Vqvae
from .yoo import YooAll, YooT2


@dataclass(frozen=True)
class LearnedRow:
    """The row of a system that learns from slices and their labels; see `SystemRow`."""

    name: str
    title: str
    system: type[LearnedSystem]

    def folders(self, recipe: BenchmarkRecipe) -> list[str]:
        return []

    def facts(self, recipe: BenchmarkRecipe) -> dict[str, Any]:
        settings = asdict(self.settings(recipe))
        view = {"view": recipe.view} if recipe.view != "slice" else {}  # older results say none
        return {"seed": recipe.seed, "size": recipe.size, "settings": settings, **view}

    def make(self, recipe: BenchmarkRecipe) -> LearnedSystem:
        return self.system(self.settings(recipe), recipe.seed, recipe.view)

    def restore(self, folder: Path, recipe: BenchmarkRecipe) -> LearnedSystem:
        return self.system.load(folder, self.settings(recipe), recipe.view, recipe.seed)

    def settings(self, recipe: BenchmarkRecipe) -> Any:
        """Return the settings of the recipe's size and view; ValueError for an unknown size."""
        sizes = self.system.SIZES
        if recipe.size not in sizes:
            raise ValueError(f"size must be {' or '.join(sizes)}, got {recipe.size!r}.")
        settings = sizes[recipe.size]
        if recipe.view == "slice":
            return settings
        return replace(settings, pixels=max(settings.pixels, SCAN_PIXELS))


@dataclass(frozen=True)
class PromptedRow:
    """The row of a segmenter that stage 1 prompts; see `SystemRow`.

    Attributes:
        segmenter: key of the recipe that names its weights.
        prompt: "box" or "points".
        stand_in: makes what takes its place; None: the row needs its weights.
    """

    name: str
    title: str
    segmenter: str
    prompt: str
    stand_in: StandIn | None = None

    def folders(self, recipe: BenchmarkRecipe) -> list[str]:
        needed = [] if self.stand_in else [getattr(recipe, self.segmenter)]
        return [recipe.stage1, *needed]

    def facts(self, recipe: BenchmarkRecipe) -> dict[str, Any]:
        runs = read_runs(self.name, [recipe.stage1, recipe.cut_from_heatmaps])
        return {"seed": recipe.seed, "weights": getattr(recipe, self.segmenter), **runs}

    def make(self, recipe: BenchmarkRecipe) -> PromptedByStage1:
        weights = getattr(recipe, self.segmenter)
        heatmaps = build_heatmap(recipe)
        return PromptedByStage1(heatmaps, weights, self.stand_in, self.prompt, recipe.seed)

    def restore(self, folder: Path, recipe: BenchmarkRecipe) -> PromptedByStage1 | None:
        """Return published weights with the margin that they chose; None for a stand-in."""
        if not (folder / MARGIN_FILE).is_file():
            return None
        system = self.make(recipe)
        system.read_margin(folder)
        return system


LEARNED = (
    LearnedRow("ae", "AE", Ae),
    LearnedRow("dae", "DAE", Dae),
    LearnedRow("vqvae", "VQVAE", Vqvae),
    LearnedRow("ts_cam", "TS-CAM", TsCam),
    LearnedRow("gp_unet", "GP-UNet-like MIL", GpUnet),
    LearnedRow("cae", "CAE", Cae),
    LearnedRow("la_gan", "LA-GAN", LaGan),
    LearnedRow("ame_cam", "AME-CAM", AmeCam),
    LearnedRow("anofpdm", "AnoFPDM", Anofpdm),
    LearnedRow("yoo_t2", "Yoo et al. (T2)", YooT2),
    LearnedRow("yoo_all", "Yoo et al. (all)", YooAll),
)
SEGMENTERS: dict[str, tuple[str, StandIn | None]] = {  # key -> title and stand-in
    "sam": ("SAM", tiny_sam),
    "medsam": ("MedSAM", tiny_sam),
    "medsam2": ("MedSAM2", tiny_sam2),
    "litemedsam": ("LiteMedSAM", None),
}
PROMPTED = tuple(
    PromptedRow(f"{key}_{prompt}", f"{title} + DDPT ({words})", key, prompt, stand_in)
    for key, (title, stand_in) in SEGMENTERS.items()
    for prompt, words in {
        "box": "box",
        "points": "points" if stand_in else "points, not trained for them",
    }.items()
)
register(*LEARNED, *PROMPTED)
