"""Makes the steps of a study: which work, on which recipe, into which folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..data.layouts import find_patients
from ..data.patient import AUTO, Patient
from ..data.slices import read_patient
from ..files import replace_file
from ..prediction.loading import load_model
from ..prediction.options import PredictionOptions
from ..prediction.run import predict_scans
from ..prediction.volume import predict_volume
from ..processes import Work
from ..pseudo_masks.comparison import ComparisonRecipe, compare_runs
from ..pseudo_masks.criteria import choices_table
from ..pseudo_masks.makers import make_pseudo_masks
from ..pseudo_masks.recipe import PseudoMaskRecipe
from ..recipes import DataRecipe, load_recipe, preset_folder
from ..scans.background import BrainSlices
from ..scans.overlays import overlay_montage
from ..scans.volumes import Volume, read_mask
from ..training.stage1 import Stage1Recipe, train_stage1
from ..training.stage2 import Stage2Recipe, train_stage2
from .recipe import HEALTHY_SLICES, PSEUDO_MASKS, StudyRecipe

PHANTOM_SKIP = 15 / 96  # of the slices of a synthetic patient, at either end
# How heatmaps of the small stage 1 are cut; the poster's threshold is 0.5, without the rest.
CUT = ("threshold=0.3", "filter_reach=0.06", "minimum_probability=0.5")
# After a study's own words: else it is no control.
ALL_PAINTED = ("synthetic_lesions.share=1",)
# Of stage 2 without a start.
FROM_RANDOM = {
    "rasalore-tiny": ("optimizer.learning_rate=5.0e-3",),
    "rasalore-base": ("optimizer.learning_rate=3.0e-3", "loop.batch_size=8"),
}


@dataclass(frozen=True)
class Step:
    """One step of a study, which can be sent to another process.

    Attributes:
        title: what happens, in words.
        work: what an earlier start finished of it is not done again.
        out: folder of what it makes.
    """

    title: str
    work: Work
    out: Path


@dataclass
class Plan:
    """The steps of a study.

    Attributes:
        rounds: steps that may go side by side, each round after the one before.
        left_out: what cannot be had of these scans, and why.
        results: what readers want of the study's folder.
        runs: one per seed and fold of real scans.
    """

    rounds: list[tuple[Step, ...]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)
    runs: list["Run"] = field(default_factory=list)

    def add(self, *steps: Step | None) -> None:
        """Append steps that may go side by side; None for one that is left out."""
        if chosen := tuple(step for step in steps if step is not None):
            self.rounds.append(chosen)


@dataclass(frozen=True)
class Line:
    """The trainings of one seed on one folder of scans.

    Attributes:
        study: what was asked for.
        root: the folder.
        seed: of every training.
    """

    study: StudyRecipe
    root: str
    seed: int

    @property
    def data(self) -> DataRecipe:
        """Which slices are read."""
        data = self.study.data
        synthetic = self.root != data.root and data.skip_slices == AUTO
        skip = round(PHANTOM_SKIP * self.study.phantoms.shape[2]) if synthetic else data.skip_slices
        same = data.same_person if self.root == data.root else ""
        return DataRecipe(self.root, data.modality, skip, same_person=same)

    def stage1(self, title: str, out: Path, *words: str) -> Step:
        """Return the training of stage 1 into `out`."""
        common = self.training_words("ddpt" + self.study.preset.removeprefix("rasalore"), out)
        recipe = load_recipe(Stage1Recipe, [*common, *words, *self.study.stage1])
        return Step(title, partial(train_stage1, recipe), out)

    def stage2(self, title: str, out: Path, *words: str, last: Sequence[str] = ()) -> Step:
        """Return the training of stage 2 into `out`; the `last` words overrule the study's own."""
        common = self.training_words(self.study.preset, out)
        recipe = load_recipe(Stage2Recipe, [*common, *words, *self.study.stage2, *last])
        return Step(title, partial(train_stage2, recipe), out)

    def continue_stage2(
        self, title: str, out: Path, masks: Path, start: Path, last: Sequence[str] = ()
    ) -> Step:
        """Return the training of stage 2 on pseudo-masks, from the weights of an earlier run."""
        words = f"pseudo_masks={masks}", f"initial_weights={start}"
        return self.stage2(title, out, *words, last=last)

    def control_stage2(self, title: str, out: Path, masks: Path, start: Path) -> Step:
        """Return the training of `continue_stage2` with painted lesions in place of pseudo-masks.

        Same start, same steps, same slices without a lesion: what it gains, longer training brings.
        """
        return self.continue_stage2(title, out, masks, start, last=ALL_PAINTED)

    def paint_stage2(self, title: str, out: Path, start: Path, *split: str) -> Step:
        """Return the training of `control_stage2` where there are no pseudo-masks."""
        return self.stage2(title, out, f"initial_weights={start}", *split, last=ALL_PAINTED)

    def warm_up(self, title: str, out: Path, *split: str) -> Step:
        """Return the training of stage 2 on nothing but lesions painted into healthy slices."""
        words = "synthetic_lesions.share=1", *self.from_random(), "loop.max_steps=400"
        return self.stage2(title, out, *split, *words)

    def paint_stage1(self, out: Path, *split: str) -> Step:
        """Return the training of stage 1 on nothing but lesions painted into healthy slices."""
        words = "synthetic_lesions.share=1", "synthetic_lesions.blank_share=0.5"
        return self.stage1("stage 1 on painted lesions", out, *split, *words)

    def learn_labels(self, out: Path, start: Path, *split: str) -> Step:
        """Return the training of stage 1 on real slice labels, from the weights of an earlier run.

        Slower and shorter than from random weights, so that it keeps what it starts from.
        """
        rates = "optimizer.learning_rate=3.0e-4", "context_learning_rate=3.0e-4"
        words = f"initial_weights={start}", *rates, "loop.max_steps=300", *split
        return self.stage1("stage 1 on real slice labels", out, *words)

    def poster_stage2(self, title: str, out: Path, masks: Path) -> Step:
        """Return the training of stage 2 on pseudo-masks alone, from random weights."""
        words = f"pseudo_masks={masks}", "synthetic_lesions.share=0", "augmentation.gamma=0"
        return self.stage2(title, out, *words, *self.from_random())

    def masks(self, title: str, stage1: Path, out: Path, *words: str) -> Step:
        """Return the making of pseudo-masks into `out`."""
        common = [f"stage1={stage1}", *self.data_words(), f"out={out}"]
        recipe = load_recipe(PseudoMaskRecipe, [*common, *words, *self.study.pseudo_masks])
        return Step(title, partial(make_pseudo_masks, recipe), out)

    def cut_masks(self, title: str, stage1: Path, out: Path, *words: str) -> Step:
        """Return the making of pseudo-masks of stage 1's heatmaps into `out`."""
        return self.masks(title, stage1, out, *CUT, *words)

    def fused_masks(self, stage1: Path, out: Path, start: Path) -> Step:
        """Return the making of pseudo-masks of heatmaps, the start's scores and the free map."""
        words = "source=fused", f"fuse=[{start}]"
        return self.masks("fused pseudo-masks", stage1, out, *words)

    def true_masks(self, stage1: Path, out: Path) -> Step:
        """Return the writing of true masks in the form of pseudo-masks."""
        words = [f"stage1={stage1}", *self.data_words(), f"out={out}", "source=truth"]
        work = partial(make_pseudo_masks, load_recipe(PseudoMaskRecipe, words))
        return Step("true masks, in the form of pseudo-masks", work, out)

    def training_words(self, preset: str, out: Path) -> list[str]:
        """Return the words that all trainings have in common, the preset's recipe first."""
        recipe = str(preset_folder(preset) / "training.yaml")
        return [recipe, *self.data_words(), f"loop.seed={self.seed}", f"out={out}"]

    def from_random(self) -> tuple[str, ...]:
        """Return the words of a stage 2 that starts from random weights."""
        return FROM_RANDOM.get(self.study.preset, FROM_RANDOM["rasalore-tiny"])

    def data_words(self) -> list[str]:
        """Return the words that say which slices are read."""
        data = self.data
        words = {"root": data.root, "modality": data.modality, "skip_slices": data.skip_slices}
        words |= {"same_person": data.same_person} if data.same_person else {}
        return [f"data.{key}={value}" for key, value in words.items()]


