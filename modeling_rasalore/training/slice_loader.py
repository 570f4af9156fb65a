"""Batches of slices for one of several processes: read in the order of the epoch, cut in pieces."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..data.patient import LabelledSlice
from ..data.slices import read_slices
from ..recipes import DataRecipe, LoopRecipe
from .epoch_order import Rows, batch_bounds, epoch_order, readers
from .work_list import WorkList

Sample = dict[str, Any]  # one prepared slice
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """This process's part of one optimizer step.

    Attributes:
        pieces: (number of the piece among all of the step, its samples, the batch).
        samples: of the whole step, in all processes.
    """

    pieces: list[tuple[int, int, Batch]]
    samples: int


@dataclass(frozen=True)
class SliceLoader:
    """Training and validation batches of one process.

    Attributes:
        training, held_out: which slices.
        prepare: slice -> sample; it must not draw random numbers.
        collate: samples -> batch.
        rank, ranks: this process, of how many.
    """

    training: WorkList
    held_out: WorkList
    data: DataRecipe
    loop: LoopRecipe
    prepare: Callable[[LabelledSlice], Sample]
    collate: Callable[[list[Sample]], Batch]
    rank: int = 0
    ranks: int = 1

    @property
    def pieces(self) -> int:
        """Pieces that each batch is computed in, by all processes together."""
        return max(self.loop.accumulation, self.ranks)

    @property
    def bounds(self) -> Rows:
        """Where the batches of an epoch begin and end."""
        return batch_bounds(len(self.training), self.loop.batch_size, self.pieces)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.bounds) - 1

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """Steps of an epoch from `first` on; nothing of the earlier ones is read."""
        bounds = self.bounds[first:]
        workers = max(self.loop.workers, 1)
        parts = iter(self._load(EpochReader(self, epoch, bounds)))
        for start, end in pairwise(bounds):
            samples = dict(pair for _ in range(workers) for pair in next(parts))
            by_piece = defaultdict(list)
            for position in sorted(samples):
                by_piece[position % self.pieces].append(samples[position])
            pieces = [(n, len(found), self.collate(found)) for n, found in sorted(by_piece.items())]
            yield Step(pieces, int(end - start))

    def held_out_batches(self) -> Iterator[tuple[tuple[int, int], Batch]]:
        """Batches of validation slices of the patients that fall to this process.

        Each comes with its patient's number and its place there. No batch holds two patients, so
        which slices share one does not depend on the number of processes.
        """
        yield from self._load(PatientReader(self))

    def first_batches(self, samples: int) -> Iterator[Batch]:
        """Batches of the first slices of the first epoch, up to a number of slices."""
        for step in self.steps(0):
            for _, size, batch in step.pieces:
                if samples > 0:
                    yield {name: value[:samples] for name, value in batch.items()}
                samples -= size
            if samples <= 0:
                return

    def order(self, epoch: int) -> Rows:
        """Rows of the training list in the order of an epoch."""
        data, seed = self.data, self.loop.seed
        return epoch_order(self.training.owner, data.lanes, data.shuffle_buffer, seed, epoch)

    def _load(self, dataset: "EpochReader | PatientReader") -> DataLoader:
        return DataLoader(
            dataset, batch_size=None, num_workers=self.loop.workers, collate_fn=pass_on
        )


class EpochReader(IterableDataset):
    """For every step of an epoch, the (position, sample) pairs that one worker of a process reads.

    A patient is opened when the first of its slices is due, and once per epoch; what is due later
    waits in memory.
    """

    def __init__(self, loader: SliceLoader, epoch: int, bounds: Rows):
        self.loader, self.epoch, self.bounds = loader, epoch, bounds

    def __iter__(self) -> Iterator[list[tuple[int, Sample]]]:
        loader, bounds = self.loader, self.bounds
        order, positions = loader.order(self.epoch), np.arange(bounds[0], bounds[-1])
        worker, workers = this_worker()
        ranks, numbers = readers(positions, loader.pieces, loader.ranks, workers)
        mine = positions[(ranks == loader.rank) & (numbers == worker)]
        due: dict[int, set[int]] = defaultdict(set)
        for row in order[mine].tolist():
            due[int(loader.training.owner[row])].add(row)
        waiting: dict[int, LabelledSlice] = {}
        ends = np.searchsorted(mine, bounds)
        for start, end in pairwise(ends):
            part = []
            for position in mine[start:end].tolist():
                row = int(order[position])
                if row not in waiting:
                    waiting |= self.read(due.pop(int(loader.training.owner[row])))
                part.append((position, loader.prepare(waiting.pop(row))))
            yield part

    def read(self, rows: set[int]) -> dict[int, LabelledSlice]:
        """Slices of one patient by row; ValueError where some are not there any more."""
        work = self.loader.training
        by_index = {int(work.slice_index[row]): row for row in rows}
        patient, data = work.patients[work.owner[next(iter(rows))]], self.loader.data
        found = {
            by_index[example.slice_index]: example
            for example in read_slices(
                patient, data.modality, skip=data.skip_slices, only=by_index.keys()
            )
        }
        if found.keys() != rows:
            raise ValueError(
                f"{patient.patient_id} changed since the run began: {len(rows) - len(found)} "
                "slices are gone; start a new run in another folder."
            )
        return found


class PatientReader(IterableDataset):
    """Validation batches of the patients that fall to one worker of a process."""

    def __init__(self, loader: SliceLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Batch]]:
        loader, work = self.loader, self.loader.held_out
        worker, workers = this_worker()
        size = -(-loader.loop.batch_size // loader.pieces)
        numbers = np.unique(work.owner)
        for number in numbers[loader.rank :: loader.ranks][worker::workers].tolist():
            only = set(work.slice_index[work.owner == number].tolist())
            examples = read_slices(
                work.patients[number],
                loader.data.modality,
                skip=loader.data.skip_slices,
                only=only,
            )
            samples = [loader.prepare(example) for example in examples]
            for start in range(0, len(samples), size):
                yield (number, start), loader.collate(samples[start : start + size])


def this_worker() -> tuple[int, int]:
    """Number of this worker process, and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def pass_on(item: Any) -> Any:
    """What a reader yields, as it is."""
    return item
