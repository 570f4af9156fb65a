"""Stage 2, RASALoRE: learn to segment from stage 1's pseudo-masks.

Two cores, minutes:
    accelerate launch --cpu train/stage2.py hub_configs/rasalore-tiny/training.yaml \
        data.root=phantoms pseudo_masks=runs/pseudo_masks out=runs/stage2
The poster's setting, on a GPU:
    accelerate launch train/stage2.py hub_configs/rasalore/training.yaml \
        data.root=scans pseudo_masks=runs/pseudo_masks out=runs/stage2

Supervision is the table of pseudo-masks; the weights that are kept agree best with the pseudo-masks
of validation patients. Masks made on one sequence supervise every other of the same grid:
data.modality=flair with pseudo-masks of T2; data.modality=all gives one network all sequences as
channels, which survives missing ones after augmentation.sequence_dropout=0.3.
"""

import json
import random
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.augmentation import augment_batch
from modeling_rasalore.layouts import ALL, MODALITIES, Patient, find_patients
from modeling_rasalore.loss_rasalore import soft_dice
from modeling_rasalore.mask_table import MaskTable
from modeling_rasalore.optimizers import build_optimizer
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SyntheticLesionRecipe,
    load_recipe,
)
from modeling_rasalore.sequence_grid import check_one_grid
from modeling_rasalore.slices import (
    HEALTHY,
    UNHEALTHY,
    check_same_split,
    read_split,
)
from modeling_rasalore.synthetic_lesions import paint_lesions
from modeling_rasalore.training import TrainingRun, loss_parts
from modeling_rasalore.work_list import WorkList


@dataclass
class Stage2Recipe(BaseRecipe):
    """Stage 2's recipe; see training.yaml in hub_configs/rasalore*."""

    pseudo_masks: str = MISSING  # folder of train/make_pseudo_masks.py
    minimum_area: float = 200.0  # mm2 of pseudo-mask that a training slice has at least
    initial_weights: str = ""  # folder of an earlier run of this script to start from
    synthetic_lesions: SyntheticLesionRecipe = field(default_factory=SyntheticLesionRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)


