"""Lists the project's own rows: what needs no training, both stages' networks, the ceiling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from omegaconf import MISSING
from scipy import ndimage

from ..data.patient import ALL
from ..prediction.free_map import free_map, polarity_of, smoothed_rank
from ..scans.background import brain_of
from ..scans.naming import MODALITIES
from .systems import GivenSystem, Image, ScanSlices, System, read_runs
from .trained import (
    AllSequencesNetwork,
    SequenceNetworks,
    Stage1Heatmap,
    Stage2Network,
    learns_from_painted_alone,
    training_of,
)

AVERAGE = "modalities"  # the key that means every network of one sequence
CONTROL = "rasalore_control"
CONTROLLED = ("rasalore", "rasalore_with_sam", "rasalore_selftrained", "ceiling")


@dataclass
class ModalityRuns:
    """Folders of train/stage2.py by their data.modality, "" for none.

    Attributes:
        t1: of T1.
        t1ce: of T1 with contrast agent.
        t2: of T2.
        flair: of FLAIR.
        all: of all four as channels.
    """

    t1: str = ""
    t1ce: str = ""
    t2: str = ""
    flair: str = ""
    all: str = ""

    def single(self) -> dict[str, Path]:
        """Return modality -> folder of the network that sees it alone, of those given."""
        folders = {name: getattr(self, name) for name in MODALITIES}
        return {name: Path(folder) for name, folder in folders.items() if folder}


@dataclass
class TrainedRuns:
    """Folders of the project's networks, each under the name of its row.

    Attributes:
        stage1: folder of train/stage1.py; its split.json says who is held out.
        synthetic_only: folder of train/stage2.py on painted lesions, or on phantoms, alone.
        package: the package's own weights, which learned from synthetic patients alone.
        rasalore_control: what RASALoRE starts from, trained as long on painted lesions alone.
        rasalore_poster: the same on stage 1's pseudo-masks, from random weights.
        rasalore: the same from a start on synthetic patients.
        rasalore_with_sam: the same with masks of a segmenter.
        rasalore_with_litemedsam: the same with masks of LiteMedSAM, which learned from true masks.
        rasalore_selftrained: the same after rounds of self-training.
        ceiling: folder of train/stage2.py on true masks.
        modalities: folders of train/stage2.py by sequence.
        seed: of everything random.
        flips: score stage-2 networks as `rasalore predict --flips` does.
    """

    stage1: str = MISSING
    synthetic_only: str = ""
    package: str = ""
    rasalore_control: str = ""
    rasalore_poster: str = ""
    rasalore: str = ""
    rasalore_with_sam: str = ""
    rasalore_with_litemedsam: str = ""
    rasalore_selftrained: str = ""
    ceiling: str = ""
    modalities: ModalityRuns = field(default_factory=ModalityRuns)
    seed: int = 0
    flips: bool = False

    def folders(self, key: str) -> list[str]:
        """Return the folders that a row's key names, "" for one that is not given."""
        if key == AVERAGE:
            single = [str(folder) for folder in self.modalities.single().values()]
            return single if len(single) > 1 else [""]
        section, _, name = key.rpartition(".")
        return [getattr(self.modalities if section else self, name)]

    @property
    def cut_from_heatmaps(self) -> str:
        """The run whose pseudo-masks say how stage 1's heatmaps are cut, "" for none."""
        return self.rasalore or self.rasalore_poster


@dataclass(frozen=True)
class OwnRow:
    """One of the project's own rows; see `SystemRow`.

    Attributes:
        name: of the system.
        title: of the system, for readers.
        key: of `TrainedRuns`, which names the folder of its network; "" where it needs none.
        build: recipe -> system.
        seeded: whether chance has a part in its scores; if not, one seed of a study shows it.
    """

    name: str
    title: str
    key: str
    build: Callable[[TrainedRuns], System]
    seeded: bool = True

    def folders(self, recipe: TrainedRuns) -> list[str]:
        return recipe.folders(self.key) if self.key else []

    def facts(self, recipe: TrainedRuns) -> dict[str, Any]:
        runs = self.folders(recipe)
        if self.key == "stage1":
            runs.append(recipe.cut_from_heatmaps)
        flips = {"flips": recipe.flips} if self.key else {}
        seed = {"seed": recipe.seed} if self.seeded else {}
        return {**seed, **flips, **read_runs(self.name, runs)}

    def make(self, recipe: TrainedRuns) -> System:
        return self.build(recipe)

    def restore(self, folder: Path, recipe: TrainedRuns) -> None:
        return None  # its network is read from the folder of its training


class IntensityThreshold(GivenSystem):
    """Rank of each pixel among the slice's brain pixels, (0, 1], median-filtered.

    What any trained system has to beat: with the right threshold bright tissue alone reaches a Dice
    of 0.6 to 0.7 on FLAIR.
    """

    def score(self, slices: Sequence[Image]) -> list[Image]:
        return [equalise(image) for image in slices]


class FreeMap(GivenSystem):
    """Intensity rank in the whole scan, smoothed in 3-D, and its difference to the mirror image.

    Args:
        mirror: whether the mirror image has a say.
    """

    WHOLE_SCANS: ClassVar[bool] = True

    def __init__(self, mirror: bool):
        self.make_map = free_map if mirror else smoothed_rank

    def score(self, slices: ScanSlices) -> list[Image]:
        scan, first = slices.stack(), slices.indices[0]
        scores = self.make_map(scan, scan > 0, slices.spacing, polarity_of(slices.modality))
        return [scores[index - first] for index in slices.indices]


