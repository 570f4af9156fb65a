"""Stage 1, DDPT: tune prompts (and a small backbone) on slice labels alone.

Two cores, minutes:
    accelerate launch --cpu train/stage1.py hub_configs/ddpt-tiny/training.yaml \
        data.root=phantoms out=runs/stage1
The poster's setting, on a GPU:
    accelerate launch train/stage1.py hub_configs/ddpt/training.yaml data.root=scans out=runs/stage1

Only slice labels are read from here on: training patients' masks, where there are any, are reduced
to one label per slice when the slices are listed.

A backbone that is trained from scratch may start on healthy slices alone, some of them with a
painted lesion, which count as unhealthy; then on the real ones:
    ... out=runs/stage1_start synthetic_lesions.share=1
    ... out=runs/stage1 initial_weights=runs/stage1_start
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F

from modeling_rasalore import DdptConfig, DdptModel, RasaloreImageProcessor
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice
from modeling_rasalore.data.splits import refuse_other_split, split_patients
from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS
from modeling_rasalore.pseudo_masks.deletion import choose_heatmap, deletion_scores
from modeling_rasalore.recipes import (
    AugmentationRecipe,
    BaseRecipe,
    OptimizerRecipe,
    SplitRecipe,
    SyntheticLesionRecipe,
    load_recipe,
)
from modeling_rasalore.training.augmentation import augment_batch
from modeling_rasalore.training.optimizers import build_optimizer
from modeling_rasalore.training.painted_lesions import paint_chosen
from modeling_rasalore.training.run import TrainingRun, loss_parts
from modeling_rasalore.training.slice_loader import SliceLoader
from modeling_rasalore.training.work_list import WorkList


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
    # share=1: healthy slices only, all but a share of blank ones with a painted lesion. 0: none.
    synthetic_lesions: SyntheticLesionRecipe = field(
        default_factory=lambda: SyntheticLesionRecipe(blank_share=0.5)
    )
    initial_weights: str = ""  # folder of an earlier run of this script to start from


def main(words: list[str]) -> None:
    recipe = load_recipe(Stage1Recipe, words)
    lesions = recipe.synthetic_lesions
    check_lesions(lesions)

    # --- Data: patients, split, labels ------------------------------------------------------
    patients = find_patients(recipe.data.root)
    split = split_patients(patients, recipe.split.seed, **recipe.split.amounts())
    if recipe.initial_weights:
        refuse_other_split(recipe.initial_weights, split)
    processor = RasaloreImageProcessor.from_pretrained(recipe.model)

    run = TrainingRun(recipe)
    training, held_out = run.list_slices(split, recipe.initial_weights)
    if run.ended_before():
        return
    counts = training.check_labels().count_labels()
    run.accelerator.print(f"training slices by label: {counts}")
    used, judged = (choose_slices(lesions, work) for work in (training, held_out))
    loader = run.load(used, judged, partial(prepare, processor), collate)

    # --- Model and optimizer ----------------------------------------------------------------
    config = DdptConfig.from_pretrained(recipe.model)
    start = recipe.initial_weights
    model = open_start(start, config) if start else DdptModel.from_backbone(config)
    optimizer = build_optimizer(recipe.optimizer, parameter_groups(model, recipe))

    def losses(
        model: torch.nn.Module, batch: dict[str, torch.Tensor], epoch: int
    ) -> dict[str, torch.Tensor]:
        paint_some(batch, processor, lesions)
        pixel_values, _ = augment_batch(
            batch["pixel_values"], {}, recipe.augmentation, processor.value_range
        )
        guidance = epoch < recipe.guidance_epochs
        return loss_parts(model(pixel_values, labels=batch["labels"], guidance=guidance))

    def score(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        paint_some(batch, processor, lesions)
        return log_likelihood(model, batch)

    run.train(
        model, optimizer, loader, recipe.optimizer, losses, score, "validation_log_likelihood"
    )

    # --- Choose the heatmap, save -----------------------------------------------------------
    model.eval()
    shown = used if lesions.share else training.keep_labels({UNHEALTHY})
    every = replace(loader, training=shown, ranks=1, rank=0)
    scores = score_heatmaps(model, every, processor, recipe)
    model.config.heatmap = choose_heatmap(scores) if recipe.heatmap == "auto" else recipe.heatmap
    if run.accelerator.is_main_process:
        model.save_pretrained(run.folder)
        processor.save_pretrained(run.folder)
    run.write_summary(
        stage="ddpt",
        criterion="mean log likelihood of the slice labels of validation patients"
        + (", with painted lesions on healthy slices" if lesions.share else ""),
        label_counts={str(label): count for label, count in sorted(counts.items())},
        deletion_scores=scores,
        heatmap=model.config.heatmap,
    )


def check_lesions(lesions: SyntheticLesionRecipe) -> None:
    """Raise ValueError for shares that teach no difference."""
    if lesions.share not in (0, 1):
        raise ValueError(
            "stage 1 learns from real labels or from painted lesions, so synthetic_lesions.share "
            f"must be 0 or 1, got {lesions.share:g}; start the one from the other with "
            "initial_weights."
        )
    if not (0 < lesions.blank_share < 1 and 0 <= lesions.darker_share <= 1):
        raise ValueError(
            "synthetic_lesions.blank_share must lie between 0 and 1, so that there are healthy "
            f"slices, and darker_share in [0, 1], got {lesions.blank_share:g} and "
            f"{lesions.darker_share:g}."
        )


def choose_slices(lesions: SyntheticLesionRecipe, work: WorkList) -> WorkList:
    """Slices with a label; for painted lesions the healthy ones with enough brain."""
    if lesions.share:
        return work.keep_rows(work.rows_to_paint(lesions.minimum_brain_area))
    return work.keep_labels({HEALTHY, UNHEALTHY})


def paint_some(
    batch: dict[str, torch.Tensor],
    processor: RasaloreImageProcessor,
    lesions: SyntheticLesionRecipe,
) -> dict[str, torch.Tensor]:
    """The batch with lesions painted into all but a share of its slices, where that is asked for.

    A slice whose lesion came out empty, under fluid or too small, stays healthy.
    """
    if lesions.share:
        labels = batch["labels"]
        chosen = torch.rand(labels.shape, device=labels.device) >= lesions.blank_share
        if chosen.any():
            masks = paint_chosen(
                batch["pixel_values"], chosen, processor, lesions.darker_share, grey=True
            )
            labels[chosen] = torch.where(masks.flatten(1).amax(1) > 0, UNHEALTHY, HEALTHY)
    return batch


def open_start(folder: str, config: DdptConfig) -> DdptModel:
    """The model of an earlier run; ValueError where the folder holds another kind of model."""
    loaded: Any = DdptModel.from_pretrained(folder, config=config, output_loading_info=True)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"initial_weights must be a run of train/stage1.py, but {folder} lacks {missing[0]}."
        )
    return cast(DdptModel, model)


def prepare(processor: RasaloreImageProcessor, example: LabelledSlice) -> dict[str, Any]:
    """Slice -> {"pixel_values", "labels"}."""
    pixel_values = processor([example.image])["pixel_values"][0]
    return {"pixel_values": pixel_values, "labels": example.label}


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


def score_heatmaps(
    model: DdptModel, loader: SliceLoader, processor: RasaloreImageProcessor, recipe: Stage1Recipe
) -> dict[str, float]:
    """Mean deletion score of each kind of heatmap over the loader's first slices.

    They are unhealthy, or healthy with a lesion painted into each where that is asked for.
    """
    torch.manual_seed(recipe.loop.seed)
    lesions = replace(recipe.synthetic_lesions, blank_share=0.0)
    totals: dict[str, list[float]] = {kind: [] for kind in HEATMAPS}
    for batch in loader.first_batches(recipe.heatmap_slices):
        pixel_values = paint_some(batch, processor, lesions)["pixel_values"].to(model.device)
        for kind, values in totals.items():
            heatmaps = model.heatmaps(pixel_values, kind)
            values += deletion_scores(heatmaps, pixel_values, model.unhealthy_probability).tolist()
    return {kind: sum(values) / max(len(values), 1) for kind, values in totals.items()}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
