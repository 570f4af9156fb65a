"""Which slices stage 2 learns from: those with a pseudo-mask, painted ones, blank ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.training.examples import (
    choose_training,
    choose_validation,
    paint_healthy,
)
from modeling_rasalore.training.painted_lesions import SyntheticLesionRecipe
from modeling_rasalore.training.work_list import WorkList

PATIENT = Patient("p", {"t2": Path("p_t2.nii.gz")})


def lesions(share: float) -> SyntheticLesionRecipe:
    return SyntheticLesionRecipe(share=share, minimum_brain_area=100)


def slices(unhealthy: int, healthy: int, too_small: int = 0) -> WorkList:
    """Unhealthy slices first, then healthy ones, then healthy ones with too little brain."""
    labels = [UNHEALTHY] * unhealthy + [HEALTHY] * (healthy + too_small)
    areas = [500.0] * (unhealthy + healthy) + [50.0] * too_small
    return WorkList.from_facts(
        [PATIENT], [[(row, label, areas[row]) for row, label in enumerate(labels)]]
    )


def masks_of(*indices: int) -> Any:
    """A table that has pseudo-masks of some slices."""
    return SimpleNamespace(rows={("p", index) for index in indices})


def counts(work: WorkList) -> tuple[int, int]:
    return np.count_nonzero(work.label == UNHEALTHY), np.count_nonzero(work.label == HEALTHY)


@pytest.mark.parametrize(
    ("unhealthy", "healthy", "masks", "share", "expected"),
    [
        (30, 20, 30, 0.25, (30, 10)),  # all masks, and a third as many painted ones
        (30, 5, 30, 0.25, (15, 5)),  # few healthy slices: fewer masks, so that the share holds
        (30, 40, 3, 0.25, (3, 37)),  # a slice without mask gives its place to a painted one
        (30, 20, 3, 0.25, (3, 20)),  # as far as there are healthy slices
        (30, 20, 30, 0.0, (30, 0)),
    ],
)
def test_masks_and_painted_lesions_share_the_slices(
    unhealthy: int, healthy: int, masks: int, share: float, expected: tuple[int, int]
) -> None:
    work = slices(unhealthy, healthy, too_small=9)
    chosen = choose_training(lesions(share), work, masks_of(*range(masks)), seed=0)
    assert counts(chosen) == expected
    assert chosen.brain_area.min() >= 100 and len(set(chosen.slice_index)) == len(chosen)


def test_where_all_lesions_are_painted_only_healthy_slices_are_read() -> None:
    work = slices(4, 6, too_small=2)
    assert counts(choose_training(lesions(1), work, None, seed=0)) == (0, 6)
    assert counts(choose_validation(lesions(1), work, None)) == (0, 6)
    assert counts(choose_validation(lesions(0.5), work, masks_of(1, 2))) == (2, 0)
    with pytest.raises(ValueError, match="no healthy slice shows 100 mm2 of brain"):
        choose_training(lesions(1), slices(4, 0, too_small=3), None, seed=0)


def test_without_a_validation_mask_lesions_are_painted_into_healthy_slices_there() -> None:
    work = slices(4, 6, too_small=2)
    assert counts(choose_validation(lesions(0.5), work, masks_of())) == (0, 6)
    with pytest.raises(ValueError, match=r"no pseudo-mask of 1 patients .* to validate on"):
        choose_validation(lesions(0), work, masks_of())


def test_without_a_training_mask_nothing_is_learned_of_slice_labels() -> None:
    for share in (0, 0.5):
        with pytest.raises(ValueError, match=r"no pseudo-mask of 1 patients .* to learn from"):
            choose_training(lesions(share), slices(4, 6), masks_of(), seed=0)


def batch_of(healthy: list[bool]) -> dict[str, torch.Tensor]:
    """Grey squares on black, whose masks are empty or, where unhealthy, full."""
    pixel_values = torch.zeros(len(healthy), 1, 32, 32)
    pixel_values[:, :, 6:26, 6:26] = 0.4
    flags = torch.tensor(healthy)
    labels = (~flags).to(torch.uint8)[:, None, None].repeat(1, 64, 64)
    return {"pixel_values": pixel_values, "labels": labels, "healthy": flags}


def test_only_healthy_slices_are_painted_and_a_share_of_them_stays_blank() -> None:
    processor = RasaloreImageProcessor(32, 1)
    given = batch_of([True] * 200 + [False] * 8)
    # The smallest lesions may come out empty, and their slices unchanged.
    for blank_share, low, high in ((0.0, 0, 4), (1.0, 200, 200), (0.25, 30, 70)):
        torch.manual_seed(0)
        batch = {name: value.clone() for name, value in given.items()}
        paint_healthy(batch, processor, SyntheticLesionRecipe(1.0, blank_share), "t2")
        assert batch.keys() - {"ignored"} == {"pixel_values", "labels"}
        ignored = batch.get("ignored", torch.zeros_like(batch["labels"]))
        assert not (ignored & batch["labels"]).any() and not ignored[200:].any()
        same = (batch["pixel_values"] == given["pixel_values"]).flatten(1).all(1)
        assert low <= int(same[:200].sum()) <= high
        assert not batch["labels"][:200][same[:200]].any()
        assert same[200:].all() and (batch["labels"][200:] == 1).all()
