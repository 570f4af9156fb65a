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
from modeling_rasalore.training.slice_loader import SliceLoader
from modeling_rasalore.training.work_list import WorkList

COUNTS = (7, 1, 12, 3, 5, 9, 2, 4)  # slices of each patient: uneven for any number of processes


@pytest.fixture(autouse=True)
def _slices_without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(patient: Patient, modality: str, skip: int, only: Any) -> Any:
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
