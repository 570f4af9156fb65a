"""Stage 1, DDPT: tune prompts (and a small backbone) on slice labels alone.

Two cores, minutes:
    accelerate launch --cpu train/stage1.py hub_configs/ddpt-tiny/training.yaml \
        data.root=phantoms out=runs/stage1
The poster's setting, on a GPU:
    accelerate launch train/stage1.py hub_configs/ddpt/training.yaml data.root=scans out=runs/stage1

Only slice labels are read from here on: training patients' masks, where there are any, are reduced
to one label per slice when the slices are listed.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from modeling_rasalore import DdptConfig, DdptModel, RasaloreImageProcessor
from modeling_rasalore.augmentation import augment_batch
from modeling_rasalore.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.layouts import find_patients
from modeling_rasalore.optimizers import build_optimizer
from modeling_rasalore.pseudo_masks import choose_heatmap, deletion_scores
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SplitRecipe,
    load_recipe,
)
from modeling_rasalore.slices import (
    HEALTHY,
    UNHEALTHY,
    split_patients,
)
from modeling_rasalore.training import TrainingRun, loss_parts


@dataclass
class Stage1Recipe(BaseRecipe):
    """Stage 1's recipe; see training.yaml in hub_configs/ddpt*."""

    split: SplitRecipe = field(default_factory=SplitRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    # The text context learns at its own rate and warms up for its own number of epochs.
    context_learning_rate: float = 2e-3
    context_warmup_epochs: float = 1.0
    guidance_epochs: int = 0  # released recipe: 30 of 60; see DdptModel.forward
    heatmap: str = "auto"  # or a kind; "auto" takes the highest deletion score
    heatmap_slices: int = 128  # unhealthy training slices that "auto" looks at


def main(words: list[str]) -> None:
    recipe = load_recipe(Stage1Recipe, words)

    # --- Data: patients, split, labels ------------------------------------------------------
    patients = find_patients(recipe.data.root)
    split = split_patients(patients, recipe.split.seed, **recipe.split.amounts())
    processor = RasaloreImageProcessor.from_pretrained(recipe.model)

    run = TrainingRun(recipe)
    training, held_out = run.list_slices(split)
    counts = training.check_labels().count_labels()
    run.accelerator.print(f"training slices by label: {counts}")
    loader = run.load(
        training.keep_labels({HEALTHY, UNHEALTHY}),
        held_out.keep_labels({HEALTHY, UNHEALTHY}),
        partial(prepare, processor),
        collate,
    )

    # --- Model and optimizer ----------------------------------------------------------------
    model = DdptModel.from_backbone(DdptConfig.from_pretrained(recipe.model))
    optimizer = build_optimizer(recipe.optimizer, parameter_groups(model, recipe))

    def losses(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], epoch: int
    ) -> dict[str, torch.Tensor]:
        pixel_values, _ = augment_batch(
            batch["pixel_values"], {}, recipe.augmentation, processor.value_range
        )
        guidance = epoch < recipe.guidance_epochs
        return loss_parts(model(pixel_values, labels=batch["labels"], guidance=guidance))

    run.train(
        model,
        optimizer,
        loader,
        recipe.optimizer,
        losses,
        log_likelihood,
        "validation_log_likelihood",
    )

    # --- Choose the heatmap, save -----------------------------------------------------------
    model.eval()
    unhealthy = replace(loader, training=training.keep_labels({UNHEALTHY}), ranks=1, rank=0)
    scores = score_heatmaps(model, unhealthy.first_batches(recipe.heatmap_slices))
    model.config.heatmap = choose_heatmap(scores) if recipe.heatmap == "auto" else recipe.heatmap
    if run.accelerator.is_main_process:
        model.save_pretrained(run.folder)
        processor.save_pretrained(run.folder)
    run.write_summary(
        stage="ddpt",
        criterion="mean log likelihood of the slice labels of validation patients",
        label_counts={str(label): count for label, count in sorted(counts.items())},
        deletion_scores=scores,
        heatmap=model.config.heatmap,
    )


def prepare(processor: RasaloreImageProcessor, example: dict[str, Any]) -> dict[str, Any]:
    """Slice -> {"pixel_values", "labels"}."""
    pixel_values = processor([example["image"]])["pixel_values"][0]
    return {"pixel_values": pixel_values, "labels": example["label"]}


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch."""
    return {
        "pixel_values": torch.stack([torch.as_tensor(e["pixel_values"]) for e in examples]),
        "labels": torch.tensor([e["labels"] for e in examples]),
    }


def parameter_groups(model: DdptModel, recipe: Stage1Recipe) -> list[dict[str, Any]]:
    """Trainable parameters: the text context at its own rate, everything else at the main one."""
    context = model.text_prompts.context
    others = [p for p in model.parameters() if p.requires_grad and p is not context]
    return [
        {"params": others},
        {
            "params": [context],
            "lr": recipe.context_learning_rate,
            "warmup_epochs": recipe.context_warmup_epochs,
        },
    ]


@torch.inference_mode()
def log_likelihood(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log probability of each slice's label, (B,)."""
    logits = model(batch["pixel_values"]).logits
    return -F.cross_entropy(logits, batch["labels"], reduction="none")


def score_heatmaps(model: DdptModel, loader: Iterable[Any]) -> dict[str, float]:
    """Mean deletion score of each kind of heatmap over unhealthy training slices."""
    totals: dict[str, list[float]] = {kind: [] for kind in HEATMAPS}

    @torch.no_grad()
    def unhealthy_probability(pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).logits.softmax(1)[:, 1]

    for batch in loader:
        pixel_values = batch["pixel_values"].to(model.device)
        for kind, values in totals.items():
            heatmaps = model.heatmaps(pixel_values, kind)
            values += deletion_scores(heatmaps, pixel_values, unhealthy_probability).tolist()
    return {kind: sum(values) / max(len(values), 1) for kind, values in totals.items()}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
