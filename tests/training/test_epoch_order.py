"""Every slice once per epoch, in an order that neither processes nor workers change."""

import numpy as np
import pytest

from modeling_rasalore.training.epoch_order import batch_bounds, epoch_order, readers


def owners(*counts: int) -> np.ndarray:
    """Patient of each row, for patients with so many slices."""
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("counts", [(3,), (1, 7, 2), (90, 1, 1, 1), (5,) * 40])
@pytest.mark.parametrize(("lanes", "buffer"), [(1, 0), (4, 0), (4, 30), (16, 5000)])
def test_every_row_comes_once(counts: tuple[int, ...], lanes: int, buffer: int) -> None:
    order = epoch_order(owners(*counts), lanes, buffer, seed=1, epoch=2)
    assert sorted(order) == list(range(sum(counts)))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    owner = owners(9, 4, 7, 12)
    orders = [tuple(epoch_order(owner, 4, 8, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(epoch_order(owner, 4, 8, 0, 0))


def test_without_a_buffer_a_lane_reads_patient_after_patient() -> None:
    owner = owners(6, 6, 6)
    seen = owner[epoch_order(owner, 1, 0, seed=0, epoch=0)]
    assert len(np.flatnonzero(np.diff(seen))) == 2


def test_a_buffer_mixes_the_patients_of_a_lane() -> None:
    owner = owners(*(6,) * 20)
    seen = owner[epoch_order(owner, 1, 30, seed=0, epoch=0)]
    assert len(np.flatnonzero(np.diff(seen))) > 60


@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (2, 2), (4, 1), (4, 4)])
def test_readers_that_divide_the_lanes_open_patients_of_their_own(ranks: int, workers: int) -> None:
    owner = owners(*(10,) * 64)
    order = epoch_order(owner, lanes=16, buffer=0, seed=3, epoch=0)
    rank, worker = readers(np.arange(len(order)), 4, ranks, workers)
    opened = [
        set(owner[order[(rank == r) & (worker == w)]]) for r in range(ranks) for w in range(workers)
    ]
    assert sum(map(len, opened)) == 64  # none is opened twice


def test_a_last_batch_too_small_for_its_pieces_joins_the_one_before() -> None:
    assert batch_bounds(20, 8, pieces=1).tolist() == [0, 8, 16, 20]
    assert batch_bounds(17, 8, pieces=1).tolist() == [0, 8, 16, 17]
    assert batch_bounds(17, 8, pieces=2).tolist() == [0, 8, 17]
    assert batch_bounds(3, 8, pieces=2).tolist() == [0, 3]
    with pytest.raises(ValueError, match="computed in 4 pieces, but there are 3 slices"):
        batch_bounds(3, 8, pieces=4)
