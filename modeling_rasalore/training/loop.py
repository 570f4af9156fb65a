"""Train a network to the end of a run: steps, validations, averages, best weights, checkpoints."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers.utils import ModelOutput

from ..recipes import LoopRecipe
from .optimizers import OptimizerRecipe, set_learning_rates
from .run import RunFolder
from .slice_loader import Batch, SliceLoader, Step

Losses = Callable[[nn.Module, Batch, int], dict[str, Tensor]]
Score = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Objective:
    """What a stage teaches, and what its weights are chosen by.

    Attributes:
        losses: model, batch and epoch -> "loss" and its parts, means over the batch.
        score: model and validation batch -> score of each sample, (B,); no pixel label.
        criterion: name of that score in the log.
    """

    losses: Losses
    score: Score
    criterion: str


def train(
    run: RunFolder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: OptimizerRecipe,
    loader: SliceLoader,
    objective: Objective,
) -> None:
    """Train `model` to the end of the run and leave it with its best weights."""
    loop, per_epoch = run.recipe.loop, loader.steps_per_epoch
    last_step = run.last_step = count_steps(loop, per_epoch)
    plain, average = model, average_of(run, model)
    model, optimizer = prepare(run, model, optimizer)
    run.accelerator.print(
        "computing on {} in {}: {}".format(run.accelerator.device, *run.precision)
    )
    if run.resume():
        run.accelerator.print(f"going on from step {run.progress.step} of {last_step}")
    progress, scored = run.progress, average.module if average else plain
    with step_bar(run, last_step) as bar:
        while progress.step < last_step:
            model.train()
            for step in loader.steps(progress.epoch, progress.batch):
                set_learning_rates(optimizer, schedule, progress.step, last_step, per_epoch)
                parts = learn(run, model, optimizer, step, loader.pieces, objective.losses)
                progress.step, progress.batch = progress.step + 1, progress.batch + 1
                if average:
                    average.update_parameters(plain)
                log_losses(run, parts, bar)
                finished = progress.step == last_step
                if finished or progress.step % loop.evaluate_every == 0:
                    score = validate(run, scored, loader, objective.score)
                    run.accelerator.log({objective.criterion: score}, step=progress.step)
                    run.save_if_best(score, scored)
                    model.train()
                if finished:
                    break
                if progress.step % loop.checkpoint_every == 0:
                    run.save_checkpoint()
            progress.epoch, progress.batch = progress.epoch + 1, 0
    run.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # from here on in float32
    run.load_best(plain)


def count_steps(loop: LoopRecipe, steps_per_epoch: int) -> int:
    """Return the steps of the whole run."""
    return min(steps for steps in (loop.epochs * steps_per_epoch, loop.max_steps) if steps)


def average_of(run: RunFolder, model: nn.Module) -> AveragedModel | None:
    """Return the running mean of the weights, a part of every checkpoint; None without `ema`."""
    if not run.recipe.loop.ema:
        return None
    average = average_weights(model.to(run.accelerator.device), run.recipe.loop.ema)
    run.accelerator.register_for_checkpointing(average)
    return average


def prepare(
    run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return model and optimizer on the devices of the run, computed as its recipe says."""
    if run.recipe.loop.gradient_checkpointing:
        # Not reentrant: slices need no gradient, and reentrant checkpoints would stop there.
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model, optimizer = run.accelerator.prepare(model, optimizer)
    if run.recipe.loop.compile:
        model.compile()  # in place, so that the names of saved weights stay as they are
    return model, optimizer


def step_bar(run: RunFolder, last_step: int) -> tqdm:
    """Return a bar over the steps of the run, shown by its first process."""
    return tqdm(
        total=last_step,
        initial=run.progress.step,
        disable=not run.accelerator.is_main_process,
        desc=run.path.name,
        unit="step",
    )


def learn(
    run: RunFolder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Step,
    pieces: int,
    losses: Losses,
) -> dict[str, Tensor]:
    """Take one optimizer step; return the loss and its parts as far as this process saw them.

    Every piece starts from a random state of its own, so what it draws depends neither on when the
    run was started, interrupted or validated nor on which process computes it.

    Raises:
        ValueError: the loss is not finite.
    """
    accelerator, seed = run.accelerator, run.recipe.loop.seed * 1_000_003 + run.progress.step
    statistics = RunningStatistics(model) if pieces > 1 else None
    totals: dict[str, Tensor] = {}
    for index, (number, samples, batch) in enumerate(step.pieces):
        share, last = samples / step.samples, index == len(step.pieces) - 1
        torch.manual_seed(seed * pieces + number)
        with nullcontext() if last else accelerator.no_sync(model):
            parts = losses(model, to_device(run, batch), run.progress.epoch)
            refuse_nan(run, parts["loss"])
            # Processes add up to a mean over the step, of which each has its own share.
            accelerator.backward(parts["loss"] * (share * accelerator.num_processes))
        for name, part in parts.items():
            totals[name] = totals.get(name, 0) + share * part.detach()
        if statistics:
            statistics.add(share)
    if statistics:
        statistics.finish(accelerator)
    if run.recipe.loop.gradient_clip:
        accelerator.clip_grad_norm_(model.parameters(), run.recipe.loop.gradient_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return totals


def to_device(run: RunFolder, batch: Batch) -> Batch:
    """Return a batch on this process's device."""
    return {name: value.to(run.accelerator.device) for name, value in batch.items()}


def refuse_nan(run: RunFolder, loss: Tensor) -> None:
    """Raise ValueError when the loss is not finite."""
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss became {loss.item()} at step {run.progress.step}; lower the learning rate. "
            f"The last checkpoint is kept in {run.path / 'checkpoints'}."
        )


