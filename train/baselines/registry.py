"""Which systems there are, by the name that results use, and how each is built."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modeling_rasalore.data.patient import ALL as ALL_SEQUENCES
from modeling_rasalore.scans.naming import MODALITIES

from .ablations import STAGE1_HEATMAPS
from .ae import Ae
from .ame_cam import AmeCam
from .anofpdm import Anofpdm
from .cae import Cae
from .dae import Dae
from .interface import LearnedSystem, System
from .la_gan import LaGan
from .prompted import PromptedByStage1
from .threshold import Chance, IntensityThreshold
from .trained import (
    AllSequencesNetwork,
    HeatmapOfKind,
    SequenceNetworks,
    Stage1Heatmap,
    Stage2Network,
)
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
# Stage 2 by sequence: one network each, their mean, all as channels, and without one of those.
WITHOUT = {f"rasalore_all_without_{name}": name for name in MODALITIES}
BY_SEQUENCE = [*(f"rasalore_{name}" for name in MODALITIES), "rasalore_average", "rasalore_all"]
BY_SEQUENCE += WITHOUT
# The order of the table; "own" systems need no training beyond the project's two stages.
OWN = [
    "chance",
    "threshold",
    "ddpt",
    "synthetic_only",
    "rasalore_without_sam",
    "rasalore",
    "rasalore_warm",
    "rasalore_warm_selftrained",
    *BY_SEQUENCE,
    "ceiling",
]
ALL = ["chance", "threshold", *LEARNED, "ddpt", *PROMPTED, *OWN[3:]]


@dataclass
class SequenceRuns:
    """Folders of train/stage2.py by their data.modality."""

    t1: str = ""
    t1ce: str = ""
    t2: str = ""
    flair: str = ""
    all: str = ""


@dataclass(frozen=True)
class Sources:
    """What systems are built from.

    Attributes:
        stage1, synthetic_only, stage2, stage2_with_sam, ceiling, stage2_warm,
            stage2_warm_selftrained: folders of trained models, "" for none.
        sam, medsam, medsam2: repo ids or folders of segmenters.
        size: "small" or "paper".
        seed: of everything random.
        flips: score stage-2 networks on mirror images too.
        sequences: folders of stage-2 networks by sequence.
        ablations: name of each ablation to run -> its folder.
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
    stage2_warm: str = ""
    stage2_warm_selftrained: str = ""
    flips: bool = False
    sequences: SequenceRuns = field(default_factory=SequenceRuns)
    ablations: Mapping[str, str] = field(default_factory=dict)

    def folders_of(self, name: str) -> list[str]:
        """The folders that a system of the project needs, "" for one that is not given."""
        folders = {"ddpt": self.stage1, "synthetic_only": self.synthetic_only}
        folders |= {"rasalore_without_sam": self.stage2, "rasalore": self.stage2_with_sam}
        folders |= {"rasalore_warm": self.stage2_warm, "ceiling": self.ceiling}
        folders |= {"rasalore_warm_selftrained": self.stage2_warm_selftrained}
        folders |= {f"rasalore_{key}": folder for key, folder in asdict(self.sequences).items()}
        folders |= dict.fromkeys(WITHOUT, self.sequences.all)
        folders |= dict.fromkeys(PROMPTED, self.stage1)
        folders |= self.ablations
        if name == "rasalore_average":
            given = list(self.single_sequences().values())
            return given if len(given) > 1 else [""]
        return [folders[name]] if name in folders else []

    def single_sequences(self) -> dict[str, str]:
        """Sequence -> folder of the network that sees it alone, of those that are given."""
        folders = {name: getattr(self.sequences, name) for name in MODALITIES}
        return {name: folder for name, folder in folders.items() if folder}


def choose(words: str, sources: Sources) -> list[str]:
    """Names of the systems to run, in the table's order, and of the ablations after them.

    Args:
        words: "all", "own" (no competing system), or names with commas between them.

    Raises:
        ValueError: for an unknown name, or one whose folder is not given.
    """
    if words in ("all", "own"):
        names = ALL if words == "all" else OWN
        found = [name for name in names if "" not in sources.folders_of(name)]
        return [*found, *sources.ablations]
    asked = [word.strip() for word in words.split(",")]
    for name in asked:
        if name not in ALL:
            raise ValueError(f"systems are all, own, or any of {', '.join(ALL)}, got {name!r}.")
        if "" in sources.folders_of(name):
            raise ValueError(f"{name} needs the folder of a trained model, and none was given.")
    return [*(name for name in ALL if name in asked), *sources.ablations]


def build(name: str, sources: Sources) -> System:
    """The system of that name, untrained where it learns."""
    if name in LEARNED:
        return LEARNED[name](settings_of(name, sources), sources.seed)
    if name in PROMPTED:
        family, prompt = name.split("_")
        repo, second = getattr(sources, family), family == "medsam2"
        heatmaps = Stage1Heatmap(Path(sources.stage1), sources.stage2)
        return PromptedByStage1(heatmaps, repo, second, prompt, sources.seed)
    if name in BY_SEQUENCE:
        return build_by_sequence(name, sources)
    folder = Path(*sources.folders_of(name))
    if name in STAGE1_HEATMAPS:
        return HeatmapOfKind(folder, sources.stage2, STAGE1_HEATMAPS[name])
    builders: dict[str, Callable[[], System]] = {
        "chance": lambda: Chance(sources.seed),
        "threshold": IntensityThreshold,
        "ddpt": lambda: Stage1Heatmap(folder, sources.stage2),
    }
    return builders.get(name, lambda: Stage2Network(folder, sources.flips))()


def sees_all_sequences(name: str) -> bool:
    """Whether a system's slices hold all four sequences."""
    return name in BY_SEQUENCE or (name in LEARNED and LEARNED[name].ALL_SEQUENCES)


def build_by_sequence(name: str, sources: Sources) -> System:
    """A stage-2 system of some of the sequences."""
    if name in WITHOUT or name == f"rasalore_{ALL_SEQUENCES}":
        folder = Path(sources.sequences.all)
        return AllSequencesNetwork(folder, sources.flips, WITHOUT.get(name, ""))
    folders = {key: Path(folder) for key, folder in sources.single_sequences().items()}
    if name != "rasalore_average":
        key = name.removeprefix("rasalore_")
        folders = {key: folders[key]}
    return SequenceNetworks(folders, sources.flips)


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
    if name in OWN[3:] or name in sources.ablations:
        facts["flips"] = sources.flips
    if name in LEARNED:
        facts |= {"size": sources.size, "settings": asdict(settings_of(name, sources))}
    if name in PROMPTED:
        facts["weights"] = getattr(sources, name.split("_")[0])
    by_rule = name in ("ddpt", *STAGE1_HEATMAPS, *PROMPTED)  # of stage 2's pseudo-masks
    runs = [*sources.folders_of(name), sources.stage2 if by_rule else ""]
    for folder in filter(None, runs):
        summary = Path(folder) / "run.json"
        if not summary.exists():
            raise ValueError(f"{name} needs a finished run, but {folder} holds no run.json.")
        facts[folder] = summary.read_text()  # holds time and scores, so it changes with the weights
    return facts
