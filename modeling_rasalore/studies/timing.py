"""Say how long the trainings of a study will take, by a few measured steps of each stage."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from torch import nn

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.patient import LabelledSlice, Patient
from ..data.slices import read_slices
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_rasalore import RasaloreModel
from ..recipes import model_folder
from ..training import stage1, stage2
from ..training.examples import (
    collate_labelled,
    collate_masked,
    prepare_labelled,
    prepare_masked,
)
from ..training.loop import Losses
from ..training.optimizers import build_optimizer
from ..training.slice_loader import Batch
from ..training.stage1 import Stage1Recipe, train_stage1
from ..training.stage2 import Stage2Recipe, train_stage2
from .steps import Plan

MEASURED_STEPS = 3  # after one that warms up
VALIDATION_COST = 0.4  # of a slice without its gradient, in what a slice costs with it
TrainingRecipe = Stage1Recipe | Stage2Recipe


@dataclass(frozen=True)
class SliceCost:
    """Seconds that one slice of a step takes: to read, and to learn from."""

    read: float
    learn: float


def time_plan(plan: Plan, patient: Patient, validation_slices: int) -> float:
    """Return about how many seconds the trainings of a plan take that are not finished yet.

    Args:
        patient: whose slices are measured; some of them are healthy.
        validation_slices: how many slices choose the weights of a run.
    """
    recipes = unfinished_trainings(plan)
    costs: dict[type, SliceCost] = {}
    for recipe in recipes:
        if type(recipe) not in costs:
            costs[type(recipe)] = measure(recipe, patient)
    return sum(seconds_of(recipe, costs[type(recipe)], validation_slices) for recipe in recipes)


def unfinished_trainings(plan: Plan) -> list[TrainingRecipe]:
    """Return the recipes of the trainings that have not ended."""
    works = [step.work for steps in plan.rounds for step in steps]
    recipes = [
        work.args[0]
        for work in works
        if isinstance(work, partial) and work.func in (train_stage1, train_stage2)
    ]
    return [recipe for recipe in recipes if not (Path(recipe.out) / "run.json").is_file()]


def seconds_of(recipe: TrainingRecipe, cost: SliceCost, validation_slices: int) -> float:
    """Return about how long one training takes; 0 for one whose length its slices decide."""
    loop = recipe.loop
    steps = loop.max_steps * loop.batch_size * (cost.read + cost.learn)
    validated = loop.max_steps / loop.evaluate_every * validation_slices
    return steps + validated * (cost.read + VALIDATION_COST * cost.learn)


def measure(recipe: TrainingRecipe, patient: Patient) -> SliceCost:
    """Return what a slice costs in a training, by one patient's slices and a few steps."""
    processor = RasaloreImageProcessor.from_pretrained(model_folder(recipe.model))
    data = recipe.data
    started = time.perf_counter()
    examples = read_slices(patient, data.modality, skip=data.skip_slices, see=processor.see)
    slices = [example for example in examples if example.label in (HEALTHY, UNHEALTHY)]
    read = (time.perf_counter() - started) / len(slices)
    learn = training_step(recipe, processor, slices)
    learn()
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        learn()
    seconds = (time.perf_counter() - started) / MEASURED_STEPS
    return SliceCost(read, seconds / recipe.loop.batch_size)


def training_step(
    recipe: TrainingRecipe, processor: Any, slices: Sequence[LabelledSlice]
) -> Callable[[], None]:
    """Return what takes one step of a training from random weights, on slices that are repeated."""
    chosen = list(islice(cycle(slices), recipe.loop.batch_size))
    model: nn.Module
    losses: Losses
    if isinstance(recipe, Stage1Recipe):
        model = network = stage1.build_model(replace(recipe, initial_weights=""))
        groups = stage1.parameter_groups(network, recipe)
        losses = stage1.build_objective(recipe, processor).losses
        make_batch = partial(labelled_batch, processor, chosen)
    else:
        _, config = stage2.open_configurations(model_folder(recipe.model), recipe.data.modality)
        model = RasaloreModel(config)
        groups = [{"params": list(model.parameters())}]
        losses = stage2.build_objective(recipe, processor).losses
        make_batch = partial(masked_batch, processor, config.output_size, chosen)
    optimizer = build_optimizer(recipe.optimizer, groups)

    def learn() -> None:
        losses(model, make_batch(), 0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return learn


def labelled_batch(processor: Any, chosen: Sequence[LabelledSlice]) -> Batch:
    """Return a batch of stage 1."""
    return collate_labelled([prepare_labelled(processor, example) for example in chosen])


def masked_batch(processor: Any, size: int, chosen: Sequence[LabelledSlice]) -> Batch:
    """Return a batch of stage 2 whose pseudo-masks, (size, size) each, are empty."""
    return collate_masked([prepare_masked(processor, None, size, example) for example in chosen])


def in_words(seconds: float) -> str:
    """Return a length of time for people: "about 40 s", "about 25 min", "about 3.5 h"."""
    if seconds < 90:
        return f"about {max(round(seconds, -1), 10):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
