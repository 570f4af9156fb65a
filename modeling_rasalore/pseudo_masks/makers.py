"""Make the pseudo-masks of all unhealthy training and validation slices, patient by patient."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from tqdm import tqdm

from ..data.labels import UNHEALTHY
from ..data.layouts import find_patients
from ..data.patient import LabelledSlice, Patient
from ..data.slices import read_slices
from ..data.splits import read_split, refuse_other_split, split_hash, write_split
from ..files import claim_folder, write_json
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..prediction.loading import load_model
from ..prediction.volume import predict_slices
from ..provenance import provenance
from ..recipes import DataRecipe
from .rule import SCALING, PseudoMaskRule
from .segmenter import MARGIN, PromptedSegmenter, choose_margin
from .table import Mask, SliceMasks, table_path, write_masks

Image = NDArray[np.float32]
MARGIN_PATIENTS = 24  # that choose a box margin, one slice each


@dataclass
class PseudoMaskRecipe:
    """What the masks are made from.

    Attributes:
        stage1: folder of train/stage1.py; its split.json decides who is in.
        out: folder of the masks.
        source: "ddpt", or "truth" for the ceiling.
        threshold: of the scaled heatmap.
        filter_reach: of the guided filter that lets a heatmap follow the slice's edges, in shares
            of the square root of the brain's area; 0, the poster: no filter.
        minimum_probability: unhealthy slices that stage 1 itself gives less than this are left out:
            what it does not recognise it does not locate either. The poster keeps all: 0.
        appearance: folder of a stage-2 network that saw painted lesions only: what a lesion looks
            like, where the heatmap says what made the slice unhealthy. Their mean is cut. The
            poster: none.
        teacher: folder of a finished stage-2 run, whose weights may be a running mean (loop.ema):
            its scores, averaged over mirror images, are cut in place of heatmaps. The poster: none.
        uncertain_above: of a teacher: higher scores are lesion or uncertain, lower ones are not
            lesion. Uncertain pixels, where the next network had better not believe the teacher, are
            marked and left out of all that stage 2 computes.
        uncertain_up_to: of a teacher: higher scores are lesion.
        segmenter: repo id or folder of a SAM, SAM 2 or LiteMedSAM; empty: no M_SAM.
        segmenter_revision: of the repo; empty: its newest.
        prompt: "box" or "points".
        margin: around the box, in shares of its longer side; null: chosen on training slices by the
            overlap that the segmenter itself expects, without any mask.
        seed: of the points.
        batch_size: slices scored at once.
    """

    stage1: str = MISSING
    out: str = MISSING
    data: DataRecipe = field(default_factory=DataRecipe)
    source: str = "ddpt"
    threshold: float = 0.5
    filter_reach: float = 0.0
    minimum_probability: float = 0.0
    appearance: str = ""
    teacher: str = ""
    uncertain_above: float = 0.3
    uncertain_up_to: float = 0.7
    segmenter: str = ""
    segmenter_revision: str | None = None
    prompt: str = "box"
    margin: float | None = MARGIN
    seed: int = 0
    batch_size: int = 32


def make_pseudo_masks(recipe: PseudoMaskRecipe) -> Path:
    """Write the pseudo-masks of a recipe and return their folder; patients done before are kept.

    Raises:
        ValueError: sources that exclude each other, know other patients, or made what the folder
            holds already.
    """
    check_sources(recipe)
    out = Path(recipe.out)
    split = read_split(Path(recipe.stage1) / "split.json", find_patients(recipe.data.root))
    sources = list(filter(None, (recipe.stage1, recipe.appearance, recipe.teacher)))
    for folder in sources:
        refuse_other_split(folder, split)
    make = build_maker(recipe)
    claim_folder(out, settings_of(recipe), "masks")
    if isinstance(make, ScoreMaker) and make.segmenter:
        make.facts |= make.settle_margin(split["train"])
    write_split(split, out / "split.json", sources)

    patients = [*split["train"], *split["validation"]]
    count = 0
    for patient in tqdm(patients, desc=out.name, unit="patient"):
        if not table_path(out, patient.patient_id).exists():
            masks = list(make(patient))
            count += len(masks)
            write_masks(out, patient.patient_id, masks)
    summary = {
        **provenance(),
        **make.facts,
        "source": "teacher" if recipe.teacher else recipe.source,
        "modality": recipe.data.modality,
        "seed": recipe.seed,
        "split_sha256": split_hash(split),
    }
    write_json(out / "run.json", summary)
    print(f"done: pseudo-masks of {count} slices of {len(patients)} patients in {out}")
    return out


def settings_of(recipe: PseudoMaskRecipe) -> dict[str, Any]:
    """Return what decides the masks, so that a folder never mixes those of two recipes."""
    settings = {k: v for k, v in vars(recipe).items() if k not in ("out", "batch_size", "data")}
    return settings | {"modality": recipe.data.modality, "skip_slices": recipe.data.skip_slices}


def check_sources(recipe: PseudoMaskRecipe) -> None:
    """Raise ValueError for sources that do not exist or exclude each other, and for bounds."""
    if recipe.source not in ("ddpt", "truth"):
        raise ValueError(f"source must be 'ddpt' or 'truth', got {recipe.source!r}.")
    others = ("source", "threshold", "filter_reach", "minimum_probability", "appearance")
    given = [name for name in others if getattr(recipe, name) != getattr(PseudoMaskRecipe, name)]
    if recipe.teacher and given:
        raise ValueError(
            f"a teacher's scores are cut alone; leave out {' and '.join(given)}, or teacher."
        )
    low, high = recipe.uncertain_above, recipe.uncertain_up_to
    if not 0 <= low <= high < 1:
        raise ValueError(
            "scores are uncertain from uncertain_above up to uncertain_up_to, with 0 <= first <= "
            f"second < 1, got {low:g} and {high:g}."
        )


def build_maker(recipe: PseudoMaskRecipe) -> "ScoreMaker | TruthMaker":
    """Return what makes the masks of a recipe."""
    if recipe.source == "truth":
        return TruthMaker(recipe)
    return TeacherMaker(recipe) if recipe.teacher else HeatmapMaker(recipe)


def load_segmenter(recipe: PseudoMaskRecipe) -> PromptedSegmenter | None:
    """Return the segmenter that refines the masks, None where the recipe names none."""
    if not recipe.segmenter:
        return None
    margin = MARGIN if recipe.margin is None else recipe.margin
    return PromptedSegmenter.from_pretrained(
        recipe.segmenter, recipe.prompt, recipe.seed, recipe.segmenter_revision, margin
    )


def segmenter_facts(
    recipe: PseudoMaskRecipe, segmenter: PromptedSegmenter | None
) -> dict[str, Any]:
    """Return what run.json says of it, also whether it is a stand-in or knows true masks."""
    stand_in = bool(segmenter and getattr(segmenter.model.config, "stand_in", False))
    contaminated = bool(segmenter and segmenter.contaminated)
    return {
        "segmenter": recipe.segmenter or None,
        "stand_in": stand_in,
        "contaminated": contaminated,
    }


class ScoreMaker(ABC):
    """Pseudo-masks cut from scores, and M_SAM where a segmenter is given.

    Attributes:
        facts: what run.json says of how they were made.
    """

    facts: dict[str, Any]

    def __init__(self, recipe: PseudoMaskRecipe, device: torch.device):
        self.recipe = recipe
        self.segmenter = load_segmenter(recipe)
        if self.segmenter:
            self.segmenter.model.to(device)

    @abstractmethod
    def locate(self, images: list[Image]) -> list[Image | None]:
        """Return scores (H, W) of slices in their own frames; None for a slice without a mask."""

    def cut(self, scores: Image) -> tuple[Mask, Mask | None]:
        """Return the pseudo-mask of a slice's scores, and the pixels to ignore, both (H, W)."""
        return (scores > 0.5).astype(np.uint8), None

    def settle_margin(self, patients: Sequence[Patient]) -> dict[str, Any]:
        """Choose the box margin where the recipe leaves it open; return what run.json says of it.

        Args:
            patients: of training; of up to `MARGIN_PATIENTS` of them the middle unhealthy slice.
        """
        assert self.segmenter is not None
        if self.recipe.margin is not None:
            return {"margin": self.recipe.margin}
        expected = choose_margin(self.segmenter, self.middle_slices(patients))
        return {"margin": self.segmenter.margin, "expected_overlaps": expected}

    def middle_slices(self, patients: Sequence[Patient]) -> Iterator[tuple[Image, Mask]]:
        """Yield the middle unhealthy slice of each patient with its pseudo-mask, where it has one.

        Patients are evenly spaced in their list.
        """
        for patient in patients[:: -(-len(patients) // MARGIN_PATIENTS) or 1]:
            if slices := self.read(patient):
                image = slices[len(slices) // 2].image
                (scores,) = self.locate([image])
                if scores is not None:
                    yield image, self.cut(scores)[0]

    def read(self, patient: Patient) -> list[LabelledSlice]:
        """Return a patient's unhealthy slices."""
        data = self.recipe.data
        return list(read_slices(patient, data.modality, skip=data.skip_slices, labels={UNHEALTHY}))

    def __call__(self, patient: Patient) -> Iterator[SliceMasks]:
        slices = self.read(patient)
        for start in range(0, len(slices), self.recipe.batch_size):
            batch = slices[start : start + self.recipe.batch_size]
            located = self.locate([example.image for example in batch])
            for example, scores in zip(batch, located, strict=True):
                if scores is not None:
                    yield self.masks(example, scores)

    def masks(self, example: LabelledSlice, scores: Image) -> SliceMasks:
        """Return a slice's masks."""
        image = example.image
        pseudo_mask, ignored = self.cut(scores)
        sam_mask = self.segmenter.segment(image, pseudo_mask) if self.segmenter else None
        return slice_masks(example, pseudo_mask, sam_mask, ignored)


class HeatmapMaker(ScoreMaker):
    """Pseudo-masks M_DDPT of stage 1's heatmaps."""

    def __init__(self, recipe: PseudoMaskRecipe):
        self.model = DdptModel.from_pretrained(recipe.stage1).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(recipe, self.model.device)
        self.processor = RasaloreImageProcessor.from_pretrained(recipe.stage1)
        scaling = SCALING[self.model.config.heatmap]
        self.rule = PseudoMaskRule(scaling, recipe.threshold, recipe.filter_reach)
        self.appearance = load_model(recipe.appearance) if recipe.appearance else None
        if self.appearance:  # where it sees a lesion counts here, not how sure it is
            self.appearance[0].config.temperature = 1.0
        self.facts = {
            "heatmap": self.model.config.heatmap,
            **asdict(self.rule),
            "appearance": recipe.appearance or None,
            **segmenter_facts(recipe, self.segmenter),
        }

    def locate(self, images: list[Image]) -> list[Image | None]:
        """Return scores of what stage 1 recognises as unhealthy itself."""
        inputs = self.processor(images, return_tensors="pt").to(self.model.device)
        probabilities = self.model.unhealthy_probability(**inputs).tolist()
        heatmaps = self.processor.post_process_maps(self.model.heatmaps(**inputs), images)
        scores = [self.rule.scores(*pair) for pair in zip(heatmaps, images, strict=True)]
        if self.appearance:
            maps = predict_slices(*self.appearance, images, self.recipe.batch_size)
            scores = [np.float32(0.5) * (s + m) for s, m in zip(scores, maps, strict=True)]
        least = self.recipe.minimum_probability
        return [s if p >= least else None for s, p in zip(scores, probabilities, strict=True)]


class TeacherMaker(ScoreMaker):
    """Pseudo-masks of a finished stage-2 network, without the pixels that it is unsure of."""

    def __init__(self, recipe: PseudoMaskRecipe):
        if not (Path(recipe.teacher) / "run.json").is_file():
            raise ValueError(
                f"teacher must be a finished run of train/stage2.py, but {recipe.teacher} holds no "
                "run.json."
            )
        self.network = load_model(recipe.teacher)
        model, modality = self.network[0], recipe.data.modality
        if model.config.modality != modality:
            raise ValueError(
                f"{recipe.teacher} learned from {model.config.modality}, and data.modality is "
                f"{modality}; a teacher sees the sequence that it knows."
            )
        super().__init__(recipe, model.device)
        self.facts = {
            "teacher": recipe.teacher,
            "uncertain_above": recipe.uncertain_above,
            "uncertain_up_to": recipe.uncertain_up_to,
            **segmenter_facts(recipe, self.segmenter),
        }

    def locate(self, images: list[Image]) -> list[Image | None]:
        return [*predict_slices(*self.network, images, self.recipe.batch_size, flips=True)]

    def cut(self, scores: Image) -> tuple[Mask, Mask | None]:
        pseudo_mask = scores > self.recipe.uncertain_up_to
        ignored = (scores > self.recipe.uncertain_above) & ~pseudo_mask
        return pseudo_mask.astype(np.uint8), ignored.astype(np.uint8)


class TruthMaker:
    """True masks in place of pseudo-masks: an oracle, for the ceiling row only."""

    facts: dict[str, Any] = {"oracle": True}  # noqa: RUF012 - constant

    def __init__(self, recipe: PseudoMaskRecipe):
        self.data = recipe.data

    def __call__(self, patient: Patient) -> Iterator[SliceMasks]:
        if patient.mask is None:
            raise ValueError(f"source=truth needs a mask of every patient; {patient} has none.")
        for example in read_slices(
            patient,
            self.data.modality,
            with_mask=True,
            skip=self.data.skip_slices,
            labels={UNHEALTHY},
        ):
            assert example.mask is not None  # the patient has a mask, and it was read
            yield slice_masks(example, example.mask)


def slice_masks(
    example: LabelledSlice,
    pseudo_mask: Mask,
    sam_mask: Mask | None = None,
    ignored: Mask | None = None,
) -> SliceMasks:
    """Return a slice's masks with their area."""
    _, row_mm, column_mm = example.spacing
    area = float(pseudo_mask.sum() * row_mm * column_mm)
    key = example.patient_id, example.slice_index
    return SliceMasks(*key, pseudo_mask, area, sam_mask, ignored)
