"""Registers every competing system with the benchmark, in the order of the table."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modeling_rasalore.studies.own import build_heatmap
from modeling_rasalore.studies.running import BenchmarkRecipe
from modeling_rasalore.studies.systems import read_runs, register

from .ae import Ae
from .ame_cam import AmeCam
from .anofpdm import Anofpdm
from .cae import Cae
from .dae import Dae
from .interface import LearnedSystem
from .la_gan import LaGan
from .prompted import PromptedByStage1
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
        return {"seed": recipe.seed, "size": recipe.size, "settings": settings}

    def make(self, recipe: BenchmarkRecipe) -> LearnedSystem:
        return self.system(self.settings(recipe), recipe.seed)

    def restore(self, folder: Path, recipe: BenchmarkRecipe) -> LearnedSystem:
        return self.system.load(folder, self.settings(recipe))

    def settings(self, recipe: BenchmarkRecipe) -> Any:
        """Return the settings of the recipe's size; ValueError for an unknown size."""
        sizes = self.system.SIZES
        if recipe.size not in sizes:
            raise ValueError(f"size must be {' or '.join(sizes)}, got {recipe.size!r}.")
        return sizes[recipe.size]


@dataclass(frozen=True)
class PromptedRow:
    """The row of a segmenter that stage 1 prompts; see `SystemRow`.

    Attributes:
        segmenter: key of the recipe that names its weights.
        prompt: "box" or "points".
    """

    name: str
    title: str
    segmenter: str
    prompt: str

    def folders(self, recipe: BenchmarkRecipe) -> list[str]:
        return [recipe.stage1]

    def facts(self, recipe: BenchmarkRecipe) -> dict[str, Any]:
        runs = read_runs(self.name, [recipe.stage1, recipe.cut_from_heatmaps])
        return {"seed": recipe.seed, "weights": getattr(recipe, self.segmenter), **runs}

    def make(self, recipe: BenchmarkRecipe) -> PromptedByStage1:
        weights, second = getattr(recipe, self.segmenter), self.segmenter == "medsam2"
        return PromptedByStage1(build_heatmap(recipe), weights, second, self.prompt, recipe.seed)

    def restore(self, folder: Path, recipe: BenchmarkRecipe) -> None:
        return None


LEARNED = (
    LearnedRow("ae", "AE", Ae),
    LearnedRow("dae", "DAE", Dae),
    LearnedRow("vqvae", "VQVAE", Vqvae),
    LearnedRow("ts_cam", "TS-CAM", TsCam),
    LearnedRow("cae", "CAE", Cae),
    LearnedRow("la_gan", "LA-GAN", LaGan),
    LearnedRow("ame_cam", "AME-CAM", AmeCam),
    LearnedRow("anofpdm", "AnoFPDM", Anofpdm),
    LearnedRow("yoo_t2", "Yoo et al. (T2)", YooT2),
    LearnedRow("yoo_all", "Yoo et al. (all)", YooAll),
)
PROMPTED = tuple(
    PromptedRow(f"{key}_{prompt}", f"{title} + DDPT ({prompt})", key, prompt)
    for key, title in {"sam": "SAM", "medsam": "MedSAM", "medsam2": "MedSAM2"}.items()
    for prompt in ("box", "points")
)
register(*LEARNED, *PROMPTED)
