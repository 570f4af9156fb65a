"""Locate lesions on the unhealthy slices of a patient: by stage 1, by a teacher, by true masks."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.labels import UNHEALTHY
from ..data.patient import LabelledSlice, Patient, See
from ..data.slices import read_slices
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..prediction.loading import load_model
from ..prediction.volume import predict_slices
from .recipe import PseudoMaskRecipe
from .rule import SCALING, PseudoMaskRule
from .segmenter import MARGIN, PromptedSegmenter, choose_margin
from .table import Mask, SliceMasks

Image = NDArray[np.float32]
MARGIN_PATIENTS = 24  # that choose a box margin, one slice each


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
        see: of the processor of a network that sees whole scans; None where there is none.
    """

    facts: dict[str, Any]
    see: See | None

    def __init__(self, recipe: PseudoMaskRecipe, device: torch.device):
        self.recipe = recipe
        self.segmenter = load_segmenter(recipe)
        if self.segmenter:
            self.segmenter.model.to(device)

    def cut(self, scores: Image) -> tuple[Mask, Mask | None]:
        """Return the pseudo-mask of a slice's scores, and the pixels to ignore, both (H, W)."""
        return (scores > 0.5).astype(np.uint8), None

    @abstractmethod
    def locate(self, patient: Patient) -> Iterator[tuple[LabelledSlice, Image]]:
        """Yield unhealthy slices with their scores (H, W), in the slices' own frames."""

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
            if located := list(self.locate(patient)):
                example, scores = located[len(located) // 2]
                yield example.image, self.cut(scores)[0]

    def read(self, patient: Patient, labels: Collection[int] | None) -> list[LabelledSlice]:
        """Return slices of a patient."""
        data = self.recipe.data
        return [*read_slices(patient, data.modality, False, data.skip_slices, labels, see=self.see)]

    def __call__(self, patient: Patient) -> Iterator[SliceMasks]:
        for example, scores in self.locate(patient):
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
        self.see = self.processor.see or (self.appearance and self.appearance[1].see)
        if self.appearance:  # where it sees a lesion counts here, not how sure it is
            self.appearance[0].config.temperature = 1.0
        self.facts = {
            "heatmap": self.model.config.heatmap,
            **asdict(self.rule),
            "appearance": recipe.appearance or None,
            **segmenter_facts(recipe, self.segmenter),
        }

    def locate(self, patient: Patient) -> Iterator[tuple[LabelledSlice, Image]]:
        """Yield what stage 1 recognises as unhealthy itself."""
        slices = self.read(patient, {UNHEALTHY})
        for start in range(0, len(slices), self.recipe.batch_size):
            batch = slices[start : start + self.recipe.batch_size]
            scores, probabilities = self.score(batch, self.recipe.minimum_probability)
            for example, plane, probability in zip(batch, scores, probabilities, strict=True):
                if probability >= self.recipe.minimum_probability:
                    yield example, plane

    def score(
        self, batch: Sequence[LabelledSlice], least: float = 0.0
    ) -> tuple[list[Image], list[float]]:
        """Return the scores (H, W) of slices, and how likely stage 1 calls each unhealthy.

        Slices less likely than `least` have no heatmap.
        """
        images, views = [e.image for e in batch], [e.seen for e in batch]
        inputs = self.processor(images, views=views, return_tensors="pt").to(self.model.device)
        kinds = [self.model.config.heatmap]
        probabilities, heatmaps = self.model.score_and_locate(**inputs, kinds=kinds, least=least)
        heatmaps = self.processor.post_process_maps(heatmaps[:, 0], images, views=views)
        scores = [self.rule.scores(*pair) for pair in zip(heatmaps, images, strict=True)]
        if self.appearance:
            maps = predict_slices(*self.appearance, images, self.recipe.batch_size, views=views)
            scores = [np.float32(0.5) * (s + m) for s, m in zip(scores, maps, strict=True)]
        return scores, probabilities.tolist()


class TeacherMaker(ScoreMaker):
    """Pseudo-masks of a finished stage-2 network, without the pixels that it is unsure of."""

    def __init__(self, recipe: PseudoMaskRecipe):
        if not (Path(recipe.teacher) / "run.json").is_file():
            raise ValueError(
                f"teacher must be a finished run of train/stage2.py, but {recipe.teacher} holds no "
                "run.json."
            )
        self.network = load_model(recipe.teacher)
        self.see = self.network[1].see
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

    def locate(self, patient: Patient) -> Iterator[tuple[LabelledSlice, Image]]:
        slices = self.read(patient, {UNHEALTHY})
        images, views = [e.image for e in slices], [e.seen for e in slices]
        scores = predict_slices(*self.network, images, self.recipe.batch_size, True, views)
        return zip(slices, scores, strict=True)

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