class Chance(GivenSystem):
    """Uniform noise inside the brain: the floor of every score."""

    def __init__(self, seed: int = 0):
        self.generator = np.random.default_rng(seed)

    def score(self, slices: Sequence[Image]) -> list[Image]:
        noise = [self.generator.random(image.shape, np.float32) for image in slices]
        return [
            np.where(brain_of(image), values, 0).astype(np.float32)
            for image, values in zip(slices, noise, strict=True)
        ]


def equalise(image: Image) -> Image:
    """Return a slice (H, W), each brain pixel replaced by its rank in (0, 1], then a 3x3 median."""
    brain = brain_of(image)
    equalised = np.zeros(image.shape, np.float32)
    ranks = np.searchsorted(np.sort(image[brain]), image[brain], side="right")
    equalised[brain] = ranks / max(int(brain.sum()), 1)
    return np.where(brain, ndimage.median_filter(equalised, 3), 0).astype(np.float32)


# --- How rows are built: functions of this module, so that a row can be sent to a process ---------
def build_chance(runs: TrainedRuns) -> System:
    """Return seeded noise."""
    return Chance(runs.seed)


def build_threshold(runs: TrainedRuns) -> System:
    """Return the intensity threshold."""
    return IntensityThreshold()


def build_free_map(mirror: bool, runs: TrainedRuns) -> System:
    """Return the map that learns nothing, or its part of one hemisphere."""
    return FreeMap(mirror)


def build_heatmap(runs: TrainedRuns) -> Stage1Heatmap:
    """Return stage 1's heatmap, cut as the pseudo-masks were."""
    return Stage1Heatmap(Path(runs.stage1), runs.cut_from_heatmaps)


def build_network(key: str, runs: TrainedRuns) -> System:
    """Return the stage-2 network that a key names."""
    return Stage2Network(Path(*runs.folders(key)), runs.flips)


def build_modality(modality: str, runs: TrainedRuns) -> System:
    """Return the network of one sequence; the mean of all those given for ""."""
    folders = runs.modalities.single()
    chosen = {modality: folders[modality]} if modality else folders
    return SequenceNetworks(chosen, runs.flips)


def build_all_modalities(without: str, runs: TrainedRuns) -> System:
    """Return the network of all sequences, which goes without one of them, or "" for none."""
    return AllSequencesNetwork(Path(runs.modalities.all), runs.flips, without)


def controlled_rows(runs: TrainedRuns) -> list[str]:
    """Return the rows that the control is one of: equal in all of `training_of`, start and steps.

    What such a row has above its control, longer training alone does not bring.

    Raises:
        ValueError: it is no control of RASALoRE.
    """
    if not runs.rasalore_control:
        return []
    control = Path(runs.rasalore_control)
    expected = training_of(control)
    if not expected["initial_weights"] or not learns_from_painted_alone(control):
        raise ValueError(
            f"{CONTROL} must be a run with initial_weights and synthetic_lesions.share=1, got "
            f"{control}; train it with the words of RASALoRE and that share."
        )
    given = {name: Path(folder) for name in CONTROLLED if (folder := getattr(runs, name))}
    trained = {name: training_of(folder) for name, folder in given.items()}
    other = trained.get("rasalore", expected)
    if unlike := [key for key, value in expected.items() if other[key] != value]:
        raise ValueError(
            f"{CONTROL} must be trained as RASALoRE is, but {control} and {runs.rasalore} differ "
            f"in {', '.join(unlike)}; train it with the same words and synthetic_lesions.share=1."
        )
    return [name for name, training in trained.items() if training == expected]


def network_row(name: str, title: str) -> OwnRow:
    """Return the row of a stage-2 network whose key is its name."""
    return OwnRow(name, title, name, partial(build_network, name))


def rows_by_modality() -> list[OwnRow]:
    """Return RASALoRE by sequence: one each, their mean, all as channels, and all but one."""
    names = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
    rows = [
        OwnRow(f"rasalore_{key}", f"RASALoRE on {name}", f"modalities.{key}",
               partial(build_modality, key))
        for key, name in names.items()
    ]  # fmt: skip
    mean = "RASALoRE, mean of sequences"
    rows.append(OwnRow("rasalore_average", mean, AVERAGE, partial(build_modality, "")))
    whole = f"modalities.{ALL}"
    title = "RASALoRE of all sequences"
    rows.append(OwnRow("rasalore_all", title, whole, partial(build_all_modalities, "")))
    return rows + [
        OwnRow(f"rasalore_all_without_{key}", f"RASALoRE of all, {name} missing", whole,
               partial(build_all_modalities, key))
        for key, name in names.items()
    ]  # fmt: skip


OWN_ROWS: tuple[OwnRow, ...] = (  # in the order of the table
    OwnRow("chance", "Chance", "", build_chance),
    OwnRow("threshold", "Intensity threshold", "", build_threshold, seeded=False),
    OwnRow("smoothed_rank", "Smoothed intensity rank", "", partial(build_free_map, False), False),
    OwnRow("mirror", "Smoothed rank and mirror", "", partial(build_free_map, True), False),
    OwnRow("ddpt", "DDPT (stage 1)", "stage1", build_heatmap),
    network_row("synthetic_only", "Synthetic lesions only"),
    network_row("package", "The package's own weights"),
    network_row(CONTROL, "Control of RASALoRE (painted lesions alone)"),
    network_row("rasalore_poster", "RASALoRE, poster's start"),
    network_row("rasalore", "RASALoRE"),
    network_row("rasalore_with_sam", "RASALoRE with SAM"),
    network_row("rasalore_with_litemedsam", "RASALoRE with LiteMedSAM"),
    network_row("rasalore_selftrained", "RASALoRE, self-trained"),
    *rows_by_modality(),
    network_row("ceiling", "Ceiling (true masks)"),
)
REFERENCES = 4  # rows that learn nothing: competitors come after them in the table