def log_losses(run: RunFolder, parts: dict[str, Tensor], bar: tqdm) -> None:
    """Move the bar, and log the loss and its parts every `log_every` steps."""
    bar.update()
    step = run.progress.step
    if step % run.recipe.loop.log_every == 0 or step == 1:
        summed = run.accelerator.reduce(torch.stack(list(parts.values())), "sum").tolist()
        means = dict(zip(parts, summed, strict=True))
        run.accelerator.log(means, step=step)
        bar.set_postfix_str(f"loss {means['loss']:.3f}")


def validate(run: RunFolder, model: nn.Module, loader: SliceLoader, score: Score) -> float:
    """Return the mean score of all validation slices, the same for any number of processes.

    Raises:
        ValueError: there are none.
    """
    model.eval()
    scores = [
        (key, score(model, batch).float().tolist()) for key, batch in held_out_batches(run, loader)
    ]
    values = [value for _, batch in sorted(gather_object(scores)) for value in batch]
    if not values:
        raise ValueError(
            "the validation patients have no slice to score; ask for more of them with "
            "split.validation, or lower minimum_area."
        )
    return sum(values) / len(values)


def held_out_batches(
    run: RunFolder, loader: SliceLoader
) -> Iterator[tuple[tuple[int, int], Batch]]:
    """Yield validation batches with their keys, on this process's device.

    What is drawn for a batch depends on its key alone, so every pass draws the same.
    """
    for key, batch in loader.held_out_batches():
        torch.manual_seed(key[0] * 1_000_003 + key[1])  # steps seed themselves, see `learn`
        yield key, to_device(run, batch)


def loss_parts(output: ModelOutput) -> dict[str, Tensor]:
    """Return the loss of a model's output and its named parts."""
    return {name: value for name, value in output.items() if name.endswith("loss")}


class RunningStatistics:
    """Buffers that a forward pass changes, such as a BatchNorm's, over the pieces of one step.

    Every piece starts from the same buffers, and what the pieces change is averaged: the step then
    leaves the same buffers behind whichever process computed which piece. SyncBatchNorm would make
    processes agree, but not with the same pieces one after the other, and on GPUs alone.
    """

    def __init__(self, model: nn.Module):
        buffers = list(model.buffers())
        self.means = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self.before = [buffer.clone() for buffer in self.means]
        self.change = [torch.zeros_like(buffer) for buffer in self.means]
        self.after_first: list[Tensor] = []

    def add(self, share: float) -> None:
        """Note what a piece changed, of which `share` of the step's samples were."""
        for buffer, before, change in zip(self.means, self.before, self.change, strict=True):
            change += share * (buffer - before)
            buffer.copy_(before)
        self.after_first = self.after_first or [count.clone() for count in self.counts]

    def finish(self, accelerator: Accelerator) -> None:
        """Put the mean change of all processes into the buffers; a step counts once."""
        for buffer, change in zip(self.means, self.change, strict=True):
            buffer += accelerator.reduce(change, "sum")
        for count, value in zip(self.counts, self.after_first, strict=True):
            count.copy_(value)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential running mean of a network's weights, with its newest buffers.

    The mean follows faster at the start of a run: its decay is (1 + step) / (10 + step) until that
    exceeds `decay`.

    Raises:
        ValueError: `decay` does not lie between 0 and 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"loop.ema must lie between 0 and 1, got {decay}; 0.999 is usual.")

    def mix(means: Sequence[Tensor], values: Sequence[Tensor], step: Tensor | int) -> None:
        now = min(decay, (1 + int(step)) / (10 + int(step)))
        get_ema_multi_avg_fn(now)(list(means), list(values), step)

    average = AveragedModel(model, multi_avg_fn=mix).requires_grad_(False)
    average.n_averaged.fill_(
        1
    )  # the start is the first of the mean, not replaced by the first step
    return average
