"""The order of an epoch's slices, drawn from seed and epoch alone, and who reads which of them.

The order is the same for any number of processes and workers, so their number changes how fast a
run is and not what it learns. It is known before anything is read: going on in the middle of an
epoch skips without reading, and ends of unequal length cannot make processes wait for each other.
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


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
    """Rows of one lane in the order in which they leave a pool of `size`."""
    rows = np.concatenate([*groups, np.empty(0, np.int64)])
    size = min(size, len(rows))
    if not size:
        return rows
    mixed, pool = np.empty_like(rows), rows[:size].copy()
    places = random.integers(size, size=len(rows) - size)
    for out, (place, row) in enumerate(zip(places, rows[size:], strict=True)):
        mixed[out], pool[place] = pool[place], row
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
        ValueError: not enough slices for one batch.
    """
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
