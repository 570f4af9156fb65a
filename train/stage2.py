"""Stage 2, RASALoRE: learn to segment from stage 1's pseudo-masks.

Two cores, minutes:
    accelerate launch --cpu train/stage2.py hub_configs/rasalore-tiny/training.yaml \
        data.root=phantoms pseudo_masks=runs/pseudo_masks out=runs/stage2
The poster's setting, on a GPU:
    accelerate launch train/stage2.py hub_configs/rasalore/training.yaml \
        data.root=scans pseudo_masks=runs/pseudo_masks out=runs/stage2

Supervision is the table of pseudo-masks, lesions painted into healthy slices, or both. The weights
that are kept agree best with the pseudo-masks of validation patients; where these have none, or all
lesions are painted (synthetic_lesions.share=1, which needs no stage 1), with lesions painted into
their healthy slices.
Masks made on one sequence supervise every other of the same grid: data.modality=flair with
pseudo-masks of T2; data.modality=all gives one network all sequences as channels, which survives
missing ones after augmentation.sequence_dropout=0.5.
"""

import json
import random
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import ALL, LabelledSlice, Patient
from modeling_rasalore.data.slices import check_one_grid
from modeling_rasalore.data.splits import read_split, refuse_other_split, split_patients
from modeling_rasalore.models.loss_rasalore import leave_out, soft_dice
from modeling_rasalore.pseudo_masks.deletion import is_brain
from modeling_rasalore.pseudo_masks.table import MaskTable
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SplitRecipe,
    SyntheticLesionRecipe,
    load_recipe,
)
from modeling_rasalore.scans.naming import MODALITIES
from modeling_rasalore.training.augmentation import augment_batch
from modeling_rasalore.training.optimizers import build_optimizer
from modeling_rasalore.training.painted_lesions import paint_chosen
from modeling_rasalore.training.run import TrainingRun, loss_parts
from modeling_rasalore.training.slice_loader import SliceLoader
from modeling_rasalore.training.temperature import fit_temperature
from modeling_rasalore.training.work_list import WorkList


@dataclass
class Stage2Recipe(BaseRecipe):
    """Stage 2's recipe; see training.yaml in hub_configs/rasalore*."""

    # Folder of train/make_pseudo_masks.py, whose split counts; "" where all lesions are painted.
    pseudo_masks: str = ""
    split: SplitRecipe = field(default_factory=SplitRecipe)  # without pseudo-masks; as in stage 1
    minimum_area: float = 200.0  # mm2 of pseudo-mask that a training slice has at least
    initial_weights: str = ""  # folder of an earlier run of this script to start from
    synthetic_lesions: SyntheticLesionRecipe = field(default_factory=SyntheticLesionRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)


