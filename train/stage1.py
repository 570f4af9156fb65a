"""Stage 1, DDPT: tune prompts (and a small backbone) on slice labels alone.

Two cores, minutes:
    accelerate launch --cpu train/stage1.py hub_configs/ddpt-tiny/training.yaml \
        data.root=phantoms out=runs/stage1
The poster's setting, on a GPU:
    accelerate launch train/stage1.py hub_configs/ddpt/training.yaml data.root=scans out=runs/stage1

Only slice labels are read from here on: training patients' masks, where there are any, are reduced
to one label per slice when the labels are scanned.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from modeling_rasalore import DdptConfig, DdptModel, RasaloreImageProcessor
from modeling_rasalore.augmentation import augment_batch
from modeling_rasalore.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.layouts import Patient, find_patients
from modeling_rasalore.pseudo_masks import choose_heatmap, deletion_scores
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SplitRecipe,
    load_recipe,
)
from modeling_rasalore.slices import check_labels, slice_dataset, split_patients, write_split
from modeling_rasalore.training import (
    TrainingRun,
    build_optimizer,
    count_steps,
    loss_parts,
    make_loader,
)


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
    counts = sum(check_labels(split["train"], recipe.data.skip_slices).values(), Counter())
    processor = RasaloreImageProcessor.from_pretrained(recipe.model)
    steps_per_epoch = count_steps(counts[0] + counts[1], recipe.loop)

    run = TrainingRun(recipe, steps_per_epoch)
    if run.accelerator.is_main_process:
        write_split(split, run.folder / "split.json")
    run.accelerator.print(f"training slices by label: {dict(counts)}")
    stream = labelled_stream(split["train"], recipe, processor)
    stream = stream.shuffle(seed=recipe.loop.seed, buffer_size=recipe.data.shuffle_buffer)
    held_out = labelled_stream(split["validation"], recipe, processor)
    loaders = make_loader(stream, collate, recipe.loop), make_loader(held_out, collate, recipe.loop)

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
        loaders,
        recipe.optimizer,
        losses,
        log_likelihood,
        "validation_log_likelihood",
    )

    # --- Choose the heatmap, save -----------------------------------------------------------
    model.eval()
    unhealthy = labelled_stream(split["train"], recipe, processor, labels={1})
    unhealthy = unhealthy.shuffle(seed=recipe.loop.seed, buffer_size=recipe.data.shuffle_buffer)
    loader = make_loader(unhealthy.take(recipe.heatmap_slices), collate, recipe.loop)
    scores = score_heatmaps(model, loader)
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


def labelled_stream(
    patients: list[Patient],
    recipe: Stage1Recipe,
    processor: RasaloreImageProcessor,
    labels: frozenset[int] | set[int] = frozenset({0, 1}),
) -> Any:
    """Stream of {"pixel_values", "labels"} of the slices with these labels."""
    stream = slice_dataset(
        patients, recipe.data.modality, skip=recipe.data.skip_slices, labels=labels
    )

    def prepare(example: dict[str, Any]) -> dict[str, Any]:
        pixel_values = processor([example["image"]])["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": example["label"]}

    return stream.map(prepare)


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
