"""Stage 1 starts on healthy slices with painted lesions, and goes on from there."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_ddpt
import small_rasalore
import torch
from safetensors.torch import load_file
from small_study import write_scans

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.labels import HEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training import stage1
from modeling_rasalore.training.examples import paint_labelled
from modeling_rasalore.training.painted_lesions import SyntheticLesionRecipe
from modeling_rasalore.training.stage1 import Stage1Recipe, train_stage1
from modeling_rasalore.training.stage2 import Stage2Recipe

ROOT = Path(__file__).parents[2]
FEW = ["data.skip_slices=1", "split.validation=1", "split.test=1", "loop.max_steps=2",
       "loop.batch_size=4", "loop.tensorboard=false", "optimizer.name=adamw",
       "heatmap_slices=8"]  # fmt: skip
PAINTED = ["synthetic_lesions.share=1", "synthetic_lesions.minimum_brain_area=100"]
HALF = SyntheticLesionRecipe(share=1, blank_share=0.5)


pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy scans, and the configuration of a toy backbone that is trained from scratch."""
    folder = tmp_path_factory.mktemp("study")
    write_scans(folder / "scans", 4)
    small_ddpt.small_config(**small_ddpt.TRAINED).save_pretrained(folder / "model")
    processor().save_pretrained(folder / "model")
    return folder


def processor() -> RasaloreImageProcessor:
    """As CLIP wants its slices: one sequence in three channels, each with its own statistics."""
    return RasaloreImageProcessor(
        32, 3, gamma=1.0, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )


def train(study: Path, out: Path, *more: str) -> dict[str, Any]:
    words = [f"model={study / 'model'}", f"data.root={study / 'scans'}", f"out={out}", *FEW]
    train_stage1(load_recipe(Stage1Recipe, [*words, *more]))
    return json.loads((out / "run.json").read_text())


def round_brains(count: int = 32) -> dict[str, torch.Tensor]:
    axis = torch.linspace(-1, 1, 32)
    inside = (axis[:, None].square() + axis.square()) < 0.8
    grey = (0.4 * inside).expand(count, 3, 32, 32)
    return {
        "pixel_values": processor().from_intensities(grey),
        "labels": torch.full((count,), HEALTHY),
    }


def test_slices_with_a_painted_lesion_count_as_unhealthy_and_half_have_none() -> None:
    torch.manual_seed(0)
    before = round_brains()
    batch = paint_labelled(round_brains(), processor(), HALF, "t2")
    changed = (batch["pixel_values"] != before["pixel_values"]).flatten(1).any(1)
    assert 8 < changed.sum() < 24
    assert not batch["labels"][~changed].any()
    assert batch["labels"][changed].float().mean() > 0.8  # some come out empty


def test_channels_of_a_grey_slice_stay_equal() -> None:
    batch = paint_labelled(round_brains(), processor(), replace(HALF, blank_share=0.0), "t2")
    images = processor().to_intensities(batch["pixel_values"])
    torch.testing.assert_close(images[:, :1].expand_as(images), images, atol=1e-5, rtol=0)


def test_without_a_share_nothing_is_painted() -> None:
    batch = paint_labelled(round_brains(), processor(), SyntheticLesionRecipe(), "t2")
    assert torch.equal(batch["pixel_values"], round_brains()["pixel_values"])
    assert not batch["labels"].any()


def test_the_start_reads_healthy_slices_only_and_says_so(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, prepare = set(), stage1.prepare_labelled

    def watch(processor: RasaloreImageProcessor, example: dict[str, Any]) -> dict[str, Any]:
        seen.add(example.label)
        return prepare(processor, example)

    monkeypatch.setattr(stage1, "prepare_labelled", watch)
    run = train(study, tmp_path / "start", *PAINTED)
    assert seen == {HEALTHY}
    assert run["criterion"].endswith("with painted lesions on healthy slices")
    assert all(score == score for score in run["deletion_scores"].values())
    again = train(study, tmp_path / "again", *PAINTED)
    assert again["best_score"] == run["best_score"]
    assert again["deletion_scores"] == run["deletion_scores"]


def test_stage_1_goes_on_from_its_start(study: Path, tmp_path: Path) -> None:
    train(study, tmp_path / "start", *PAINTED)
    start = f"initial_weights={tmp_path / 'start'}"
    run = train(study, tmp_path / "still", start, "optimizer.learning_rate=0",
                "optimizer.warmup_learning_rate=0", "context_learning_rate=0")  # fmt: skip
    assert "painted" not in run["criterion"]
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("start", "still"))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_start_of_another_split_or_kind_is_refused(study: Path, tmp_path: Path) -> None:
    patients = find_patients(study / "scans")
    small_rasalore.make_model().save_pretrained(tmp_path / "stage2")
    for seed, complaint in ((7, "was trained on another split"), (0, "run of train/stage1.py")):
        write_split(split_patients(patients, seed, 1, 1), tmp_path / "stage2" / "split.json")
        with pytest.raises(ValueError, match=complaint):
            train(study, tmp_path / str(seed), f"initial_weights={tmp_path / 'stage2'}")


def test_shares_that_teach_no_difference_are_refused(study: Path, tmp_path: Path) -> None:
    for word, complaint in (
        ("share=0.5", "must be 0 or 1, got 0.5"),
        ("blank_share=0", "there are healthy slices"),
    ):
        with pytest.raises(ValueError, match=complaint):
            train(study, tmp_path, *PAINTED, f"synthetic_lesions.{word}")


@pytest.mark.parametrize("name", ["ddpt", "ddpt-released", "rasalore", "rasalore-released"])
def test_the_poster_and_the_released_recipe_start_cold(name: str) -> None:
    words = [str(ROOT / "hub_configs" / name / "training.yaml"), "data.root=x", "out=y"]
    schema = Stage1Recipe if name.startswith("ddpt") else Stage2Recipe
    recipe = load_recipe(schema, words)
    assert recipe.synthetic_lesions.share == 0 and recipe.initial_weights == ""
