"""What both training scripts share: a run's folder, its counters, its loop and its checkpoints."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers.utils import ModelOutput

from ..data.patient import LabelledSlice, Patient
from ..data.splits import split_hash, write_split
from ..files import replace_file, write_json
from ..provenance import peak_mib, provenance
from ..recipes import BaseRecipe, OptimizerRecipe, save_recipe
from .averages import RunningStatistics, WeightAverage
from .optimizers import set_learning_rates
from .slice_loader import Batch, Sample, SliceLoader, Step
from .work_list import WorkList

Losses = Callable[[nn.Module, dict[str, Tensor], int], dict[str, Tensor]]
Score = Callable[[nn.Module, dict[str, Tensor]], Tensor]


class TrainingRun:
    """One training run in one folder: start it again and it goes on where it was.

    Attributes:
        accelerator: the Accelerate object that the script prepares its parts with.
        epoch, batch, step: where the run stands; `batch` counts within the epoch.
        best_score: highest validation score so far, None before the first validation.
        steps_per_epoch: known once training starts.
        facts: hashes of split and slices, kept with every checkpoint.
    """

    steps_per_epoch: int
    bar: tqdm

    def __init__(self, recipe: BaseRecipe):
        self.recipe, self.loop = recipe, recipe.loop
        if not self.loop.epochs and not self.loop.max_steps:
            raise ValueError("a run needs loop.epochs or loop.max_steps above 0, got 0 and 0.")
        self.folder = Path(recipe.out)
        self.epoch, self.batch, self.step = 0, 0, 0
        self.best_score: float | None = None
        self.average: WeightAverage | None = None
        self.facts: dict[str, Any] = {}
        self.started = time.monotonic()
        self.accelerator = Accelerator(
            mixed_precision=self.loop.mixed_precision,
            log_with="tensorboard" if self.loop.tensorboard else None,
            project_dir=str(self.folder),
            # Buffers change by the same amount everywhere, see RunningStatistics.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.claim_folder()
        set_seed(self.loop.seed)
        if self.loop.tensorboard:
            self.accelerator.init_trackers("tensorboard")

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

    def list_slices(
        self, split: Mapping[str, Sequence[Patient]], *sources: str
    ) -> tuple[WorkList, WorkList]:
        """Slices of training and of validation patients, listed once per run by its first process.

        The split is written into the folder, and its hash and the slices' into `facts`.

        Args:
            sources: folders of what the run learns from or starts from, "" for none.
        """
        if self.accelerator.is_main_process:
            write_split(split, self.folder / "split.json", filter(None, sources))
        path, data = self.folder / "work_list.parquet", self.recipe.data
        patients = [*split["train"], *split["validation"]]
        with self.accelerator.main_process_first():
            work = WorkList.kept(path, patients, data.modality, data.skip_slices)
        self.facts = {"split_sha256": split_hash(split), "data_sha256": work.fingerprint()}
        return work.of_patients(split["train"]), work.of_patients(split["validation"])

    def ended_before(self) -> bool:
        """Whether this run ended here before, on the split and slices just listed; says so."""
        summary = self.folder / "run.json"
        if not summary.is_file():
            return False
        before = json.loads(summary.read_text())
        if any(before.get(name) != fact for name, fact in self.facts.items()):
            return False
        self.accelerator.end_training()
        self.accelerator.print(f"done before: {self.folder}")
        return True

    def load(
        self,
        training: WorkList,
        held_out: WorkList,
        prepare: Callable[[LabelledSlice], Sample],
        collate: Callable[[list[Sample]], Batch],
    ) -> SliceLoader:
        """This process's batches of chosen slices; arguments as for `SliceLoader`."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        data = self.recipe.data
        return SliceLoader(training, held_out, data, self.loop, prepare, collate, rank, ranks)

    # --- The loop ---------------------------------------------------------------------------
    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: SliceLoader,
        schedule: OptimizerRecipe,
        losses: Losses,
        score: Score,
        criterion: str,
    ) -> None:
        """Train `model` to the end of the run and leave it with its best weights.

        Args:
            loader: this process's batches of training and of validation patients.
            losses: model, batch and epoch -> "loss" and its parts, means over the batch.
            score: model and validation batch -> score of each sample, (B,); no pixel label.
            criterion: name of that score in the log.
        """
        self.start(loader)
        if self.loop.gradient_checkpointing:
            # Not reentrant: slices need no gradient, and reentrant checkpoints would stop there.
            model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        if self.loop.ema:
            self.average = WeightAverage(model.to(self.accelerator.device), self.loop.ema)
            self.accelerator.register_for_checkpointing(self.average)
        model, optimizer = self.accelerator.prepare(model, optimizer)
        if self.loop.compile:
            model.compile()  # in place, so that the names of saved weights stay as they are
        self.resume()
        for epoch in self.epochs():
            model.train()
            for step in loader.steps(epoch, self.batch):
                set_learning_rates(optimizer, schedule, *self.progress)
                parts = self.learn(model, optimizer, step, losses)
                self.after_step(parts, model)
                if self.validation_due:
                    judged = self.average.model if self.average else self.bare(model)
                    self.after_validation(self.validate(judged, loader, score), criterion, judged)
                    model.train()
                self.checkpoint_if_due()
                if self.finished:
                    break
        self.load_best(model)

    def start(self, loader: SliceLoader) -> None:
        """Learn from the data how long the run is."""
        self.steps_per_epoch, self.pieces = loader.steps_per_epoch, loader.pieces
        self.bar = tqdm(
            total=self.total_steps,
            disable=not self.accelerator.is_main_process,
            desc=self.folder.name,
            unit="step",
        )

    def bare(self, model: nn.Module) -> nn.Module:
        """The model without what spreads it over processes, which would wait for the others."""
        return self.accelerator.unwrap_model(model)

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
        """Epochs still to run."""
        while not self.finished:
            yield self.epoch
            self.epoch, self.batch = self.epoch + 1, 0

    def learn(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, step: Step, losses: Losses
    ) -> dict[str, Tensor]:
        """One optimizer step; returns the loss and its parts as far as this process saw them.

        Every piece starts from a random state of its own, so what it draws depends neither on when
        the run was started, interrupted or validated nor on which process computes it.

        Raises:
            ValueError: the loss is not finite.
        """
        statistics = RunningStatistics(model) if self.pieces > 1 else None
        totals: dict[str, Tensor] = {}
        for place, (number, samples, batch) in enumerate(step.pieces):
            share, last = samples / step.samples, place == len(step.pieces) - 1
            torch.manual_seed((self.loop.seed * 1_000_003 + self.step) * self.pieces + number)
            batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with nullcontext() if last else self.accelerator.no_sync(model):
                parts = losses(model, batch, self.epoch)
                self.refuse_nan(parts["loss"])
                # Processes add up to a mean over the step, of which each has its own share.
                self.accelerator.backward(parts["loss"] * (share * self.accelerator.num_processes))
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + share * part.detach()
            if statistics:
                statistics.add(share)
        if statistics:
            statistics.finish(self.accelerator)
        if self.loop.gradient_clip:
            self.accelerator.clip_grad_norm_(model.parameters(), self.loop.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return totals

    def refuse_nan(self, loss: Tensor) -> None:
        """Raise ValueError when the loss is not finite."""
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.step}; lower the learning rate. "
                f"The last checkpoint is kept in {self.folder / 'checkpoints'}."
            )

    def after_step(self, parts: dict[str, Tensor], model: nn.Module) -> None:
        """Count the step, average the weights, and log the loss and its parts."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self.bar.update()
        if self.average:
            self.average.update(self.bare(model), self.step)
        if self.step % self.loop.log_every == 0 or self.step == 1:
            summed = self.accelerator.reduce(torch.stack(list(parts.values())), "sum").tolist()
            self.accelerator.log(dict(zip(parts, summed, strict=True)), step=self.step)
            self.bar.set_postfix_str(f"loss {summed[list(parts).index('loss')]:.3f}")

    def validate(self, model: nn.Module, loader: SliceLoader, score: Score) -> float:
        """Mean score of all validation slices, the same for any number of processes.

        Raises:
            ValueError: there are none.
        """
        model.eval()
        found = [
            (place, score(model, batch).float().tolist())
            for place, batch in self.held_out_batches(loader)
        ]
        values = [value for _, scores in sorted(gather_object(found)) for value in scores]
        if not values:
            raise ValueError(
                "the validation patients have no slice to score; ask for more of them with "
                "split.validation, or lower minimum_area."
            )
        return sum(values) / len(values)

    def held_out_batches(
        self, loader: SliceLoader
    ) -> Iterator[tuple[tuple[int, int], dict[str, Tensor]]]:
        """Validation batches with their places, on this process's device.

        What is drawn for a batch depends on its place alone, so every pass draws the same.
        """
        for place, batch in loader.held_out_batches():
            torch.manual_seed(place[0] * 1_000_003 + place[1])  # steps seed themselves, see `learn`
            yield place, {name: v.to(self.accelerator.device) for name, v in batch.items()}

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
                state = {k: v.contiguous().cpu() for k, v in self.bare(model).state_dict().items()}
                replace_file(self.folder / "best.safetensors", partial(save_file, state))
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Put the weights of the best validation back into the model."""
        state = load_file(self.folder / "best.safetensors")
        self.bare(model).load_state_dict(state)

    # --- Files ------------------------------------------------------------------------------
    def save_checkpoint(self) -> None:
        """Write model, optimizer, random states and counters; the folder appears when complete."""
        final = self.folder / "checkpoints" / f"step-{self.step:07d}"
        draft = final.with_suffix(".tmp")
        self.accelerator.save_state(str(draft))
        self.accelerator.wait_for_everyone()  # each process writes a file of its own
        if self.accelerator.is_main_process:
            progress = {"epoch": self.epoch, "batch": self.batch, "step": self.step}
            write_json(draft / "progress.json", {**progress, **self.describe()})
            shutil.copy(self.folder / "recipe.yaml", draft)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
            for old in sorted(final.parent.glob("step-*[0-9]"))[:-2]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint and the finished run both say of where they come from."""
        score = {"best_score": self.best_score}
        return {**provenance(), "seed": self.loop.seed, **score, **self.facts}

    def write_summary(self, **facts: Any) -> None:
        """Write run.json: versions, commit, seed, scores, and the facts of this stage."""
        if self.accelerator.is_main_process:
            summary = {
                **self.describe(),
                "steps": self.step,
                "processes": self.accelerator.num_processes,
                "seconds": round(time.monotonic() - self.started, 1),
                "peak_mib": peak_mib(),
                **facts,
            }
            write_json(self.folder / "run.json", summary)
        self.bar.close()
        self.accelerator.end_training()
        self.accelerator.print(f"done: {self.folder}")


def loss_parts(output: ModelOutput) -> dict[str, Tensor]:
    """The loss of a model's output and its named parts."""
    return {name: value for name, value in output.items() if name.endswith("loss")}
