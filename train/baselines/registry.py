"""Which systems there are, by the name that results use, and how each is built."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .ae import Ae
from .ame_cam import AmeCam
from .anofpdm import Anofpdm
from .cae import Cae
from .dae import Dae
from .interface import LearnedSystem, System
from .la_gan import LaGan
from .prompted import PromptedByStage1
from .threshold import Chance, IntensityThreshold
from .trained import Stage1Heatmap, Stage2Network
from .ts_cam import TsCam
from .vqvae import Vqvae
from .yoo import YooAll, YooT2

LEARNED: dict[str, type[LearnedSystem]] = {
    "ae": Ae,
    "dae": Dae,
    "vqvae": Vqvae,
    "ts_cam": TsCam,
    "cae": Cae,
    "la_gan": LaGan,
    "ame_cam": AmeCam,
    "anofpdm": Anofpdm,
    "yoo_t2": YooT2,
    "yoo_all": YooAll,
}
SEGMENTERS = ("sam", "medsam", "medsam2")
PROMPTED = [f"{family}_{prompt}" for family in SEGMENTERS for prompt in ("box", "points")]
# The order of the table; "own" systems need no training beyond the project's two stages.
OWN = [
    "chance",
    "threshold",
    "ddpt",
    "synthetic_only",
    "rasalore_without_sam",
    "rasalore",
    "ceiling",
]
ALL = ["chance", "threshold", *LEARNED, "ddpt", *PROMPTED, *OWN[3:]]


@dataclass(frozen=True)
class Sources:
    """What systems are built from.

    Attributes:
        stage1, synthetic_only, stage2, stage2_with_sam, ceiling: folders of trained models, "" for
            none.
        sam, medsam, medsam2: repo ids or folders of segmenters.
        size: "small" or "paper".
        seed: of everything random.
        flips: score stage-2 networks on mirror images too.
    """

    stage1: str
    synthetic_only: str
    stage2: str
    stage2_with_sam: str
    ceiling: str
    sam: str
    medsam: str
    medsam2: str
    size: str
    seed: int
    flips: bool = False

    def folder_of(self, name: str) -> str | None:
        """The folder that a system of the project needs, None for all other systems."""
        folders = {"ddpt": self.stage1, "synthetic_only": self.synthetic_only}
        folders |= {"rasalore_without_sam": self.stage2, "rasalore": self.stage2_with_sam}
        folders |= {"ceiling": self.ceiling}
        return self.stage1 if name in PROMPTED else folders.get(name)


def choose(words: str, sources: Sources) -> list[str]:
    """Names of the systems to run, in the table's order.

    Args:
        words: "all", "own" (no competing system), or names with commas between them.

    Raises:
        ValueError: for an unknown name, or one whose folder is not given.
    """
    if words in ("all", "own"):
        names = ALL if words == "all" else OWN
        return [name for name in names if sources.folder_of(name) != ""]
    asked = [word.strip() for word in words.split(",")]
    for name in asked:
        if name not in ALL:
            raise ValueError(f"systems are all, own, or any of {', '.join(ALL)}, got {name!r}.")
        if sources.folder_of(name) == "":
            raise ValueError(f"{name} needs the folder of a trained model, and none was given.")
    return [name for name in ALL if name in asked]


def build(name: str, sources: Sources) -> System:
    """The system of that name, untrained where it learns."""
    if name in LEARNED:
        return LEARNED[name](settings_of(name, sources), sources.seed)
    if name in PROMPTED:
        family, prompt = name.split("_")
        repo, second = getattr(sources, family), family == "medsam2"
        heatmaps = Stage1Heatmap(Path(sources.stage1), sources.stage2)
        return PromptedByStage1(heatmaps, repo, second, prompt, sources.seed)
    folder = Path(sources.folder_of(name) or "")
    builders: dict[str, Callable[[], System]] = {
        "chance": lambda: Chance(sources.seed),
        "threshold": IntensityThreshold,
        "ddpt": lambda: Stage1Heatmap(folder, sources.stage2),
    }
    return builders.get(name, lambda: Stage2Network(folder, sources.flips))()


def restore(name: str, folder: Path, sources: Sources) -> LearnedSystem:
    """A learned system that `save` wrote into `folder`."""
    return LEARNED[name].load(folder, settings_of(name, sources))


def settings_of(name: str, sources: Sources) -> Any:
    """Settings of a learned system at the asked size; ValueError for an unknown size."""
    sizes = LEARNED[name].SIZES
    if sources.size not in sizes:
        raise ValueError(f"size must be {' or '.join(sizes)}, got {sources.size!r}.")
    return sizes[sources.size]


def describe(name: str, sources: Sources) -> dict[str, Any]:
    """All that a system's scores depend on besides the data, as plain values."""
    facts: dict[str, Any] = {"seed": sources.seed}
    if name in OWN[3:]:
        facts["flips"] = sources.flips
    if name in LEARNED:
        facts |= {"size": sources.size, "settings": asdict(settings_of(name, sources))}
    if name in PROMPTED:
        facts["weights"] = getattr(sources, name.split("_")[0])
    runs = [sources.folder_of(name), sources.stage2 if name in ("ddpt", *PROMPTED) else None]
    for folder in filter(None, runs):
        summary = Path(folder) / "run.json"
        if not summary.exists():
            raise ValueError(f"{name} needs a finished run, but {folder} holds no run.json.")
        facts[folder] = summary.read_text()  # holds time and scores, so it changes with the weights
    return facts
