"""Keep a training run in one folder: started again, it goes on where it was."""

import atexit
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

from ..data.patient import EACH, LabelledSlice, Patient, See
from ..data.splits import split_hash, write_split
from ..files import learned_hash, replace_file, require_writable, write_json
from ..precision import Precision, choose_precision
from ..prediction.saved_options import carry_defaults
from ..provenance import peak_mib, provenance
from ..recipes import BaseRecipe, is_recipe, model_folder, save_recipe
from .slice_loader import Batch, Sample, SliceLoader
from .work_list import WorkList

KEPT_CHECKPOINTS = 2
RESULTS = ("best.safetensors", "model.safetensors", "run.json")
PLANS = ("work_list.parquet", "split.json")
FACTS = {  # of a run that must not change under it, in words
    "split_sha256": "patients",
    "sources_sha256": "pseudo-masks or initial weights",
    "data_sha256": "slices",
}


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: from 0 on.
        batch: of the epoch.
        step: of the run.
        best_score: highest validation score so far, None before the first validation.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_score: float | None = None


class RunFolder:
    """The folder of one run, shared by its processes: recipe, slices, checkpoints, summary.

    Attributes:
        path: the folder.
        recipe: its own.
        accelerator: the processes of the run, and their devices.
        precision: float type that the network computes in, and why.
        progress: where the run stands.
        facts: hashes of split, slices and what it learns from, kept with every checkpoint.
        last_step: of the whole run, 0 until that is known.

    Args:
        recipe: says where, how long and how.
        config: of the network that learns, whose width helps to choose the precision.

    Raises:
        ValueError: the recipe says no length or an unknown precision, or another recipe's run lives
            there.
    """

    def __init__(self, recipe: BaseRecipe, config: PreTrainedConfig | None = None):
        if not recipe.loop.epochs and not recipe.loop.max_steps:
            raise ValueError("a run needs loop.epochs or loop.max_steps above 0, got 0 and 0.")
        self.path, self.recipe = Path(recipe.out), recipe
        self.progress, self.facts, self.last_step = Progress(), dict[str, Any](), 0
        self.started = time.monotonic()
        self.accelerator, self.precision = self.start_accelerator(config)
        self.claim()
        set_seed(recipe.loop.seed)
        if recipe.loop.tensorboard:
            self.accelerator.init_trackers("tensorboard")

    def start_accelerator(self, config: PreTrainedConfig | None) -> tuple[Accelerator, Precision]:
        """Return an Accelerator that logs to the run's folder if asked for, and its precision.

        Accelerate keeps one precision and one device per process; runs of one process that follow
        each other share its group of processes and nothing else.
        """
        loop = self.recipe.loop
        AcceleratorState._reset_state(reset_partial_state=True)
        # As the Accelerator asks for it, else each of several processes on CPUs is alone.
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
        chosen = choose_precision(config, device, loop.precision, "loop.precision")
        if loop.precision == "auto" and (checkpoints := self.checkpoints()):
            stored = json.loads((checkpoints[-1] / "progress.json").read_text())
            begun = stored.get("precision", "float32")
            if begun != chosen.name:
                chosen = Precision(begun, "as the run was begun")
        accelerator = Accelerator(
            mixed_precision={"float32": "no", "bfloat16": "bf16"}[chosen.name],
            log_with="tensorboard" if loop.tensorboard else None,
            project_dir=str(self.path),
            # Buffers change by the same amount everywhere, see RunningStatistics.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        return accelerator, chosen

    def close(self) -> None:
        """Close the logs of the run."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def claim(self) -> None:
        """Write the recipe into the folder; ValueError where another recipe's run lives there.

        A run lives where it left something that it goes on from or that anyone may use. What any
        other run has listed is deleted: its recipe, its data or their labels may have changed.
        """
        path, lives = self.path / "recipe.yaml", self.has_results()
        same = path.exists() and is_recipe(path, self.recipe)
        if lives and path.exists() and not same:
            raise ValueError(
                f"{self.path} holds a run of another recipe; give out=<another folder> or delete "
                "it (recipe.yaml there says what it ran)."
            )
        self.accelerator.wait_for_everyone()  # every process has looked before one writes
        if self.accelerator.is_main_process:
            require_writable(self.path, "out=")
            if path.exists() and not lives:
                self.delete_plans()
            replace_file(path, partial(save_recipe, self.recipe))
        self.accelerator.wait_for_everyone()

    def has_results(self) -> bool:
        """Return whether the folder holds a complete checkpoint, weights, or a finished run."""
        return bool(self.checkpoints()) or any((self.path / name).exists() for name in RESULTS)

    def delete_plans(self) -> None:
        """Delete what a run lists and logs before it has any result."""
        for name in PLANS:
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / "tensorboard", *self.path.glob("checkpoints/step-*.tmp")):
            shutil.rmtree(folder, ignore_errors=True)

    def list_slices(
        self, split: Mapping[str, Sequence[Patient]], *sources: str
    ) -> tuple[WorkList, WorkList]:
        """Return the slices of training and of validation patients.

        They are listed once per run by its first process. The split is written into the folder, and
        its hash and the slices' into `facts`.

        Args:
            sources: folders of what the run learns from or starts from, "" for none.

        Raises:
            ValueError: the folder holds a run of other patients, labels, masks or weights.
        """
        folders = [Path(source) for source in sources if source]
        learned = [learned_hash(folder) for folder in folders]
        self.facts = {"split_sha256": split_hash(split), "sources_sha256": learned}
        self.refuse_other_facts()
        if self.accelerator.is_main_process:
            write_split(split, self.path / "split.json", folders)
        path, data = self.path / "work_list.parquet", self.recipe.data
        if data.modality == EACH:
            split = {
                part: [scan for patient in patients for scan in patient.of_each_sequence()]
                for part, patients in split.items()
            }
        patients = [*split["train"], *split["validation"]]
        with self.accelerator.main_process_first():
            work = WorkList.stored(path, patients, data.modality, data.skip_slices)
        self.facts["data_sha256"] = work.fingerprint()
        self.refuse_other_facts()
        return work.of_patients(split["train"]), work.of_patients(split["validation"])

    def refuse_other_facts(self) -> None:
        """Raise ValueError where the run in this folder began with other facts than these."""
        records = [self.path / "run.json"]
        records += [checkpoint / "progress.json" for checkpoint in self.checkpoints()[-1:]]
        for record in filter(Path.is_file, records):
            begun = json.loads(record.read_text())
            for name, fact in self.facts.items():
                if begun.get(name, fact) != fact:
                    raise ValueError(
                        f"{self.path} holds a run of other {FACTS[name]} than there are now; give "
                        "out=<another folder>, or delete it to begin anew."
                    )

    def load(
        self,
        training: WorkList,
        held_out: WorkList,
        prepare: Callable[[LabelledSlice], Sample],
        collate: Callable[[list[Sample]], Batch],
        see: See | None = None,
    ) -> SliceLoader:
        """Return this process's batches of chosen slices; arguments as for `SliceLoader`."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        data, loop = self.recipe.data, self.recipe.loop
        return SliceLoader(training, held_out, data, loop, prepare, collate, rank, ranks, see)

    def ended_before(self) -> bool:
        """Return whether this run ended here before, and say so."""
        if not (self.path / "run.json").is_file():
            return False
        self.accelerator.print(f"done before: {self.path}")
        return True

    # --- Checkpoints and the best weights -------------------------------------------------------
    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that are complete, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*[0-9]"))

    def save_checkpoint(self) -> None:
        """Write model, optimizer, random states and progress; it appears when it is complete."""
        final = self.path / "checkpoints" / f"step-{self.progress.step:07d}"
        draft = final.with_suffix(".tmp")
        self.accelerator.save_state(str(draft))
        self.accelerator.wait_for_everyone()  # each process writes a file of its own
        if self.accelerator.is_main_process:
            progress = {**asdict(self.progress), "last_step": self.last_step}
            write_json(draft / "progress.json", {**progress, **self.describe()})
            shutil.copy(self.path / "recipe.yaml", draft)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(draft, final)
            for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Load the newest checkpoint into all that was prepared; False where there is none."""
        if not (checkpoints := self.checkpoints()):
            return False
        newest = checkpoints[-1]
        self.accelerator.load_state(str(newest))
        stored = json.loads((newest / "progress.json").read_text())
        self.progress = Progress(**{name: stored[name] for name in asdict(self.progress)})
        return True

    def save_if_best(self, score: float, model: nn.Module) -> None:
        """Write the weights of `model` if their score is the highest so far."""
        if self.progress.best_score is None or score > self.progress.best_score:
            self.progress.best_score = score
            if self.accelerator.is_main_process:
                state = {k: v.contiguous().cpu() for k, v in model.state_dict().items()}
                replace_file(self.path / "best.safetensors", partial(save_file, state))
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Put the weights of the best validation back into `model`."""
        model.load_state_dict(load_file(self.path / "best.safetensors"))

    # --- What the folder says of itself ---------------------------------------------------------
    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint and the finished run both say of where they come from."""
        return {
            **provenance(),
            "precision": self.precision.name,
            "precision_reason": self.precision.reason,
            "seed": self.recipe.loop.seed,
            "best_score": self.progress.best_score,
            **self.facts,
        }

    def save_model(self, model: PreTrainedModel, processor: ImageProcessingMixin) -> None:
        """Write the model folder that `from_pretrained` reads."""
        if self.accelerator.is_main_process:
            model.save_pretrained(self.path)
            processor.save_pretrained(self.path)
            carry_defaults(model_folder(self.recipe.model), self.path)

    def write_summary(self, **facts: Any) -> None:
        """Write run.json: versions, commit, seed, scores, and the facts of this stage."""
        if self.accelerator.is_main_process:
            summary = {
                **self.describe(),
                "steps": self.progress.step,
                "processes": self.accelerator.num_processes,
                "seconds": round(time.monotonic() - self.started, 1),
                "peak_mib": peak_mib(),
                **facts,
            }
            write_json(self.path / "run.json", summary)
        self.accelerator.print(f"done: {self.path}")


@atexit.register
def leave_process_group() -> None:
    """Leave the group of processes, if there is one, when the program ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
