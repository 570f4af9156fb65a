"""Train stage 1, DDPT: prompts (and a small backbone) tuned on slice labels alone."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import cached_file

from ..data.labels import UNHEALTHY
from ..data.layouts import find_patients
from ..data.splits import refuse_other_split, split_patients
from ..models.configuration_ddpt import DdptConfig
from ..models.heatmaps_ddpt import HEATMAPS
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..pseudo_masks.criteria import choose_heatmap, deletion_scores
from ..recipes import BaseRecipe, SplitRecipe, model_folder
from ..remote_files import without_waiting_for_hub
from .augmentation import AugmentationRecipe, augment_batch
from .examples import choose_labelled, collate_labelled, paint_labelled, prepare_labelled
from .loop import Objective, loss_parts, train
from .optimizers import OptimizerRecipe, build_optimizer
from .painted_lesions import SyntheticLesionRecipe
from .run import RunFolder
from .slice_loader import Batch, SliceLoader


@dataclass
class Stage1Recipe(BaseRecipe):
    """Stage 1's recipe; see training.yaml in hub_configs/ddpt*.

    Attributes:
        context_learning_rate: of the text context, which learns at its own rate.
        context_warmup_epochs: and warms up for its own number of epochs.
        guidance_epochs: epochs with the released recipe's guided loss, 30 of 60 there; see
            DdptModel.forward.
        heatmap: cls_attention, attention_rollout or relevance; "auto" takes the one with the
            highest deletion score.
        heatmap_slices: unhealthy training slices that "auto" scores.
        synthetic_lesions: share=1: healthy slices only, all but a share of blank ones with a
            painted lesion; share=0: none.
        initial_weights: folder of an earlier run of this script to start from.
    """

    split: SplitRecipe = field(default_factory=SplitRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    context_learning_rate: float = 2e-3
    context_warmup_epochs: float = 1.0
    guidance_epochs: int = 0
    heatmap: str = "auto"
    heatmap_slices: int = 128
    synthetic_lesions: SyntheticLesionRecipe = field(
        default_factory=lambda: SyntheticLesionRecipe(blank_share=0.5)
    )
    initial_weights: str = ""


def train_stage1(recipe: Stage1Recipe) -> Path:
    """Train stage 1 and return its folder; a run that ended there before is left as it is.

    Raises:
        ValueError: the recipe contradicts itself, its data or what the folder holds.
    """
    # --- Data: patients, split, labels ----------------------------------------------------------
    lesions = recipe.synthetic_lesions
    check_lesions(lesions)
    require_backbone(recipe)
    patients = find_patients(recipe.data.root, recipe.data.same_person)
    split = split_patients(patients, recipe.split.seed, **recipe.split.amounts())
    if recipe.initial_weights:
        refuse_other_split(recipe.initial_weights, split)
    processor = RasaloreImageProcessor.from_pretrained(model_folder(recipe.model))
    config = DdptConfig.from_pretrained(model_folder(recipe.model))
    with closing(RunFolder(recipe, config)) as run:
        training, held_out = run.list_slices(split, recipe.initial_weights)
        if run.ended_before():
            return run.path
        counts = training.check_labels().count_labels()
        run.accelerator.print(f"training slices by label: {counts}")
        used, validation = (choose_labelled(lesions, work) for work in (training, held_out))
        prepare = partial(prepare_labelled, processor)
        loader = run.load(used, validation, prepare, collate_labelled, processor.see)

        # --- Model and optimizer ----------------------------------------------------------------
        model = build_model(recipe)
        optimizer = build_optimizer(recipe.optimizer, parameter_groups(model, recipe))
        train(run, model, optimizer, recipe.optimizer, loader, build_objective(recipe, processor))

        # --- Choose the heatmap, save -----------------------------------------------------------
        model.eval()
        scored = used if lesions.share else training.select_labels({UNHEALTHY})
        whole = replace(loader.loop, accumulation=1)
        all_slices = replace(loader, training=scored, loop=whole, ranks=1, rank=0)
        scores = score_heatmaps(model, all_slices, processor, recipe)
        chosen = choose_heatmap(scores) if recipe.heatmap == "auto" else recipe.heatmap
        model.config.heatmap = chosen
        run.save_model(model, processor)
        run.write_summary(
            stage="ddpt",
            criterion="mean log likelihood of the slice labels of validation patients"
            + (", with painted lesions on healthy slices" if lesions.share else ""),
            label_counts={str(label): count for label, count in sorted(counts.items())},
            deletion_scores=scores,
            heatmap=chosen,
        )
    return run.path


def check_lesions(lesions: SyntheticLesionRecipe) -> None:
    """Raise ValueError for shares that teach no difference."""
    if lesions.share not in (0, 1):
        raise ValueError(
            "stage 1 learns from real labels or from painted lesions, so synthetic_lesions.share "
            f"must be 0 or 1, got {lesions.share:g}; start the one from the other with "
            "initial_weights."
        )
    if not 0 < lesions.blank_share < 1:
        raise ValueError(
            "synthetic_lesions.blank_share must lie between 0 and 1, so that there are healthy "
            f"slices, got {lesions.blank_share:g}."
        )


def require_backbone(recipe: Stage1Recipe) -> None:
    """Refuse a backbone that is nowhere, before anything else is done.

    Raises:
        ValueError: a repo id that is not in the cache and cannot be downloaded.
    """
    config = DdptConfig.from_pretrained(model_folder(recipe.model))
    if not recipe.initial_weights and config.base_model_name_or_path:
        with finding_backbone(config.base_model_name_or_path):
            cached_file(
                config.base_model_name_or_path,
                "config.json",
                revision=config.base_model_revision or "main",
            )


@contextmanager
def finding_backbone(backbone: str | None) -> Iterator[None]:
    """Turn the library's words about a backbone that is nowhere into one sentence."""
    try:
        with without_waiting_for_hub(backbone):
            yield
    except OSError as error:
        raise ValueError(
            f"stage 1 starts from the backbone {backbone}, which is not in the cache and cannot be "
            "downloaded; write the path of a copy as base_model_name_or_path into the config.json "
            "of a copy of the model folder, and pass model=<that folder>."
        ) from error


