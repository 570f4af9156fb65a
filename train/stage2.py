"""Stage 2, RASALoRE: learn to segment from stage 1's pseudo-masks.

Two cores, minutes:
    accelerate launch --cpu train/stage2.py hub_configs/rasalore-tiny/training.yaml \
        data.root=phantoms pseudo_masks=runs/pseudo_masks out=runs/stage2
The poster's setting, on a GPU:
    accelerate launch train/stage2.py hub_configs/rasalore/training.yaml \
        data.root=scans pseudo_masks=runs/pseudo_masks out=runs/stage2

Supervision is the table of pseudo-masks; the weights that are kept agree best with the pseudo-masks
of validation patients.
"""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.augmentation import augment_batch
from modeling_rasalore.layouts import Patient, find_patients
from modeling_rasalore.loss_rasalore import soft_dice
from modeling_rasalore.mask_table import MaskTable
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SyntheticLesionRecipe,
    load_recipe,
)
from modeling_rasalore.slices import (
    HEALTHY,
    UNHEALTHY,
    check_labels,
    check_same_split,
    read_split,
    slice_dataset,
    split_hash,
    write_split,
)
from modeling_rasalore.synthetic_lesions import paint_lesions
from modeling_rasalore.training import (
    TrainingRun,
    build_optimizer,
    count_steps,
    loss_parts,
    make_loader,
)


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
    processor = RasaloreImageProcessor.from_pretrained(recipe.model)
    config = RasaloreConfig.from_pretrained(recipe.model)
    tables = {
        name: open_table(folder, split[name], recipe.minimum_area)
        for name in ("train", "validation")
    }
    *used, samples = healthy_shares(recipe, split["train"], len(tables["train"]))

    run = TrainingRun(recipe, count_steps(samples, recipe.loop))
    run.accelerator.print(f"training slices: {samples}, with a pseudo-mask: {len(tables['train'])}")
    if run.accelerator.is_main_process:
        write_split(split, run.folder / "split.json")
    prepare = sample_maker(processor, config.output_size)
    stream = masked_stream(split["train"], recipe, tables["train"], prepare, (used[0], used[1]))
    stream = stream.shuffle(seed=recipe.loop.seed, buffer_size=recipe.data.shuffle_buffer)
    held_out = masked_stream(split["validation"], recipe, tables["validation"], prepare)
    loaders = make_loader(stream, collate, recipe.loop), make_loader(held_out, collate, recipe.loop)

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

    run.train(
        model,
        optimizer,
        loaders,
        recipe.optimizer,
        losses,
        agreement,
        "validation_agreement",
    )

    # --- Save -------------------------------------------------------------------------------
    if run.accelerator.is_main_process:
        model.save_pretrained(run.folder)
        processor.save_pretrained(run.folder)
    run.write_summary(
        stage="rasalore",
        criterion="mean soft Dice with the pseudo-masks of validation patients",
        training_slices=samples,
        split_sha256=split_hash(split),
        pseudo_masks=json.loads((folder / "run.json").read_text()),
    )


def open_table(folder: Path, patients: list[Patient], minimum_area: float) -> MaskTable:
    """Pseudo-masks of these patients; ValueError where none is large enough to learn from."""
    table = MaskTable(folder, [patient.patient_id for patient in patients])
    total = len(table)
    dropped = table.drop_small(minimum_area)
    if not len(table):
        raise ValueError(
            f"no pseudo-mask of {len(patients)} patients reaches {minimum_area:g} mm2 "
            f"({total} slices looked at); lower minimum_area or the threshold of the masks."
        )
    if dropped:
        print(f"{dropped} of {total} slices left out: pseudo-mask below {minimum_area:g} mm2")
    return table


def healthy_shares(
    recipe: Stage2Recipe, patients: list[Patient], with_mask: int
) -> tuple[float, float, int]:
    """Which part of unhealthy and of healthy slices is used, and the slices of an epoch.

    As many of both as their shares allow: with twice as many healthy slices as unhealthy ones and
    equal shares, all unhealthy ones are used and half of the healthy ones.

    Raises:
        ValueError: a share outside [0, 1].
    """
    share = recipe.synthetic_lesions.share
    if not 0 <= share <= 1:
        raise ValueError(f"synthetic_lesions.share must lie in [0, 1], got {share}.")
    if share == 0:
        return 1.0, 0.0, with_mask
    counts = check_labels(patients, recipe.data.skip_slices)
    healthy = sum(count[HEALTHY] for count in counts.values())
    total = min(with_mask / (1 - share), healthy / share) if share < 1 else healthy
    return total * (1 - share) / with_mask, total * share / healthy, round(total)


def sample_maker(
    processor: RasaloreImageProcessor, size: int
) -> Callable[[dict[str, Any], MaskTable], dict[str, Any]]:
    """Function from a slice and the table to {"pixel_values", "labels", maybe "sam_masks"}."""

    def prepare(example: dict[str, Any], table: MaskTable) -> dict[str, Any]:
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

    return prepare


def masked_stream(
    patients: list[Patient],
    recipe: Stage2Recipe,
    table: MaskTable,
    prepare: Callable[[dict[str, Any], MaskTable], dict[str, Any]],
    used: tuple[float, float] = (1.0, 0.0),
) -> Any:
    """Stream of prepared samples: slices of the table, and healthy ones that show enough brain.

    used: part of the table's slices and part of the healthy slices; which ones is drawn from their
        names and the seed, so that no order of reading changes it.
    """
    data, least = recipe.data, recipe.synthetic_lesions.minimum_brain_area
    labels = {label for label, part in zip((UNHEALTHY, HEALTHY), used, strict=True) if part > 0}
    stream = slice_dataset(patients, data.modality, skip=data.skip_slices, labels=labels)

    def wanted(example: dict[str, Any]) -> bool:
        key = (example["patient_id"], example["slice_index"])
        draw = random.Random(f"{recipe.loop.seed} {key}").random()
        if example["label"] == HEALTHY:
            _, row_mm, column_mm = example["spacing"]
            area = np.count_nonzero(example["image"]) * row_mm * column_mm
            return bool(draw < used[1] and area >= least)
        return draw < used[0] and key in table.rows

    return stream.filter(wanted).map(lambda example: prepare(example, table))


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
