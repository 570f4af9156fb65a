"""Train stage 2, RASALoRE: segmentation learned from pseudo-masks and painted lesions."""

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.layouts import find_patients
from ..data.patient import ALL, EACH, Patient
from ..data.slices import check_one_grid
from ..data.splits import read_split, refuse_other_split, split_patients
from ..models.configuration_rasalore import RasaloreConfig
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.loss_rasalore import leave_out, soft_dice
from ..models.modeling_rasalore import RasaloreModel
from ..pseudo_masks.criteria import is_brain
from ..pseudo_masks.table import MaskTable
from ..recipes import BaseRecipe, SplitRecipe, model_folder
from ..scans.naming import MODALITIES
from .augmentation import AugmentationRecipe, augment_batch
from .examples import (
    choose_training,
    choose_validation,
    collate_masked,
    paint_healthy,
    prepare_masked,
)
from .loop import Objective, held_out_batches, loss_parts, train
from .optimizers import OptimizerRecipe, build_optimizer
from .painted_lesions import SyntheticLesionRecipe
from .run import RunFolder
from .slice_loader import Batch, SliceLoader

HOTTEST = 1000.0  # of the temperatures that are tried


@dataclass
class Stage2Recipe(BaseRecipe):
    """Stage 2's recipe; see training.yaml in hub_configs/rasalore*.

    Attributes:
        pseudo_masks: folder of train/make_pseudo_masks.py; "" where all lesions are painted.
        split: how patients are shared out where there are no pseudo-masks, whose split counts.
        minimum_area: mm2 of pseudo-mask that a training slice has at least.
        initial_weights: folder of an earlier run of this script to start from.
    """

    pseudo_masks: str = ""
    split: SplitRecipe = field(default_factory=SplitRecipe)
    minimum_area: float = 200.0
    initial_weights: str = ""
    synthetic_lesions: SyntheticLesionRecipe = field(default_factory=SyntheticLesionRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)


def train_stage2(recipe: Stage2Recipe) -> Path:
    """Train stage 2 and return its folder; a run that ended there before is left as it is.

    Raises:
        ValueError: the recipe contradicts itself, its data or what the folder holds.
    """
    # --- Data: the split of stage 1, its pseudo-masks, healthy slices to paint on ---------------
    lesions = recipe.synthetic_lesions
    check_shares(recipe)
    split = open_split(recipe)
    if recipe.initial_weights:
        refuse_other_split(recipe.initial_weights, split)
    processor, config = open_configurations(model_folder(recipe.model), recipe.data.modality)
    table, made = open_masks(recipe, [*split["train"], *split["validation"]])
    with closing(RunFolder(recipe, config)) as run:
        listed, held_out = run.list_slices(split, recipe.initial_weights, recipe.pseudo_masks)
        if run.ended_before():
            return run.path
        training = choose_training(lesions, listed, table, recipe.loop.seed)
        validation = choose_validation(lesions, held_out, table)
        source = "pseudo-masks" if np.any(validation.label == UNHEALTHY) else "painted lesions"
        with_mask = np.count_nonzero(training.label == UNHEALTHY)
        run.accelerator.print(
            f"training slices: {len(training)}, with a pseudo-mask: {with_mask}; "
            f"the weights are chosen by {source} of validation patients"
        )
        prepare = partial(prepare_masked, processor, table, config.output_size)
        loader = run.load(training, validation, prepare, collate_masked, processor.see)

        # --- Model and optimizer ----------------------------------------------------------------
        start = recipe.initial_weights
        model = (
            RasaloreModel.from_pretrained(start, config=config) if start else RasaloreModel(config)
        )
        optimizer = build_optimizer(recipe.optimizer, [{"params": list(model.parameters())}])
        train(run, model, optimizer, recipe.optimizer, loader, build_objective(recipe, processor))

        # --- Scores that say how sure they are; save --------------------------------------------
        if lesions.share and run.accelerator.is_main_process:
            healthy = held_out.select_labels({HEALTHY})
            every_slice = replace(loader, held_out=healthy, rank=0, ranks=1)
            model.config.temperature = find_temperature(model, run, every_slice, processor, recipe)
        run.save_model(model, processor)
        run.write_summary(
            stage="rasalore",
            criterion=f"mean soft Dice with {source} of validation patients",
            modality=recipe.data.modality,
            temperature=model.config.temperature,
            training_slices=len(training),
            pseudo_masks=made,
        )
    return run.path


def check_shares(recipe: Stage2Recipe) -> None:
    """Raise ValueError for shares that are none, or that need pseudo-masks without naming any."""
    lesions = recipe.synthetic_lesions
    for name in ("share", "blank_share"):
        if not 0 <= getattr(lesions, name) <= 1:
            raise ValueError(
                f"synthetic_lesions.{name} must lie in [0, 1], got {getattr(lesions, name)}."
            )
    if recipe.data.modality == EACH and lesions.share < 1:
        raise ValueError(
            "pseudo-masks are of one sequence; data.modality=each learns from painted lesions "
            f"alone, with synthetic_lesions.share=1, got {lesions.share:g}."
        )
    if lesions.share < 1 and not recipe.pseudo_masks:
        raise ValueError(
            "stage 2 learns from pseudo-masks unless all lesions are painted; give pseudo_masks="
            "<folder of train/make_pseudo_masks.py>, or synthetic_lesions.share=1, got "
            f"{lesions.share:g}."
        )