def build_model(recipe: Stage1Recipe) -> DdptModel:
    """Return the model of an earlier run, or a new one around the pretrained backbone.

    Raises:
        ValueError: `initial_weights` holds another kind of model, or the backbone is nowhere.
    """
    config, folder = DdptConfig.from_pretrained(model_folder(recipe.model)), recipe.initial_weights
    if not folder:
        with finding_backbone(config.base_model_name_or_path):
            return DdptModel.from_backbone(config)
    loaded: Any = DdptModel.from_pretrained(folder, config=config, output_loading_info=True)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"initial_weights must be a run of train/stage1.py, but {folder} lacks {missing[0]}."
        )
    return cast(DdptModel, model)


def parameter_groups(model: DdptModel, recipe: Stage1Recipe) -> list[dict[str, Any]]:
    """Return what is trained: the text context at its own rate, all else at the main one."""
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


def build_objective(recipe: Stage1Recipe, processor: RasaloreImageProcessor) -> Objective:
    """Return the losses of training slices and the score of validation slices."""

    def losses(model: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        paint_labelled(batch, processor, recipe.synthetic_lesions, recipe.data.modality)
        pixel_values, _ = augment_batch(
            batch["pixel_values"], {}, recipe.augmentation, processor.value_range, processor.levels
        )
        guidance = epoch < recipe.guidance_epochs
        return loss_parts(model(pixel_values, labels=batch["labels"], guidance=guidance))

    def score(model: nn.Module, batch: Batch) -> Tensor:
        return log_likelihood(
            model, paint_labelled(batch, processor, recipe.synthetic_lesions, recipe.data.modality)
        )

    return Objective(losses, score, "validation_log_likelihood")


@torch.inference_mode()
def log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log probability of each slice's label, (B,)."""
    logits = model(batch["pixel_values"]).logits
    return -F.cross_entropy(logits, batch["labels"], reduction="none")


def score_heatmaps(
    model: DdptModel, loader: SliceLoader, processor: RasaloreImageProcessor, recipe: Stage1Recipe
) -> dict[str, float]:
    """Return the mean deletion score of each kind of heatmap over the loader's first slices.

    They are unhealthy, or healthy with a lesion painted into each where that is asked for.
    """
    torch.manual_seed(recipe.loop.seed)
    lesions = replace(recipe.synthetic_lesions, blank_share=0.0)
    totals: dict[str, list[float]] = {kind: [] for kind in HEATMAPS}
    for batch in loader.first_batches(recipe.heatmap_slices):
        pixel_values = paint_labelled(batch, processor, lesions, recipe.data.modality)[
            "pixel_values"
        ].to(model.device)
        _, heatmaps = model.score_and_locate(pixel_values, list(totals))
        for values, of_kind in zip(totals.values(), heatmaps.unbind(1), strict=True):
            values += deletion_scores(
                of_kind, pixel_values, model.unhealthy_probability, levels=processor.levels
            ).tolist()
    return {kind: sum(values) / max(len(values), 1) for kind, values in totals.items()}
