"""Where no segmenter can be loaded a trained stand-in takes its place, and its name goes along."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from baselines import prompted, registry
from baselines.prompted import PromptedByStage1, tiny_processor, tiny_sam, tiny_sam2
from baselines.stand_in import in_model_frame
from transformers import Sam2Model

from modeling_rasalore.benchmark.recipe import BenchmarkRecipe
from modeling_rasalore.benchmark.trained import weights_of
from modeling_rasalore.pseudo_masks.recipe import PseudoMaskRecipe
from modeling_rasalore.pseudo_masks.segmenter import MARGINS, PromptedSegmenter, to_rgb
from modeling_rasalore.pseudo_masks.sources import load_segmenter, segmenter_facts


@pytest.fixture
def slices() -> list[np.ndarray]:
    image = np.random.default_rng(0).random((40, 32), dtype=np.float32)
    image[10:20, 8:16] += 1
    return [image, np.flip(image, 0).copy()]


BRIGHT: Any = SimpleNamespace(
    see=None, score=lambda images: [(image > 1) * 1.0 for image in images]
)


def without_weights(folder: Path, second: bool, prompt: str) -> PromptedByStage1:
    """A system whose repo does not exist, prompted where slices are bright."""
    stand_in = tiny_sam2 if second else tiny_sam
    return PromptedByStage1(BRIGHT, str(folder / "nothing"), stand_in, prompt)


@pytest.fixture
def stand_in(
    slices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> PromptedByStage1:
    monkeypatch.setattr(prompted, "STAND_IN_STEPS", 2)
    system = without_weights(tmp_path, second=False, prompt="box")
    system.fit(slices, [1, 0])
    return system


def test_a_region_lies_where_the_padded_slice_shows_it() -> None:
    region = np.zeros((40, 80), np.uint8)
    region[20:, 60:] = 1  # the lower right corner
    inputs = tiny_processor()(to_rgb(region.astype(np.float32)), return_tensors="pt")
    seen = in_model_frame(region, inputs)[0, 0]
    expected = np.zeros((64, 64))
    expected[16:32, 48:] = 1  # 40 x 80 becomes 32 x 64, and what is below is padding
    assert seen.shape == (64, 64) and np.abs(seen.numpy() - expected).mean() < 0.01
    shown = inputs["pixel_values"][0, 0].numpy()
    assert shown[18:30, 50:62].min() > shown[18:30, :44].max()


def test_a_saved_stand_in_segments_as_the_one_that_was_trained(
    stand_in: PromptedByStage1, slices: list[np.ndarray], tmp_path: Path
) -> None:
    stand_in.save(tmp_path / "saved")
    again = PromptedSegmenter.from_pretrained(str(tmp_path / "saved"), "box")
    expected = stand_in.segmenter.score(slices[0], (slices[0] > 1).astype(np.uint8))
    assert expected.any()
    np.testing.assert_array_equal(
        again.score(slices[0], (slices[0] > 1).astype(np.uint8)), expected
    )


@pytest.mark.parametrize("prompt", ["box", "points"])
def test_a_stand_in_for_medsam2_learns_and_scores_in_the_slices_frame(
    prompt: str, slices: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prompted, "STAND_IN_STEPS", 2)
    system = without_weights(tmp_path, second=True, prompt=prompt)
    before = {name: weight.clone() for name, weight in system.segmenter.model.state_dict().items()}
    system.fit(slices, [1, 0])
    assert any(not w.equal(before[n]) for n, w in system.segmenter.model.state_dict().items())
    for image, scores in zip(slices, system.score(slices), strict=True):
        assert scores.shape == image.shape and 0 < scores.max() <= 1


@pytest.mark.parametrize("second", [False, True])
def test_a_stand_in_answers_with_the_mask_that_it_was_trained_on(
    second: bool, slices: list[np.ndarray], tmp_path: Path
) -> None:
    segmenter = without_weights(tmp_path, second, "box").segmenter
    inputs = segmenter.processor(to_rgb(slices[0]), return_tensors="pt")
    region = (slices[0] > 1).astype(np.uint8)
    given = {"pixel_values": inputs["pixel_values"]}
    given |= segmenter.prompts(region, inputs, given["pixel_values"].device)
    trained, asked = (
        segmenter.model.train(mode)(**given, multimask_output=False).pred_masks
        for mode in (True, False)
    )
    torch.testing.assert_close(asked, trained)


def test_masks_that_a_stand_in_refined_say_so(stand_in: PromptedByStage1, tmp_path: Path) -> None:
    stand_in.save(tmp_path / "saved")
    recipe = PseudoMaskRecipe(stage1="", out="", segmenter=str(tmp_path / "saved"))
    facts = segmenter_facts(recipe, load_segmenter(recipe))
    path = str(tmp_path / "saved")
    assert facts == {"segmenter": path, "stand_in": True, "contaminated": False}


@pytest.mark.parametrize(
    "made, weights",
    [
        ({"stand_in": True}, "stand-in"),
        ({"stand_in": False}, "trained"),
        ({"stand_in": False, "contaminated": True}, "contaminated"),
    ],
)
def test_a_network_of_such_masks_is_named_in_results(
    made: dict[str, bool], weights: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"pseudo_masks": made}))
    assert weights_of(tmp_path) == weights
    (tmp_path / "run.json").write_text(json.dumps({"pseudo_masks": None}))
    assert weights_of(tmp_path) == "trained"


def test_a_saved_stand_in_for_medsam2_is_loaded_as_what_it_is(
    slices: list[np.ndarray], tmp_path: Path
) -> None:
    system = without_weights(tmp_path, second=True, prompt="box")
    system.save(tmp_path / "saved")
    again = PromptedSegmenter.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(again.model, Sam2Model)
    region = (slices[0] > 1).astype(np.uint8)
    np.testing.assert_array_equal(
        again.score(slices[0], region), system.segmenter.score(slices[0], region)
    )


def test_published_weights_choose_their_margin_and_say_by_what(
    slices: list[np.ndarray], tmp_path: Path
) -> None:
    without_weights(tmp_path, second=False, prompt="box").save(tmp_path / "published")
    system = PromptedByStage1(BRIGHT, str(tmp_path / "published"), None, "box")
    before = {name: weight.clone() for name, weight in system.segmenter.model.state_dict().items()}
    system.fit(slices, [1, 0])
    assert all(w.equal(before[n]) for n, w in system.segmenter.model.state_dict().items())
    system.save(tmp_path / "row")
    written = json.loads((tmp_path / "row" / "system.json").read_text())
    assert len(written["expected_overlaps"]) == len(MARGINS)
    assert written["margin"] == system.segmenter.margin
    assert str(written["margin"]) == max(
        written["expected_overlaps"], key=written["expected_overlaps"].__getitem__
    )
    again = PromptedByStage1(BRIGHT, str(tmp_path / "published"), None, "box")
    again.segmenter.margin = -1.0
    again.read_margin(tmp_path / "row")
    assert again.segmenter.margin == written["margin"]


def test_where_nothing_stands_in_missing_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        PromptedByStage1(BRIGHT, str(tmp_path / "nothing"), None, "box")


def test_a_row_reads_back_a_chosen_margin_and_never_a_stand_in(
    slices: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_weights(tmp_path, second=False, prompt="box").save(tmp_path / "published")
    monkeypatch.setattr(registry, "build_heatmap", lambda recipe: BRIGHT)
    row = next(row for row in registry.PROMPTED if row.name == "litemedsam_box")
    recipe = BenchmarkRecipe(stage1="x", out="x", litemedsam=str(tmp_path / "published"))
    assert row.restore(tmp_path / "row", recipe) is None
    system = row.make(recipe)
    system.fit(slices, [1, 0])
    system.save(tmp_path / "row")
    again = row.restore(tmp_path / "row", recipe)
    assert again is not None and again.segmenter.margin == system.segmenter.margin
    for expected, found in zip(system.score(slices), again.score(slices), strict=True):
        np.testing.assert_array_equal(found, expected)