def main(words: list[str]) -> None:
    recipe = load_recipe(Stage2Recipe, words)

    # --- Data: the split of stage 1, its pseudo-masks, healthy slices to paint on ---------------
    check_shares(recipe)
    split = open_split(recipe)
    if recipe.initial_weights:
        refuse_other_split(recipe.initial_weights, split)
    processor, config = open_configurations(recipe.model, recipe.data.modality)
    table, made = open_masks(recipe, [*split["train"], *split["validation"]])

    run = TrainingRun(recipe)
    training, held_out = run.list_slices(split, recipe.initial_weights, recipe.pseudo_masks)
    if run.ended_before():
        return
    blank = held_out.keep(held_out.label == HEALTHY)
    training = choose_training(recipe, training, table)
    with_mask = np.count_nonzero(training.label == UNHEALTHY)
    judged = choose_validation(recipe, held_out, table)
    judge = "pseudo-masks" if np.any(judged.label == UNHEALTHY) else "painted lesions"
    run.accelerator.print(
        f"training slices: {len(training)}, with a pseudo-mask: {with_mask}; "
        f"the weights are chosen by {judge} of validation patients"
    )
    example = partial(prepare, processor, table, config.output_size)
    loader = run.load(training, judged, example, collate)

    # --- Model and optimizer ----------------------------------------------------------------
    start = recipe.initial_weights
    model = RasaloreModel.from_pretrained(start, config=config) if start else RasaloreModel(config)
    optimizer = build_optimizer(recipe.optimizer, [{"params": list(model.parameters())}])

    def losses(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], epoch: int
    ) -> dict[str, torch.Tensor]:
        paint_healthy(batch, processor, recipe.synthetic_lesions)
        pixel_values = batch.pop("pixel_values")
        pixel_values, masks = augment_batch(
            pixel_values, batch, recipe.augmentation, processor.value_range
        )
        return loss_parts(model(pixel_values, **masks))

    def agreement(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        paint_healthy(batch, processor, replace(recipe.synthetic_lesions, blank_share=0.0))
        return soft_dice_of_slices(model, batch)

    run.train(model, optimizer, loader, recipe.optimizer, losses, agreement, "validation_agreement")

    # --- Scores that say how sure they are; save ----------------------------------------------
    if run.accelerator.is_main_process:
        if recipe.synthetic_lesions.share:
            model.config.temperature = find_temperature(
                model, run, replace(loader, held_out=blank, rank=0, ranks=1), processor, recipe
            )
        model.save_pretrained(run.folder)
        processor.save_pretrained(run.folder)
    run.write_summary(
        stage="rasalore",
        criterion=f"mean soft Dice with {judge} of validation patients",
        modality=recipe.data.modality,
        temperature=model.config.temperature,
        training_slices=len(training),
        pseudo_masks=made,
    )


def open_configurations(
    folder: str, modality: str
) -> tuple[RasaloreImageProcessor, RasaloreConfig]:
    """Processor and configuration of a preset, for one sequence or for all of them as channels."""
    processor = RasaloreImageProcessor.from_pretrained(folder)
    config = RasaloreConfig.from_pretrained(folder, modality=modality)
    if modality == ALL:
        processor.num_channels = config.num_channels = len(MODALITIES)
    return processor, config


def check_shares(recipe: Stage2Recipe) -> None:
    """Raise ValueError for shares that are none, or that need pseudo-masks without naming any."""
    lesions = recipe.synthetic_lesions
    for name in ("share", "darker_share", "blank_share"):
        if not 0 <= getattr(lesions, name) <= 1:
            raise ValueError(
                f"synthetic_lesions.{name} must lie in [0, 1], got {getattr(lesions, name)}."
            )
    if lesions.share < 1 and not recipe.pseudo_masks:
        raise ValueError(
            "stage 2 learns from pseudo-masks unless all lesions are painted; give pseudo_masks="
            "<folder of train/make_pseudo_masks.py>, or synthetic_lesions.share=1, got "
            f"{lesions.share:g}."
        )


def open_split(recipe: Stage2Recipe) -> dict[str, list[Patient]]:
    """The split of the pseudo-masks, which is stage 1's; without them the one of the recipe."""
    patients = find_patients(recipe.data.root)
    if recipe.pseudo_masks:
        return read_split(Path(recipe.pseudo_masks) / "split.json", patients)
    return split_patients(patients, recipe.split.seed, **recipe.split.amounts())


def open_masks(
    recipe: Stage2Recipe, patients: list[Patient]
) -> tuple[MaskTable | None, dict[str, Any] | None]:
    """Pseudo-masks large enough to learn from, and how they were made; None where none are used.

    Raises:
        ValueError: made on another sequence whose grid is not the same.
    """
    if recipe.synthetic_lesions.share == 1:
        return None, None
    folder, modality = Path(recipe.pseudo_masks), recipe.data.modality
    made = json.loads((folder / "run.json").read_text())
    for patient in patients:
        check_one_grid(patient, (modality, made.get("modality", modality)))
    return open_table(folder, patients, recipe.minimum_area), made


def open_table(folder: Path, patients: list[Patient], minimum_area: float) -> MaskTable:
    """Pseudo-masks of these patients that are large enough to learn from."""
    table = MaskTable(folder, [patient.patient_id for patient in patients])
    total = len(table)
    if dropped := table.drop_small(minimum_area):
        print(f"{dropped} of {total} slices left out: pseudo-mask below {minimum_area:g} mm2")
    return table


def rows_with_mask(work: WorkList, table: MaskTable) -> list[int]:
    """Unhealthy slices that the table has."""
    return [
        row
        for row in range(len(work))
        if work.label[row] == UNHEALTHY and work.key(row) in table.rows
    ]


def no_mask(work: WorkList, purpose: str) -> ValueError:
    """What to raise where no slice of a list has a pseudo-mask."""
    return ValueError(
        f"no pseudo-mask of {len(set(work.owner))} patients is large enough to {purpose}; lower "
        "minimum_area or the threshold of the masks."
    )


def choose_validation(recipe: Stage2Recipe, work: WorkList, table: MaskTable | None) -> WorkList:
    """Slices with a pseudo-mask; where there are none, healthy ones to paint lesions on.

    Raises:
        ValueError: no pseudo-mask where none is painted, or no slice to paint on.
    """
    if table is not None:
        if rows := rows_with_mask(work, table):
            return work.keep_rows(rows)
        if recipe.synthetic_lesions.share == 0:
            raise no_mask(work, "validate on")
    return work.keep_rows(work.rows_to_paint(recipe.synthetic_lesions.minimum_brain_area))


def choose_training(recipe: Stage2Recipe, work: WorkList, table: MaskTable | None) -> WorkList:
    """Slices with a pseudo-mask, and healthy ones with enough brain for a synthetic lesion.

    As many of both as their shares allow: with twice as many healthy slices as unhealthy ones and
    equal shares, all unhealthy ones are used and half of the healthy ones. An unhealthy slice whose
    pseudo-mask is missing gives its place to a healthy one, so that few masks do not leave few
    slices.

    Raises:
        ValueError: no pseudo-mask, or no slice to paint on.
    """
    share, least = recipe.synthetic_lesions.share, recipe.synthetic_lesions.minimum_brain_area
    if table is None:
        return work.keep_rows(work.rows_to_paint(least))
    masked = rows_with_mask(work, table)
    if not masked:
        raise no_mask(work, "learn from")
    if share == 0:
        return work.keep_rows(masked)
    healthy = work.rows_to_paint(least)
    unhealthy = np.count_nonzero(work.label == UNHEALTHY)
    total = min(unhealthy / (1 - share), len(healthy) / share)

    def drawn(row: int) -> float:  # from its name and the seed: no order of reading changes it
        return random.Random(f"{recipe.loop.seed} {work.key(row)}").random()

    chosen = sorted(masked, key=drawn)[: round(total * (1 - share))]
    return work.keep_rows(chosen + sorted(healthy, key=drawn)[: round(total) - len(chosen)])


def prepare(
    processor: RasaloreImageProcessor,
    table: MaskTable | None,
    size: int,
    example: LabelledSlice,
) -> dict[str, Any]:
    """Slice -> {"pixel_values", "labels", "healthy", maybe "sam_masks" and "ignored"}."""
    images = [example.image]
    sample = {"pixel_values": processor(images)["pixel_values"][0]}
    sample["healthy"] = example.label == HEALTHY
    if table is None or sample["healthy"]:
        return {**sample, "labels": np.zeros((size, size), np.uint8)}
    masks = table[example.patient_id, example.slice_index]
    planes = {"labels": masks.pseudo_mask, "sam_masks": masks.sam_mask, "ignored": masks.ignored}
    for name, plane in planes.items():
        if plane is not None:
            sample[name] = processor.crop_masks([plane], images, size)[0].numpy()
    return sample


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch; a healthy slice has an empty SAM mask where others have one, and nothing ignored."""
    batch = {
        name: torch.stack([torch.as_tensor(example[name]) for example in examples])
        for name in ("pixel_values", "labels", "healthy")
    }
    blank = np.zeros_like(examples[0]["labels"])
    for name in ("sam_masks", "ignored"):
        if any(name in example for example in examples):
            batch[name] = torch.stack([torch.as_tensor(e.get(name, blank)) for e in examples])
    return batch


def paint_healthy(
    batch: dict[str, torch.Tensor],
    processor: RasaloreImageProcessor,
    lesions: SyntheticLesionRecipe,
) -> None:
    """Paint a lesion into healthy slices of a batch, in place; the flags are taken out.

    A share of them stays blank: as it is, with an empty mask.
    """
    healthy = batch.pop("healthy")
    chosen = healthy & (torch.rand(healthy.shape, device=healthy.device) >= lesions.blank_share)
    if not chosen.any():
        return
    masks = paint_chosen(batch["pixel_values"], chosen, processor, lesions.darker_share)
    for name in batch.keys() & {"labels", "sam_masks"}:
        batch[name][chosen] = masks


@torch.inference_mode()
def soft_dice_of_slices(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Soft Dice of scores and mask of each slice where pixels count, (B,)."""
    maps = model(batch["pixel_values"]).logits.sigmoid()[:, 0], batch["labels"].float()
    return soft_dice(*(leave_out(one, batch.get("ignored")) for one in maps))


def find_temperature(
    model: RasaloreModel,
    run: TrainingRun,
    loader: SliceLoader,
    processor: RasaloreImageProcessor,
    recipe: Stage2Recipe,
) -> float:
    """The temperature for lesions painted into half of the healthy validation slices."""
    lesions = replace(recipe.synthetic_lesions, blank_share=0.5)
    model.eval()

    @torch.inference_mode()
    def judged(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        paint_healthy(batch, processor, lesions)
        logits = model(batch["pixel_values"]).logits
        brain = is_brain(batch["pixel_values"])[:, None].float()
        inside = F.interpolate(brain, logits.shape[-2:])[:, 0] > 0
        return logits[:, 0][inside], batch["labels"][inside]

    return fit_temperature(judged(batch) for _, batch in run.held_out_batches(loader))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