def main(words: list[str]) -> None:
    recipe = load_recipe(Stage2Recipe, words)

    # --- Data: the split of stage 1, and its pseudo-masks -------------------------------------
    folder = Path(recipe.pseudo_masks)
    split = read_split(folder / "split.json", find_patients(recipe.data.root))
    if recipe.initial_weights:
        check_same_split(recipe.initial_weights, split)
    processor, config = open_configurations(recipe.model, recipe.data.modality)
    made = json.loads((folder / "run.json").read_text())
    patients = who_needs_masks(recipe, split)
    check_grids(patients, recipe.data.modality, made.get("modality", recipe.data.modality))
    table = open_table(folder, patients, recipe.minimum_area)
    check_share(recipe.synthetic_lesions.share)

    run = TrainingRun(recipe)
    training, held_out = run.list_slices(split)
    training = choose_training(recipe, training, table)
    with_mask = np.count_nonzero(training.label == UNHEALTHY)
    run.accelerator.print(f"training slices: {len(training)}, with a pseudo-mask: {with_mask}")
    loader = run.load(
        training,
        held_out.keep_rows(rows_with_mask(held_out, table)),
        partial(prepare, processor, table, config.output_size),
        collate,
    )

    # --- Model and optimizer ----------------------------------------------------------------
    model = RasaloreModel(config)
    if recipe.initial_weights:
        model = RasaloreModel.from_pretrained(recipe.initial_weights, config=config)
    optimizer = build_optimizer(recipe.optimizer, [{"params": list(model.parameters())}])

    def losses(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], epoch: int
    ) -> dict[str, torch.Tensor]:
        paint_healthy(batch, processor, recipe.synthetic_lesions.darker_share)
        pixel_values = batch.pop("pixel_values")
        pixel_values, masks = augment_batch(
            pixel_values, batch, recipe.augmentation, processor.value_range
        )
        return loss_parts(model(pixel_values, **masks))

    run.train(model, optimizer, loader, recipe.optimizer, losses, agreement, "validation_agreement")

    # --- Save -------------------------------------------------------------------------------
    if run.accelerator.is_main_process:
        model.save_pretrained(run.folder)
        processor.save_pretrained(run.folder)
    run.write_summary(
        stage="rasalore",
        criterion="mean soft Dice with the pseudo-masks of validation patients",
        modality=recipe.data.modality,
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


def who_needs_masks(recipe: Stage2Recipe, split: dict[str, list[Patient]]) -> list[Patient]:
    """Those learned from, unless all lesions are painted, and those that choose the checkpoint."""
    learned_from = split["train"] if recipe.synthetic_lesions.share < 1 else []
    return [*learned_from, *split["validation"]]


def check_grids(patients: list[Patient], learned_from: str, masks_of: str) -> None:
    """Raise ValueError where masks made on one sequence do not fit the grid of another."""
    for patient in patients:
        check_one_grid(patient, (learned_from, masks_of))


def open_table(folder: Path, patients: list[Patient], minimum_area: float) -> MaskTable:
    """Pseudo-masks of these patients that are large enough to learn from."""
    table = MaskTable(folder, [patient.patient_id for patient in patients])
    total = len(table)
    if dropped := table.drop_small(minimum_area):
        print(f"{dropped} of {total} slices left out: pseudo-mask below {minimum_area:g} mm2")
    return table


def rows_with_mask(work: WorkList, table: MaskTable) -> list[int]:
    """Unhealthy slices that the table has; ValueError where there are none."""
    rows = [
        row
        for row in range(len(work))
        if work.label[row] == UNHEALTHY and work.key(row) in table.rows
    ]
    if not rows:
        raise ValueError(
            f"no pseudo-mask of {len(set(work.owner))} patients is large enough to learn from or "
            "to validate on; lower minimum_area or the threshold of the masks."
        )
    return rows


def check_share(share: float) -> None:
    """Raise ValueError for a share that is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"synthetic_lesions.share must lie in [0, 1], got {share}.")


def choose_training(recipe: Stage2Recipe, work: WorkList, table: MaskTable) -> WorkList:
    """Slices with a pseudo-mask, and healthy ones with enough brain for a synthetic lesion.

    As many of both as their shares allow: with twice as many healthy slices as unhealthy ones and
    equal shares, all unhealthy ones are used and half of the healthy ones.

    Raises:
        ValueError: no slice to paint on.
    """
    share, least = recipe.synthetic_lesions.share, recipe.synthetic_lesions.minimum_brain_area
    masked = rows_with_mask(work, table) if share < 1 else []
    if share == 0:
        return work.keep_rows(masked)
    healthy = np.flatnonzero((work.label == HEALTHY) & (work.brain_area >= least)).tolist()
    if not healthy:
        raise ValueError(f"no healthy slice shows {least:g} mm2 of brain to paint a lesion on.")
    total = min(len(masked) / (1 - share), len(healthy) / share) if share < 1 else len(healthy)

    def drawn(row: int) -> float:  # from its name and the seed: no order of reading changes it
        return random.Random(f"{recipe.loop.seed} {work.key(row)}").random()

    chosen = sorted(masked, key=drawn)[: round(total * (1 - share))]
    return work.keep_rows(chosen + sorted(healthy, key=drawn)[: round(total * share)])


def prepare(
    processor: RasaloreImageProcessor, table: MaskTable, size: int, example: dict[str, Any]
) -> dict[str, Any]:
    """Slice -> {"pixel_values", "labels", "healthy", maybe "sam_masks"}."""
    images = [example["image"]]
    sample = {"pixel_values": processor(images)["pixel_values"][0]}
    sample["healthy"] = example["label"] == HEALTHY
    if sample["healthy"]:
        return {**sample, "labels": np.zeros((size, size), np.uint8)}
    masks = table[example["patient_id"], example["slice_index"]]
    sample["labels"] = processor.crop_masks([masks.pseudo_mask], images, size)[0].numpy()
    if masks.sam_mask is not None:
        sample["sam_masks"] = processor.crop_masks([masks.sam_mask], images, size)[0].numpy()
    return sample


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch; a healthy slice has an empty SAM mask where others have one."""
    batch = {
        name: torch.stack([torch.as_tensor(example[name]) for example in examples])
        for name in ("pixel_values", "labels", "healthy")
    }
    if any(example.get("sam_masks") is not None for example in examples):
        blank = np.zeros_like(examples[0]["labels"])
        batch["sam_masks"] = torch.stack(
            [torch.as_tensor(example.get("sam_masks", blank)) for example in examples]
        )
    return batch


def paint_healthy(
    batch: dict[str, torch.Tensor], processor: RasaloreImageProcessor, darker_share: float
) -> None:
    """Paint a lesion into each healthy slice of a batch, in place; the flags are taken out."""
    healthy = batch.pop("healthy")
    if not healthy.any():
        return
    images = processor.to_intensities(batch["pixel_values"][healthy])
    painted, masks = paint_lesions(images, darker_share)
    batch["pixel_values"][healthy] = processor.from_intensities(painted)
    for name in batch.keys() & {"labels", "sam_masks"}:
        batch[name][healthy] = masks


@torch.inference_mode()
def agreement(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Soft Dice of scores and pseudo-mask of each slice, (B,)."""
    scores = model(batch["pixel_values"]).logits.sigmoid()
    return soft_dice(scores, batch["labels"][:, None].float())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
