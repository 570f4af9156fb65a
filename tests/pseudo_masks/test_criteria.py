"""Criteria without masks: each a hand-computed case and its limits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.pseudo_masks.criteria import (
    CRITERIA,
    SliceEvidence,
    Values,
    agreement,
    choices_table,
    choose,
    score_deletions,
    slice_score,
    summarise,
)


def healthy(score: float, marked: int = 0) -> SliceEvidence:
    return SliceEvidence(False, score, marked, brain=100)


def unhealthy(score: float, deletion: float = 0.0, **agreements: float) -> SliceEvidence:
    return SliceEvidence(True, score, 50, 100, deletion, agreements)


def test_a_slice_s_score_is_the_mean_of_the_highest_hundredth_of_its_brain() -> None:
    scores = np.linspace(0, 0.5, 400, dtype=np.float32).reshape(20, 20)
    brain = np.ones((20, 20), bool)
    scores[0, :5] = 0.9, 0.8, 0.7, 0.6, 1.0
    brain[0, 4] = False  # the highest of all lies outside
    assert slice_score(scores, brain) == pytest.approx((0.9 + 0.8 + 0.7 + 0.6) / 4)


def test_a_small_brain_has_one_highest_pixel_and_none_has_score_zero() -> None:
    scores = np.array([[0.2, 0.4, 0.9]], np.float32)
    assert slice_score(scores, scores < 0.5) == pytest.approx(0.4)
    assert slice_score(scores, scores > 2) == 0


def test_agreement_is_the_soft_dice_of_two_maps() -> None:
    one, other = np.array([[1, 0.5, 0]], np.float32), np.array([[1, 0, 0.5]], np.float32)
    assert agreement(one, other) == agreement(other, one) == pytest.approx(2 / 3)
    assert agreement(one * 0, one * 0) == 1


def test_values_are_counted_on_the_slices_that_they_are_about() -> None:
    found = [healthy(0.1, 10), healthy(0.6, 20), unhealthy(0.5, 0.2, b=0.4, c=0.6),
             unhealthy(0.9, 0.4, b=0.8, c=1.0)]  # fmt: skip
    values = summarise(found)
    assert values["slice_auroc"] == 0.75  # of four pairs one is in the wrong order
    assert values["false_alarms"] == 0.15
    assert values["deletion"] == pytest.approx(0.3)
    assert values["agreement"] == pytest.approx(0.7)
    assert "oracle" not in values


@pytest.mark.parametrize("found", [[], [healthy(0.1)], [unhealthy(0.1)]])
def test_what_cannot_be_had_is_none(found: list[SliceEvidence]) -> None:
    values = summarise(found)
    assert values["slice_auroc"] is None and values["agreement"] is None
    assert (values["false_alarms"] is None) == all(one.unhealthy for one in found)


def rows() -> dict[str, Values]:
    names = ("slice_auroc", "false_alarms", "deletion", "agreement")
    return {
        "a": dict(zip(names, (0.9, 0.02, None, 0.5), strict=True)),
        "b": dict(zip(names, (0.8, 0.01, None, 0.5), strict=True)),
    }


def test_each_criterion_chooses_in_its_own_direction_and_the_first_of_equals() -> None:
    assert choose(rows()) == {
        "slice_auroc": "a", "false_alarms": "b", "deletion": None, "agreement": "a",
    }  # fmt: skip
    assert choose({}) == {}


def test_the_table_marks_what_is_chosen_and_has_an_oracle_only_where_there_is_one() -> None:
    lines = choices_table(rows()).splitlines()
    assert lines[2:] == [
        "| a | **0.9000** | 0.0200 | – | **0.5000** |",  # noqa: RUF001
        "| b | 0.8000 | **0.0100** | – | 0.5000 |",  # noqa: RUF001
    ]
    assert "Oracle" not in lines[0]
    known = {run: {**values, "oracle": 0.5} for run, values in rows().items()}
    assert CRITERIA["oracle"].title in choices_table(known).splitlines()[0]


def test_a_map_on_what_the_classifier_sees_has_the_higher_deletion_score() -> None:
    image = np.zeros((30, 40), np.float32)
    image[5:25, 10:35] = 1
    image[5:8, 10:13] = 0  # background inside the box, as around every brain
    image[12:16, 12:18] = 3
    processor = RasaloreImageProcessor(size=32, gamma=1.0)

    def brightest(pixel_values: Tensor) -> Tensor:
        return pixel_values.amax((1, 2, 3))

    right, wrong = np.where(image == 3, 1, 0), np.zeros((30, 40))
    wrong[18:24, 25:33] = 1
    maps = [right.astype(np.float32), wrong.astype(np.float32)]
    faithful, blind = score_deletions(maps, [image, image], processor, brightest)
    assert faithful > 0.3
    assert blind == pytest.approx(0, abs=1e-6)


def test_maps_are_cut_to_the_frame_of_the_slices() -> None:
    image = np.zeros((30, 40), np.float32)
    image[5:25, 10:35] = np.random.default_rng(0).random((20, 25)) + 0.1
    processor = RasaloreImageProcessor(size=16, gamma=1.0)
    pixel_values = processor([image], return_tensors="pt")["pixel_values"][:, 0]
    torch.testing.assert_close(processor.crop_maps([image / image.max()], [image]), pixel_values)
    with pytest.raises(ValueError, match="its slice's shape"):
        processor.crop_maps([image.T], [image])
