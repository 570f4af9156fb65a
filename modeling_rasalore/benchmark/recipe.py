"""Declare what a benchmark asks for."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from ..recipes import DataRecipe
from .own import TrainedRuns


@dataclass
class CrossRecipe:
    """Another data set, all of whose patients are scored instead of the test patients.

    Attributes:
        root: as data.root; empty: none.
        modality: of its scans; null: data.modality.
    """

    root: str = ""
    modality: str | None = None


@dataclass
class BenchmarkRecipe(TrainedRuns):
    """Which systems, on which patients.

    Attributes:
        out: folder of the results.
        ablation: stage 2 with one part changed, trained below `out`, and stage 1's kinds of
            heatmap: "all", or names with commas between them.
        systems: "all"; "own": chance, threshold and the project's models; or names with commas
            between them. Models whose folder is not given have no row.
        size: of the competing systems: "small" (two cores, minutes) or "paper" (a GPU).
        view: of the competing systems: "slice", each slice by itself, or "scan", the square around
            the scan's brain at 96 px or more, with neighbours and mirror image where a system takes
            channels: what the preset `base` sees.
        sam: repo id or folder of SAM.
        medsam: repo id or folder of MedSAM.
        medsam2: repo id or folder of MedSAM2; needs conversion to a Sam2Model folder first.
        litemedsam: folder of `rasalore convert-released --litemedsam`; empty: no such rows.
        training_slices: most slices that competing systems learn from; 0: all.
        false_alarm_rate: the most of a scan's healthy brain that may be marked at a label-free
            threshold.
        scans_above: share of scans in which more may be marked; 1 of n + 1 where n patients, whose
            healthy slices count as one scan each, cannot promise so little.
        workers: systems at a time, which share the cores; times are those of shared cores.
    """

    out: str = MISSING
    ablation: str = ""
    systems: str = "own"
    size: str = "small"
    view: str = "slice"
    sam: str = "facebook/sam-vit-base"
    medsam: str = "flaviagiammarino/medsam-vit-base"
    medsam2: str = "wanglab/MedSAM2"
    litemedsam: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    cross: CrossRecipe = field(default_factory=CrossRecipe)
    training_slices: int = 0
    false_alarm_rate: float = 0.01
    scans_above: float = 0.25
    workers: int = 1

    @property
    def whole(self) -> str:
        """The run that ablations are of: the one that has every part."""
        return self.rasalore_with_sam or self.rasalore

    @property
    def scored_data(self) -> DataRecipe:
        """How the slices of scored patients are read."""
        modality = self.cross.modality or self.data.modality
        return replace(self.data, root=self.cross.root or self.data.root, modality=modality)

    @property
    def results(self) -> Path:
        """Folder of the results; what systems learned stays in `out` whomever they score."""
        out = Path(self.out)
        return out / "cross" / Path(self.cross.root).name if self.cross.root else out
