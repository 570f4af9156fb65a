"""Both stages learn from slices seen with their scan: painted first, compared with their mirror
image afterwards, augmented last."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_study import MODEL, benchmark, in_this_process, run_stage2, write_study
from torch import Tensor

from modeling_rasalore import DdptConfig, RasaloreConfig, RasaloreImageProcessor
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.models.scan_view_rasalore import scan_channels
from modeling_rasalore.pseudo_masks.criteria import deletion_scores, is_brain
from modeling_rasalore.pseudo_masks.makers import PseudoMaskRecipe, make_pseudo_masks
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training.augmentation import AugmentationRecipe, augment_batch
from modeling_rasalore.training.examples import (
    collate_masked,
    paint_healthy,
    paint_slices,
    prepare_masked,
)
from modeling_rasalore.training.optimizers import (
    OptimizerRecipe,
    build_optimizer,
    set_learning_rates,
)
from modeling_rasalore.training.painted_lesions import SyntheticLesionRecipe
from modeling_rasalore.training.slice_loader import Batch
from modeling_rasalore.training.stage1 import Stage1Recipe, train_stage1

PROCESSOR = RasaloreImageProcessor(16, 4, view="scan", neighbour_mm=3.0)
STILL = AugmentationRecipe(horizontal_flip=0, intensity_probability=1, noise_probability=1)
FEW = ["loop.max_steps=2", "loop.evaluate_every=2", "loop.tensorboard=false"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with models of both stages that see whole scans."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=5)
    RasaloreConfig(**{**MODEL, "num_channels": 4}).save_pretrained(folder / "model")
    PROCESSOR.save_pretrained(folder / "model")
    clip = {**DdptConfig.preset("base").clip_config.to_dict()}
    clip["vision_config"] = {**clip["vision_config"], "image_size": 16, "patch_size": 4}
    DdptConfig.preset("base", clip_config=clip, heatmap_views=1).save_pretrained(folder / "ddpt")
    names = ["this", "neighbours", "mirror"]
    RasaloreImageProcessor(16, 3, view="scan", channels=names).save_pretrained(folder / "ddpt")
    return folder


def make_batch(study: Path) -> Batch:
    """A batch of the middle slices of one patient, all taken for healthy."""
    patient = find_patients(study / "scans")[0]
    rows = list(read_slices(patient, "t2", skip=4, see=PROCESSOR.see))
    samples = [prepare_masked(PROCESSOR, None, 32, row) for row in rows]
    return collate_masked([{**sample, "healthy": True} for sample in samples])


def painted(study: Path, **fields: float) -> tuple[Batch, Batch]:
    """The same batch before and after painting."""
    before, batch = make_batch(study), make_batch(study)
    torch.manual_seed(0)
    paint_healthy(batch, PROCESSOR, SyntheticLesionRecipe(**fields), "t2")
    return before, batch


def parts(batch: Batch) -> list[Tensor]:
    return [batch[name] for name in ("relative", "brain", "pixel_mm", "mad")]


def test_a_batch_without_paint_is_what_the_processor_says(study: Path) -> None:
    before, batch = make_batch(study), make_batch(study)
    batch["healthy"][:] = False
    paint_healthy(batch, PROCESSOR, SyntheticLesionRecipe(), "t2")
    patient = find_patients(study / "scans")[0]
    rows = list(read_slices(patient, "t2", skip=4, see=PROCESSOR.see))
    images, views = [row.image for row in rows], [row.seen for row in rows]
    expected = PROCESSOR(images, views=views, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected)
    assert batch.keys() == {"pixel_values", "labels"} and before.keys() > {"relative", "mad"}


def test_blank_slices_get_the_brightness_field_of_painted_ones(study: Path) -> None:
    before, batch = painted(study, blank_share=1.0)
    clean = scan_channels(*parts(before), neighbour_mm=3.0)
    assert not batch["labels"].any()
    changed = (batch["pixel_values"] - clean).abs() > 1e-4
    assert changed[:, 0].flatten(1).any(1).all()


def test_the_mirror_is_computed_after_painting_on_all_three_slices(study: Path) -> None:
    before, batch = painted(study)
    clean = scan_channels(*parts(before), neighbour_mm=3.0)
    changed = (batch["pixel_values"] - clean).abs() > 1e-4
    assert changed.flatten(2).any(2).all()  # in every channel of every slice
    again = make_batch(study)
    torch.manual_seed(0)
    paint_slices(again, again["healthy"], PROCESSOR, SyntheticLesionRecipe(), "t2")
    painted_slices = (again["relative"] != before["relative"]).flatten(2).any(2)
    assert painted_slices.all()  # its neighbours too
    expected = scan_channels(*parts(again), neighbour_mm=3.0)
    torch.testing.assert_close(batch["pixel_values"], expected)
    outside = PROCESSOR.levels.outside  # type: ignore[union-attr]
    brain = before["brain"][:, 1, None].expand_as(changed)
    assert (batch["pixel_values"] == outside)[:, [0, 3]][~brain[:, [0, 3]]].all()


# --- Augmentation -------------------------------------------------------------------------------
def augment(pixel_values: Tensor, recipe: AugmentationRecipe) -> Tensor:
    torch.manual_seed(1)
    return augment_batch(pixel_values, {}, recipe, 1.0, PROCESSOR.levels)[0]


def test_contrast_is_around_the_median_and_offset_leaves_the_mirror_alone(study: Path) -> None:
    values = painted(study)[1]["pixel_values"]
    still = augment(values, STILL)
    torch.testing.assert_close(still, values, atol=1e-5, rtol=0)
    inside = still != PROCESSOR.levels.outside  # type: ignore[union-attr]
    contrast = augment(values, replace(STILL, scan_contrast=0.25))
    for before, after, used in zip(still, contrast, inside, strict=True):
        factors = (after / before)[used & (before.abs() > 0.1)]
        assert factors.std() < 1e-3 and np.exp(-0.25) <= factors.mean() <= np.exp(0.25)
    moved = augment(values, replace(STILL, scan_offset=0.3)) - still
    assert not moved[:, 3].any() and moved[:, :3][inside[:, :3]].abs().amax() <= 0.3 + 1e-5
    assert moved[:, :3].flatten(1).abs().amax(1).unique().numel() == len(values)


def test_nothing_changes_outside_the_brain(study: Path) -> None:
    values = painted(study, blank_share=1.0)[1]["pixel_values"]
    recipe = replace(STILL, scan_contrast=0.25, scan_offset=0.3, noise_std=0.08)
    changed, outside = augment(values, recipe), PROCESSOR.levels.outside  # type: ignore[union-attr]
    assert torch.equal(changed == outside, values == outside)
    turned = augment(values, replace(recipe, rotation_degrees=45, rotation_probability=1, zoom=0.2))
    corner = turned[:, :, 0, 0]
    assert torch.equal(corner, outside[:, 0, 0].expand_as(corner))


def test_zoom_is_a_factor_of_the_size() -> None:
    disc = torch.full((64, 1, 64, 64), -2.0)
    disc[:, :, 20:44, 20:44] = 0
    levels = RasaloreImageProcessor(64, 1, view="scan", channels=["this"]).levels
    torch.manual_seed(0)
    changed, _ = augment_batch(disc, {}, replace(STILL, zoom=0.15), 1.0, levels)
    sides = (changed + 2).sum((1, 2, 3)).div(2).sqrt() / 24
    assert 0.83 < sides.min() < 0.92 and 1.08 < sides.max() < 1.2


def test_the_rate_rises_over_its_steps() -> None:
    recipe = OptimizerRecipe(name="adamw", learning_rate=1.0, warmup_steps=4)
    optimizer = build_optimizer(recipe, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    rates = []
    for step in range(6):
        set_learning_rates(optimizer, recipe, step, 1_000_000, 10)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], abs=1e-6)


# --- What is brain, and what is deleted ---------------------------------------------------------
def test_brain_may_be_darker_than_the_background(study: Path) -> None:
    before, batch = painted(study, blank_share=1.0)
    brain = is_brain(batch["pixel_values"], PROCESSOR.levels)
    assert (brain == before["brain"].any(1)).float().mean() > 0.98
    shown: list[Tensor] = []

    def probability(values: Tensor) -> Tensor:
        shown.append(values)
        return values[:, 0].mean((1, 2))

    heat = torch.rand(len(brain), 16, 16)
    deletion_scores(heat, batch["pixel_values"], probability, (0.5,), PROCESSOR.levels)
    changed = (shown[1] != shown[0]).any(1)
    assert changed.any() and not (changed & ~brain).any()
    for values, where in zip(shown[1], changed, strict=True):
        assert all(channel[where].unique().numel() == 1 for channel in values)


# --- End to end ---------------------------------------------------------------------------------
@pytest.mark.usefixtures("own_accelerator")
def test_both_stages_their_masks_and_the_benchmark_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    data = [f"data.root={study / 'scans'}", "data.skip_slices=1"]
    split = ["split.validation=1", "split.test=1"]
    stage1 = [*data, *split, *FEW, f"model={study / 'ddpt'}", f"out={tmp_path / 'ddpt'}"]
    train_stage1(load_recipe(Stage1Recipe, stage1))
    masks = [*data, f"stage1={tmp_path / 'ddpt'}", f"out={tmp_path / 'masks'}"]
    make_pseudo_masks(load_recipe(PseudoMaskRecipe, masks))
    words = [str(study / "training.yaml"), *data, *FEW, "minimum_area=1"]
    words += ["synthetic_lesions.share=0.3", "synthetic_lesions.minimum_brain_area=100"]
    run_stage2([*words, f"pseudo_masks={tmp_path / 'masks'}", f"out={tmp_path / 'rasalore'}"])
    made = json.loads((tmp_path / "rasalore" / "run.json").read_text())
    assert made["training_slices"] > 0 and made["temperature"] != 1
    benchmark(
        [
            *data,
            f"stage1={tmp_path / 'ddpt'}",
            f"rasalore={tmp_path / 'rasalore'}",
            "systems=ddpt,rasalore",
            f"out={tmp_path / 'results'}",
        ]
    )
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert rows and not any("failure" in row for row in rows)
    with pytest.raises(ValueError, match="whole scans takes one sequence, got modality=all"):
        run_stage2([*words, "data.modality=all", f"pseudo_masks={tmp_path / 'masks'}",
                    f"out={tmp_path / 'all'}"])  # fmt: skip