@dataclass(frozen=True)
class Run:
    """One split of the studied scans, on which a network is trained and judged.

    Attributes:
        line: its scans and seed.
        folder: of its trainings.
        start: run of stage 2 that knows synthetic patients, or painted lesions, alone.
        out: folder of its table.
        untaught: ids of patients to learn from that have no mask, so that there is no ceiling.
        unscored: ids of test patients that have none.
        learns_from: what slice labels give stage 2, as of `StudyRecipe.learns_from`.
        split: words that say who is held out.
    """

    line: Line
    folder: Path
    start: Path
    out: Path
    untaught: Sequence[str] = ()
    unscored: Sequence[str] = ()
    learns_from: str = PSEUDO_MASKS
    split: Sequence[str] = ()

    @property
    def masks(self) -> Path:
        """Where the pseudo-masks lie."""
        return self.folder / "pseudo_masks"

    @property
    def network(self) -> Path:
        """What the study makes: RASALoRE; of too few patients its control, or its start."""
        folders = {PSEUDO_MASKS: self.folder / "stage2", HEALTHY_SLICES: self.folder / "control"}
        return folders.get(self.learns_from, self.start)

    def trains(self, row: str) -> bool:
        """Return whether an optional row is trained; all but the poster's need pseudo-masks."""
        if row == "rasalore_control" and self.learns_from == HEALTHY_SLICES:
            return True  # it is the network
        with_masks = self.learns_from == PSEUDO_MASKS
        return self.line.study.trains(row) and (with_masks or row == "rasalore_poster")


def compare_networks(recipe: ComparisonRecipe) -> None:
    """Print what criteria that need no mask say of several networks."""
    print(choices_table(compare_runs(recipe)))


def segment_test_patient(stage1: Path, model: Path, data: DataRecipe, out: Path) -> None:
    """Segment the scan of the last test patient of stage 1's split, and draw it with its truth."""
    test = json.loads((stage1 / "split.json").read_text(encoding="utf-8"))["test"]
    *_, patient = (p for p in find_patients(data.root) if p.patient_id in test)
    scan, network = patient.images[data.modality], load_model(str(model))
    options = PredictionOptions(modality=data.modality, brain_mask=patient.brain_mask)
    manifest = predict_scans(*network, [scan], out, options, resume=True)
    (entry,) = manifest["scans"].values()
    if entry["status"] == "failed":
        raise ValueError(f"{scan} cannot be segmented: {entry['reason']}")
    if patient.mask is not None:
        draw_with_truth(patient, read_patient(patient, data.modality), network, out)


def draw_with_truth(patient: Patient, scan: Volume, network: tuple[Any, Any], out: Path) -> Path:
    """Write patient.png: four slices with score map, predicted mask and true mask."""
    assert patient.mask is not None
    prediction = predict_volume(*network, scan)
    picture = overlay_montage(
        BrainSlices(scan.slices),
        prediction.scores,
        prediction.mask,
        read_mask(patient.mask, scan),
        scan.spacing[1:],
        count=4,
        title=patient.patient_id,
    )
    return replace_file(out / "patient.png", lambda draft: picture.save(draft))
