"""Load batches of slices for one of several processes, in an order that every process knows.

The order of an epoch is drawn from seed and epoch alone, the same for any number of processes and
workers, so their number changes how fast a run is and not what it learns. It is known before
anything is read: going on in the middle of an epoch skips without reading, and ends of unequal
length cannot make processes wait for each other.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..data.patient import LabelledSlice, See
from ..data.slices import read_slices
from ..recipes import DataRecipe, LoopRecipe
from .work_list import WorkList

Sample = dict[str, Any]  # one prepared slice
Batch = dict[str, Tensor]
Rows = NDArray[np.int64]


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
        see: of the network's processor, where it sees whole scans.
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
    see: See | None = None

    @property
    def pieces(self) -> int:
        """Return in how many pieces all processes together compute a batch."""
        return max(self.loop.accumulation, self.ranks)

    @property
    def bounds(self) -> Rows:
        """Return where the batches of an epoch begin and end."""
        return batch_bounds(len(self.training), self.loop.batch_size, self.pieces)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.bounds) - 1

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """Yield the steps of an epoch from `first` on; nothing of earlier steps is read."""
        bounds = self.bounds[first:]
        workers = max(self.loop.workers, 1)
        parts = iter(self._load(EpochReader(self, epoch, bounds)))
        for start, end in pairwise(bounds):
            samples = dict(pair for _ in range(workers) for pair in next(parts))
            by_piece = defaultdict(list)
            for position in sorted(samples):
                by_piece[position % self.pieces].append(samples[position])
            pieces = [(n, len(part), self.collate(part)) for n, part in sorted(by_piece.items())]
            yield Step(pieces, int(end - start))

    def held_out_batches(self) -> Iterator[tuple[tuple[int, int], Batch]]:
        """Yield this process's batches of validation slices, each with its key.

        The key is the number of the patient and of the batch's first slice there. No batch holds
        two patients, so which slices share a batch does not depend on the number of processes.
        """
        yield from self._load(PatientReader(self))

    def first_batches(self, samples: int) -> Iterator[Batch]:
        """Yield batches of the first slices of the first epoch, up to a number of slices."""
        for step in self.steps(0):
            for _, size, batch in step.pieces:
                if samples > 0:
                    yield {name: value[:samples] for name, value in batch.items()}
                samples -= size
            if samples <= 0:
                return

    def order(self, epoch: int) -> Rows:
        """Return the rows of the training list in the order of an epoch."""
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
        """Return a patient's slices by row; ValueError where some are not there any more."""
        work = self.loader.training
        by_index = {int(work.slice_index[row]): row for row in rows}
        patient, data = work.patients[work.owner[next(iter(rows))]], self.loader.data
        examples = {
            by_index[example.slice_index]: example
            for example in read_slices(
                patient,
                data.modality,
                skip=data.skip_slices,
                only=by_index.keys(),
                see=self.loader.see,
            )
        }
        if examples.keys() != rows:
            raise ValueError(
                f"{patient.patient_id} changed since the run began: {len(rows) - len(examples)} "
                "slices are gone; start a new run in another folder."
            )
        return examples


class PatientReader(IterableDataset):
    """Validation batches of the patients that one worker of a process reads."""

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
                see=loader.see,
            )
            samples = [loader.prepare(example) for example in examples]
            for start in range(0, len(samples), size):
                yield (number, start), loader.collate(samples[start : start + size])


def this_worker() -> tuple[int, int]:
    """Return the number of this worker process, and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def pass_on(item: Any) -> Any:
    """Return what a reader yields, as it is."""
    return item


# --- The order of an epoch, and who reads which of its slices ------------------------------------
def epoch_order(owner: Rows, lanes: int, buffer: int, seed: int, epoch: int) -> Rows:
    """Return every row once, (N,): position -> row.

    1. Patients are shuffled and dealt out to lanes, each to the one with fewest rows so far.
    2. A lane reads patient after patient, each one's slices shuffled, and holds some back, of which
       a random one leaves for each that comes.
    3. Position p comes from lane p modulo `lanes`; where that one is at its end, from the lane with
       most left.

    So a reader of every k-th position opens only a k-th of the patients, but for the last few.

    Args:
        owner: patient of each row, (N,).
        lanes: patients read side by side.
        buffer: slices held back in all lanes together.
        seed, epoch: what the order is drawn from.
    """
    random = np.random.default_rng([seed, epoch])
    by_patient = np.argsort(owner, kind="stable")
    starts = np.flatnonzero(np.diff(owner[by_patient], prepend=-1))
    groups = np.split(by_patient, starts[1:]) if len(owner) else []
    dealt: list[list[Rows]] = [[] for _ in range(lanes)]
    lengths = [(0, lane) for lane in range(lanes)]
    for number in random.permutation(len(groups)):
        length, lane = heapq.heappop(lengths)
        dealt[lane].append(random.permutation(groups[number]))
        heapq.heappush(lengths, (length + len(groups[number]), lane))
    return _interleave([_mix(rows, buffer // lanes, random) for rows in dealt])


def _mix(groups: Sequence[Rows], size: int, random: np.random.Generator) -> Rows:
    """Return the rows of a lane in the order in which they leave a pool of `size`."""
    rows = np.concatenate([*groups, np.empty(0, np.int64)])
    size = min(size, len(rows))
    if not size:
        return rows
    mixed, pool = np.empty_like(rows), rows[:size].copy()
    draws = random.integers(size, size=len(rows) - size)
    for position, (index, row) in enumerate(zip(draws, rows[size:], strict=True)):
        mixed[position], pool[index] = pool[index], row
    mixed[len(rows) - size :] = random.permutation(pool)
    return mixed


def _interleave(lanes: Sequence[Rows]) -> Rows:
    shortest = min(len(rows) for rows in lanes)
    even = np.stack([rows[:shortest] for rows in lanes], axis=1).reshape(-1)
    rest = [list(rows[shortest:])[::-1] for rows in lanes]
    tail = []
    for position in range(sum(map(len, rest))):
        lane = rest[position % len(rest)] or max(rest, key=len)
        tail.append(lane.pop())
    return np.concatenate([even, np.array(tail, np.int64)])


def batch_bounds(rows: int, batch: int, pieces: int) -> Rows:
    """Return where each batch of an epoch begins, and where the last one ends, (steps + 1,).

    A batch is computed in pieces and no piece may be empty: a last batch of fewer slices than that
    joins the one before it.

    Raises:
        ValueError: not enough slices for one batch, or a batch of too few.
    """
    if batch < max(pieces, 1):
        raise ValueError(
            f"loop.batch_size must be at least {max(pieces, 1)}, one slice for each process and "
            f"each piece of loop.accumulation, got {batch}."
        )
    if rows < pieces:
        raise ValueError(f"a batch is computed in {pieces} pieces, but there are {rows} slices.")
    bounds = np.append(np.arange(0, rows, batch), rows)
    if len(bounds) > 2 and rows - bounds[-2] < pieces:
        bounds = np.delete(bounds, -2)
    return bounds


def readers(positions: Rows, pieces: int, ranks: int, workers: int) -> tuple[Rows, Rows]:
    """Return which process and which of its workers reads each position, (N,) each.

    Piece j holds every position that is j modulo `pieces`, and process r computes the pieces that
    are r modulo `ranks`.
    """
    return positions % pieces % ranks, positions // ranks % workers
