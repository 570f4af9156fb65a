"""The loader of one process: nothing lost, nothing twice, and a start anywhere in an epoch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore.data.patient import Patient
from modeling_rasalore.recipes import DataRecipe, LoopRecipe
from modeling_rasalore.training import slice_loader
from modeling_rasalore.training.slice_loader import (
    SliceLoader,
    batch_bounds,
    epoch_order,
    readers,
)
from modeling_rasalore.training.work_list import WorkList

COUNTS = (7, 1, 12, 3, 5, 9, 2, 4)  # slices of each patient: uneven for any number of processes


@pytest.fixture(autouse=True)
def _slices_without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(patient: Patient, modality: str, skip: int, only: Any, see: Any) -> Any:
        for index in sorted(only):
            yield SimpleNamespace(patient_id=patient.patient_id, slice_index=index)

    monkeypatch.setattr(slice_loader, "read_slices", read)


def name(example: Any) -> dict[str, Any]:
    return {"code": 100 * int(example.patient_id) + example.slice_index}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"code": torch.tensor([sample["code"] for sample in samples])}


def make_loader(rank: int = 0, ranks: int = 1, **loop: int) -> SliceLoader:
    patients = [Patient(str(n), {"t2": Path("x")}) for n in range(len(COUNTS))]
    facts = [[(index, 1, 1.0) for index in range(count)] for count in COUNTS]
    work = WorkList.from_facts(patients, facts)
    return SliceLoader(
        work,
        work,
        DataRecipe(root="", lanes=4, shuffle_buffer=6),
        LoopRecipe(**{"batch_size": 8, "accumulation": 4, **loop}),
        name,
        collate,
        rank,
        ranks,
    )


def pieces(loader: SliceLoader, epoch: int = 1, first: int = 0) -> list[dict[int, list[int]]]:
    """Per step: number of the piece -> its slices."""
    return [
        {number: batch["code"].tolist() for number, _, batch in step.pieces}
        for step in loader.steps(epoch, first)
    ]


def all_ranks(ranks: int, workers: int) -> list[dict[int, list[int]]]:
    """The same of all processes together, which no piece may be computed by twice."""
    parts = [pieces(make_loader(rank, ranks, workers=workers)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1  # nobody waits for a step that others lack
    merged = []
    for of_rank in zip(*parts, strict=True):
        assert sum(map(len, of_rank)) == len({number for part in of_rank for number in part}) == 4
        merged.append({number: codes for part in of_rank for number, codes in part.items()})
    return merged


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_slice_is_seen_once_and_in_the_same_pieces(ranks: int, workers: int) -> None:
    steps = all_ranks(ranks, workers)
    seen = [code for step in steps for codes in step.values() for code in codes]
    assert sorted(seen) == [100 * n + i for n, count in enumerate(COUNTS) for i in range(count)]
    assert [dict(sorted(step.items())) for step in steps] == pieces(make_loader())


def test_the_pieces_of_a_step_say_how_many_samples_it_has() -> None:
    for step in make_loader().steps(0):
        assert sum(size for _, size, _ in step.pieces) == step.samples
        assert [len(batch["code"]) for _, _, batch in step.pieces] == [
            size for _, size, _ in step.pieces
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_any_step_with_what_is_left(workers: int) -> None:
    whole = pieces(make_loader())
    for first in range(len(whole)):
        assert pieces(make_loader(workers=workers), first=first) == whole[first:]


def test_epochs_differ() -> None:
    assert pieces(make_loader(), epoch=0) != pieces(make_loader(), epoch=1)


def test_more_processes_than_pieces_get_a_piece_each() -> None:
    assert make_loader(ranks=3, accumulation=1).pieces == 3
    assert make_loader(ranks=1, accumulation=1).pieces == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_slices_are_seen_once_and_in_the_same_batches(ranks: int, workers: int) -> None:
    found = [
        (place, batch["code"].tolist())
        for rank in range(ranks)
        for place, batch in make_loader(rank, ranks, workers=workers).held_out_batches()
    ]
    expected = [(n, s) for n, count in enumerate(COUNTS) for s in range(0, count, 2)]
    assert [place for place, _ in sorted(found)] == expected
    assert sum(len(codes) for _, codes in found) == sum(COUNTS)


def test_a_slice_that_is_gone_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_loader, "read_slices", lambda *_, **__: iter([]))
    with pytest.raises(ValueError, match="changed since the run began"):
        pieces(make_loader())


def test_first_batches_stop_at_a_number_of_slices() -> None:
    batches = [batch["code"] for batch in make_loader().first_batches(11)]
    assert sum(map(len, batches)) == 11
    assert len(np.unique(torch.cat(batches))) == 11


# --- The order of an epoch --------------------------------------------------------------------
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


def test_a_batch_of_fewer_slices_than_pieces_is_refused() -> None:
    for batch, pieces in ((3, 4), (0, 1), (-1, 2)):
        with pytest.raises(ValueError, match=rf"must be at least {pieces}, .* got {batch}\."):
            batch_bounds(20, batch, pieces)