def open_split(recipe: Stage2Recipe) -> dict[str, list[Patient]]:
    """Return the split of the pseudo-masks, which is stage 1's; without them the recipe's."""
    patients = find_patients(recipe.data.root, recipe.data.same_person)
    if recipe.pseudo_masks:
        return read_split(Path(recipe.pseudo_masks) / "split.json", patients)
    return split_patients(patients, recipe.split.seed, **recipe.split.amounts())


def open_configurations(
    folder: str, modality: str
) -> tuple[RasaloreImageProcessor, RasaloreConfig]:
    """Return processor and configuration: for one sequence, for each, or for all as channels.

    Raises:
        ValueError: each, for a network that sees single slices.
    """
    processor = RasaloreImageProcessor.from_pretrained(folder)
    learned = None if modality == EACH else modality
    config = RasaloreConfig.from_pretrained(folder, modality=learned)
    if modality == EACH and processor.see is None:
        raise ValueError(
            "data.modality=each needs a network that sees whole scans, such as "
            f"model=hub_configs/rasalore-base, got {folder}."
        )
    if modality == ALL and processor.see is None:  # else `read_slices` says why that cannot be
        processor.num_channels = config.num_channels = len(MODALITIES)
    return processor, config


def open_masks(
    recipe: Stage2Recipe, patients: list[Patient]
) -> tuple[MaskTable | None, dict[str, Any] | None]:
    """Return pseudo-masks large enough to learn from and how they were made; None without any.

    Raises:
        ValueError: made on another sequence whose grid is not the same.
    """
    if recipe.synthetic_lesions.share == 1:
        return None, None
    folder, modality = Path(recipe.pseudo_masks), recipe.data.modality
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} holds no finished run of train/make_pseudo_masks.py: no run.json; start "
            "that again with the same words, and it goes on where it was."
        )
    made = json.loads((folder / "run.json").read_text())
    for patient in patients:
        check_one_grid(patient, (modality, made.get("modality", modality)))
    table = MaskTable(folder, [patient.patient_id for patient in patients])
    total, least = len(table), recipe.minimum_area
    if dropped := table.drop_small(least):
        print(f"{dropped} of {total} slices left out: pseudo-mask below {least:g} mm2")
    return table, made


def build_objective(recipe: Stage2Recipe, processor: RasaloreImageProcessor) -> Objective:
    """Return the losses of training slices and the score of validation slices."""
    lesions = recipe.synthetic_lesions

    def losses(model: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        paint_healthy(batch, processor, lesions, recipe.data.modality)
        pixel_values = batch.pop("pixel_values")
        pixel_values, masks = augment_batch(
            pixel_values, batch, recipe.augmentation, processor.value_range, processor.levels
        )
        return loss_parts(model(pixel_values, **masks))

    def score(model: nn.Module, batch: Batch) -> Tensor:
        paint_healthy(batch, processor, replace(lesions, blank_share=0.0), recipe.data.modality)
        return soft_dice_of_slices(model, batch)

    return Objective(losses, score, "validation_agreement")


@torch.inference_mode()
def soft_dice_of_slices(model: nn.Module, batch: Batch) -> Tensor:
    """Return the soft Dice of scores and mask of each slice where pixels count, (B,)."""
    scores = model(batch["pixel_values"]).logits.sigmoid()[:, 0]
    ignored = batch.get("ignored")
    return soft_dice(leave_out(scores, ignored), leave_out(batch["labels"].float(), ignored))


def find_temperature(
    model: RasaloreModel,
    run: RunFolder,
    loader: SliceLoader,
    processor: RasaloreImageProcessor,
    recipe: Stage2Recipe,
) -> float:
    """Return the temperature for lesions painted into half of the healthy validation slices."""
    lesions = replace(recipe.synthetic_lesions, blank_share=0.5)
    model.eval()

    @torch.inference_mode()
    def score_brain(batch: Batch) -> tuple[Tensor, Tensor]:
        paint_healthy(batch, processor, lesions, recipe.data.modality)
        logits = model(batch["pixel_values"]).logits
        brain = is_brain(batch["pixel_values"], processor.levels)[:, None].float()
        inside = F.interpolate(brain, logits.shape[-2:])[:, 0] > 0
        return logits[:, 0][inside], batch["labels"][inside]

    return fit_temperature(score_brain(batch) for _, batch in held_out_batches(run, loader))


def fit_temperature(samples: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the temperature in [1, 1000] at which the masks are most likely; 1 without samples.

    Overlap losses reward certainty without end: after some hundred steps a network is as sure of
    its mistakes as of anything, its scores are 1 in single precision on healthy brain too, and no
    threshold keeps to an asked rate of false alarms. One number, by which all logits are divided,
    mends that (Guo et al. 2017, On Calibration of Modern Neural Networks). It changes no order and
    no mask at 0.5. Never below 1: painted lesions may be clearer than real ones, so they make
    nobody surer.

    Args:
        samples: pairs of (logits, masks of 0 and 1) of pixels inside the brain, (n,) each.
    """
    pairs = [(logits.double().cpu(), masks.double().cpu()) for logits, masks in samples]
    if not pairs:
        return 1.0
    logits, masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    def surprise(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(F.binary_cross_entropy_with_logits(scaled, masks))

    best = minimize_scalar(surprise, bounds=(0.0, float(np.log(HOTTEST))), method="bounded")
    return float(np.exp(best.x))
