"""States what a study asks for; light, so that a script says its --help at once."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ..packaged import packaged_sequences

STARTS = ("auto", "phantoms", "scans", "package")
# What slice labels give stage 2: masks, slices to paint lesions into, or what its start has anyway.
PSEUDO_MASKS, HEALTHY_SLICES, NOTHING = "pseudo-masks", "healthy slices", "nothing"


@dataclass
class StudyData:
    """Which scans are studied.

    Attributes:
        root: folder of scans in a known layout; empty: synthetic patients.
        modality: t1, t1ce, t2 or flair.
        skip_slices: lowest and highest axial slices left out, as of every training; auto leaves 15
            of 96 out of synthetic patients.
        same_person: as of every training: table of persons who are in another data set as well, who
            are left out; for `cross`, too.
    """

    root: str = ""
    modality: str = "t2"
    skip_slices: int | str = "auto"
    same_person: str = ""


@dataclass
class PhantomRecipe:
    """The synthetic patients that a study is on, or starts on.

    Attributes:
        patients: how many.
        healthy: how many of them have no tumour.
        shape: voxels of a scan.
        voxel_size: mm.
        validation: patients that choose weights and thresholds.
        test: patients that are scored; intervals over 10 patients span twenty points.
    """

    patients: int = 72
    healthy: int = 14
    shape: list[int] = field(default_factory=lambda: [96, 112, 96])
    voxel_size: float = 2.0
    validation: int = 6
    test: int = 20


@dataclass
class StudyRecipe:
    """The whole line, from scans and slice labels to a judged network.

    Attributes:
        out: folder of everything.
        data: which scans are studied.
        preset: of stage 2; stage 1 takes its namesake: rasalore-tiny, or rasalore-base.
        seed: of everything.
        seeds: which seeds all is repeated with, such as [0,1,2]; empty: `seed` alone.
        folds: deal all patients into so many test sets, each tested in turn; 0: a quarter of them
            is held out once.
        systems: rows of the table: "own", "all", or names with commas between them.
        start: where both stages learn painted lesions: "phantoms", or "scans", the healthy slices
            of the very patients that are learned from; "package": as scans, but stage 2 starts from
            the package's own weights; auto: package for
            rasalore-base where they know the sequence, else scans.
        fuse_from: patients to learn from, from which on pseudo-masks of a start on scans are used:
            those of few have made networks worse. Fewer: stage 2 goes on from the package's weights
            with lesions painted into slices labelled healthy; a start on scans has done so already.
        learn_from: most patients to learn from; those of a smaller number are among those of a
            larger one; 0: all who are not held out.
        without: patients who take no part, such as those whose scans cannot be read.
        ceiling: add stage 2 on true masks, where there are any.
        selftrained: add a round of self-training.
        control: add RASALoRE's start, trained as long as RASALoRE on painted lesions alone.
        poster: add stage 2 as on the poster, from random weights and heatmaps alone.
        cross: folders of further data sets with masks, scored as well.
        phantoms: the synthetic patients.
        stage1: last words of every stage 1's recipe, such as [loop.max_steps=50].
        pseudo_masks: the same of pseudo-masks.
        stage2: the same of every stage 2.
    """

    out: str = MISSING
    data: StudyData = field(default_factory=StudyData)
    preset: str = "rasalore-tiny"
    seed: int = 0
    seeds: list[int] = field(default_factory=list)
    folds: int = 0
    systems: str = "own"
    start: str = "auto"
    fuse_from: int = 20
    learn_from: int = 0
    without: list[str] = field(default_factory=list)
    ceiling: bool = True
    selftrained: bool = False
    control: bool = False
    poster: bool = False
    cross: list[str] = field(default_factory=list)
    phantoms: PhantomRecipe = field(default_factory=PhantomRecipe)
    stage1: list[str] = field(default_factory=list)
    pseudo_masks: list[str] = field(default_factory=list)
    stage2: list[str] = field(default_factory=list)

    @property
    def begins(self) -> str:
        """Where stage 2 starts: "phantoms", "scans" or "package"."""
        if self.start != "auto":
            return self.start
        if self.preset != "rasalore-base":
            return "phantoms"
        return "package" if self.data.modality in packaged_sequences() else "scans"

    def learns_from(self, patients: int) -> str:
        """Return what the slice labels of so many patients give stage 2."""
        if self.begins == "phantoms" or patients >= self.fuse_from:
            return PSEUDO_MASKS
        return HEALTHY_SLICES if self.begins == "package" else NOTHING

    def trains(self, row: str) -> bool:
        """Return whether an optional row is trained: by its flag, or because `systems` names it."""
        flags = {
            "rasalore_selftrained": self.selftrained,
            "rasalore_control": self.control,
            "rasalore_poster": self.poster,
        }
        return flags[row] or row in [word.strip() for word in self.systems.split(",")]
