"""What both training scripts share: a run's folder, its counters, checkpoints and schedules."""

import json
import math
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import ModelOutput

from .files import replace_file, write_json
from .recipes import BaseRecipe, LoopRecipe, OptimizerRecipe, save_recipe

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "safetensors", "numpy")


class TrainingRun:
    """One training run in one folder: start it again and it goes on where it was.

    Attributes:
        accelerator: the Accelerate object that the script prepares its parts with.
        epoch, batch, step: where the run stands; `batch` counts within the epoch.
        best_score: highest validation score so far, None before the first validation.
    """

    def __init__(self, recipe: BaseRecipe, steps_per_epoch: int):
        self.recipe, self.loop = recipe, recipe.loop
        if not self.loop.epochs and not self.loop.max_steps:
            raise ValueError("a run needs loop.epochs or loop.max_steps above 0, got 0 and 0.")
        self.folder = Path(recipe.out)
        self.steps_per_epoch = steps_per_epoch
        self.epoch, self.batch, self.step = 0, 0, 0
        self.best_score: float | None = None
        self.started = time.monotonic()
        self.accelerator = Accelerator(
            mixed_precision=self.loop.mixed_precision,
            log_with="tensorboard" if self.loop.tensorboard else None,
            project_dir=str(self.folder),
            # Every process reads its own files of the stream.
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        )
        self.claim_folder()
        set_seed(self.loop.seed)
        if self.loop.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        self.bar = tqdm(
            total=self.total_steps,
            disable=not self.accelerator.is_main_process,
            desc=self.folder.name,
            unit="step",
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        lengths = [self.loop.epochs * self.steps_per_epoch, self.loop.max_steps]
        return min(length for length in lengths if length)

    @property
    def progress(self) -> tuple[float, float]:
        """Where the run stands and where it ends, in epochs."""
        return self.step / self.steps_per_epoch, self.total_steps / self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def claim_folder(self) -> None:
        """Write the recipe into the folder; ValueError where another recipe's run lives there."""
        path = self.folder / "recipe.yaml"
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / "recipe.yaml.tmp"
            save_recipe(self.recipe, draft)
            if path.exists() and path.read_text() != draft.read_text():
                draft.unlink()
                raise ValueError(
                    f"{self.folder} holds a run of another recipe; give out=<another folder> or "
                    "delete it (recipe.yaml there says what it ran)."
                )
            os.replace(draft, path)
        self.accelerator.wait_for_everyone()

    # --- The loop ---------------------------------------------------------------------------
    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loaders: tuple[Any, Any],
        schedule: OptimizerRecipe,
        losses: Callable[[nn.Module, dict[str, Tensor], int], dict[str, Tensor]],
        score: Callable[[nn.Module, dict[str, Tensor]], Tensor],
        criterion: str,
    ) -> None:
        """Train `model` to the end of the run and leave it with its best weights.

        Args:
            loaders: batches of training and of validation patients.
            losses: model, batch and epoch -> "loss" and its parts.
            score: model and validation batch -> score of each sample, (B,); no pixel label.
            criterion: name of that score in the log.
        """
        if self.loop.gradient_checkpointing:
            # Not reentrant: slices need no gradient, and reentrant checkpoints would stop there.
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        model, optimizer, loader, held_out = self.accelerator.prepare(model, optimizer, *loaders)
        if self.loop.compile:
            model.compile()  # in place, so that the names of saved weights stay as they are
        self.resume()
        for epoch in self.epochs():
            model.train()
            for batch in self.batches(loader):
                set_learning_rates(optimizer, schedule, *self.progress)
                parts = losses(model, batch, epoch)
                self.backward(parts["loss"], model, optimizer)
                self.after_step(parts)
                if self.validation_due:
                    model.eval()
                    mean = mean_over_batches(self, held_out, partial(score, model))
                    self.after_validation(mean, criterion, model)
                    model.train()
                self.checkpoint_if_due()
        self.load_best(model)

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*[0-9]"))
        if not checkpoints:
            return
        self.accelerator.load_state(str(checkpoints[-1]))
        progress = json.loads((checkpoints[-1] / "progress.json").read_text())
        self.epoch, self.batch = progress["epoch"], progress["batch"]
        self.step, self.best_score = progress["step"], progress["best_score"]
        self.bar.update(self.step)
        self.accelerator.print(f"going on from step {self.step} of {self.total_steps}")

    def epochs(self) -> Iterator[int]:
        """Epochs still to run; ValueError for one that gives no batch, which would never end."""
        while not self.finished:
            before = self.step - self.batch
            yield self.epoch
            if self.step == before:
                raise ValueError("the stream of training slices is empty; check data.root.")
            self.epoch, self.batch = self.epoch + 1, 0

    def batches(self, loader: Any) -> Iterator[dict[str, Tensor]]:
        """Batches still to run in this epoch, whatever was done before an interruption.

        Every step starts from a random state of its own, so what a step draws does not depend on
        when the run was started, interrupted or validated.
        """
        if self.batch:
            loader = self.accelerator.skip_first_batches(loader, self.batch)
        # Accelerate counts epochs from 0 in every process it is started in and tells the stream so.
        loader.set_epoch(self.epoch)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        for batch in loader:
            if self.finished:
                return
            torch.manual_seed((self.loop.seed * 1_000_003 + self.step) * processes + rank)
            yield batch

    def backward(self, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step; ValueError when the loss is not finite."""
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.step}; lower the learning rate. "
                f"The last checkpoint is kept in {self.folder / 'checkpoints'}."
            )
        self.accelerator.backward(loss)
        if self.loop.gradient_clip:
            self.accelerator.clip_grad_norm_(model.parameters(), self.loop.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def after_step(self, parts: dict[str, Tensor]) -> None:
        """Count the step and log the loss and its parts."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self.bar.update()
        if self.step % 10 == 0 or self.step == 1:
            values = {name: part.item() for name, part in parts.items()}
            self.accelerator.log(values, step=self.step)
            self.bar.set_postfix_str(f"loss {values['loss']:.3f}")

    @property
    def validation_due(self) -> bool:
        """True every `evaluate_every` steps and at the end of the run."""
        return self.finished or self.step % self.loop.evaluate_every == 0

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint every `checkpoint_every` steps."""
        if self.step % self.loop.checkpoint_every == 0 and not self.finished:
            self.save_checkpoint()

    def after_validation(self, score: float, criterion: str, model: nn.Module) -> None:
        """Keep the weights if the score is the highest so far; the score saw no pixel label."""
        self.accelerator.log({criterion: score}, step=self.step)
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            if self.accelerator.is_main_process:
                state = self.accelerator.unwrap_model(model).state_dict()
                state = {name: value.contiguous().cpu() for name, value in state.items()}
                replace_file(self.folder / "best.safetensors", partial(save_file, state))
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Put the weights of the best validation back into the model."""
        state = load_file(self.folder / "best.safetensors")
        self.accelerator.unwrap_model(model).load_state_dict(state)

    # --- Files ------------------------------------------------------------------------------
    def save_checkpoint(self) -> None:
        """Write model, optimizer, random states and counters; the folder appears when complete."""
        final = self.folder / "checkpoints" / f"step-{self.step:07d}"
        draft = final.with_suffix(".tmp")
        self.accelerator.save_state(str(draft))
        if self.accelerator.is_main_process:
            progress = {
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "best_score": self.best_score,
            }
            (draft / "progress.json").write_text(json.dumps(progress))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
            for old in sorted(final.parent.glob("step-*[0-9]"))[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def write_summary(self, **facts: Any) -> None:
        """Write run.json: versions, commit, seed, scores, and the facts of this stage."""
        if self.accelerator.is_main_process:
            summary = {
                **provenance(),
                "seed": self.loop.seed,
                "steps": self.step,
                "processes": self.accelerator.num_processes,
                "seconds": round(time.monotonic() - self.started, 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "best_score": self.best_score,
                **facts,
            }
            write_json(self.folder / "run.json", summary)
        self.bar.close()
        self.accelerator.end_training()
        self.accelerator.print(f"done: {self.folder}")


def provenance() -> dict[str, Any]:
    """Versions of what computed a result, the machine and the commit of the checkout."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": {name: version(name) for name in (*PACKAGES, "rasalore")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "commit": commit.stdout.strip() or None,
    }


def make_loader(
    stream: Any, collate: Callable[[list[Any]], dict[str, Tensor]], loop: LoopRecipe
) -> DataLoader:
    """Batches of tensors from a stream of samples."""
    return DataLoader(
        stream, batch_size=loop.batch_size, collate_fn=collate, num_workers=loop.workers
    )


def build_optimizer(
    recipe: OptimizerRecipe, groups: Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """SGD or AdamW over parameter groups; each group keeps its peak rate as `peak`.

    Raises:
        ValueError: for another name.
    """
    parameters = [{"lr": recipe.learning_rate, **group} for group in groups]
    for group in parameters:
        group["peak"] = group["lr"]
    if recipe.name == "sgd":
        return torch.optim.SGD(
            parameters, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    if recipe.name == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay)
    raise ValueError(f"optimizer.name must be 'sgd' or 'adamw', got {recipe.name!r}.")


def set_learning_rates(
    optimizer: torch.optim.Optimizer, recipe: OptimizerRecipe, epoch: float, epochs: float
) -> None:
    """Set each group's rate for a moment of the run, `epoch` of `epochs` in fractions.

    A pure function of the position: resuming needs no scheduler state, and the number of processes
    does not change it.
    """
    for group in optimizer.param_groups:
        if epoch < group.get("warmup_epochs", recipe.warmup_epochs):
            group["lr"] = recipe.warmup_learning_rate
        else:
            group["lr"] = group["peak"] * schedule_factor(recipe, epoch, epochs)


def schedule_factor(recipe: OptimizerRecipe, epoch: float, epochs: float) -> float:
    """Share of the peak rate at `epoch`; ValueError for an unknown schedule."""
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
    if recipe.schedule == "halving":
        halvings = max(0, math.ceil((epoch - recipe.hold_epochs + 1e-9) / recipe.halving_epochs))
        return 0.5**halvings
    raise ValueError(f"optimizer.schedule must be 'cosine' or 'halving', got {recipe.schedule!r}.")


def count_steps(samples: int, loop: LoopRecipe, processes: int = 1) -> int:
    """Steps of one epoch over `samples`, the last batch included."""
    return max(1, math.ceil(samples / (loop.batch_size * processes)))


def mean_over_batches(
    run: TrainingRun, loader: Any, score: Callable[[dict[str, Tensor]], Tensor]
) -> float:
    """Mean of a per-sample score (B,) over a loader, on all processes."""
    values = [run.accelerator.gather_for_metrics(score(batch)).float().cpu() for batch in loader]
    return float(torch.cat(values).mean()) if values else float("nan")


def loss_parts(output: ModelOutput) -> dict[str, Tensor]:
    """The loss of a model's output and its named parts."""
    return {name: value for name, value in output.items() if name.endswith("loss")}
