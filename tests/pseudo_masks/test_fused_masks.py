"""Pseudo-masks of fused maps, from folders on disk to the table that stage 2 reads."""

import json
import shutil
from pathlib import Path

import blobs  # noqa: F401 - puts train/ on the path
import numpy as np
import pytest
from scipy.special import expit

# isort: split
import small_ddpt
import small_rasalore
from saved_defaults import save_defaults
from small_study import MODEL, write_study

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import stack_slices
from modeling_rasalore.data.splits import read_split
from modeling_rasalore.prediction.free_map import smooth_scores
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.pseudo_masks.fusion import FusedMaker, to_logits
from modeling_rasalore.pseudo_masks.makers import make_pseudo_masks
from modeling_rasalore.pseudo_masks.recipe import PseudoMaskRecipe
from modeling_rasalore.pseudo_masks.table import MaskTable
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.background import brain_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with a stage 1 and a network that learned nothing."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=4)
    small_ddpt.make_model(**small_ddpt.TRAINED).save_pretrained(folder / "stage1")
    RasaloreImageProcessor(32, 3).save_pretrained(folder / "stage1")
    small_rasalore.make_model(modality="t2").save_pretrained(folder / "network")
    RasaloreImageProcessor(MODEL["image_size"], 1).save_pretrained(folder / "network")
    for name in ("stage1", "network"):
        shutil.copy(folder / "masks" / "split.json", folder / name)
    return folder


def recipe_of(study: Path, out: Path, *more: str) -> PseudoMaskRecipe:
    words = [f"stage1={study / 'stage1'}", f"data.root={study / 'scans'}", "data.skip_slices=1"]
    fused = ["source=fused", f"fuse=[{study / 'network'}]", f"out={out}", *more]
    return load_recipe(PseudoMaskRecipe, [*words, *fused])


def test_fused_masks_lie_above_the_level_and_nobody_knows_below_it(
    study: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(study, tmp_path, "fuse_heatmap=true")
    make_pseudo_masks(recipe)
    split = read_split(study / "stage1" / "split.json", find_patients(study / "scans"))
    maker = FusedMaker(recipe, split["train"])
    patient = split["train"][0]
    table = MaskTable(tmp_path, [patient.patient_id])
    assert len(table)
    for example, maps in maker.map_slices(patient, {UNHEALTHY}):
        stored = table[patient.patient_id, example.slice_index]
        fused, brain = maker.fusion.fuse(maps), brain_of(example.image)
        np.testing.assert_array_equal(stored.pseudo_mask, brain & (fused > maker.fusion.positive))
        unknown = (fused > maker.fusion.negative) & (fused <= maker.fusion.positive)
        np.testing.assert_array_equal(stored.ignored, brain & unknown)
        assert set(maps) == {"heatmap", "network 1", "free_map"}
    made = json.loads((tmp_path / "run.json").read_text())
    assert made["source"] == "fused" and made["networks"] == [str(study / "network")]
    assert made["weights"] == pytest.approx(list(maker.fusion.weights))
    assert sum(made["weights"]) == pytest.approx(1)


def test_masks_that_are_all_there_are_not_fitted_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(study, tmp_path)
    make_pseudo_masks(recipe)
    tables = sorted((tmp_path / "masks").iterdir())
    written = [(path.read_bytes(), path.stat().st_mtime_ns) for path in tables]
    with monkeypatch.context() as patch:
        patch.setattr(FusedMaker, "__init__", lambda *_: pytest.fail("fitted again"))
        assert make_pseudo_masks(recipe) == tmp_path
    assert capsys.readouterr().out.splitlines()[-1] == f"done before: {tmp_path}"
    # One that is lost is made again, as it was, and the others are left alone.
    tables[0].unlink()
    make_pseudo_masks(recipe)
    assert tables[0].read_bytes() == written[0][0]
    assert [path.stat().st_mtime_ns for path in tables[1:]] == [time for _, time in written[1:]]


def test_a_network_that_was_trained_anew_makes_no_masks_beside_those_of_the_old_one(
    study: Path, tmp_path: Path
) -> None:
    network = shutil.copytree(study / "network", tmp_path / "network")
    recipe = recipe_of(study, tmp_path / "masks", f"fuse=[{network}]")
    make_pseudo_masks(recipe)
    small_rasalore.make_model(seed=1, modality="t2").save_pretrained(network)
    with pytest.raises(ValueError, match="holds masks made with other settings"):
        make_pseudo_masks(recipe)


def test_one_hundredth_of_healthy_brain_lies_above_the_level(study: Path, tmp_path: Path) -> None:
    split = read_split(study / "stage1" / "split.json", find_patients(study / "scans"))
    maker = FusedMaker(
        recipe_of(study, tmp_path, "equal_weights=true", "fuse_heatmap=true"), split["train"]
    )
    inside = [
        maker.fusion.fuse(maps)[brain_of(example.image)]
        for patient in split["train"]
        for example, maps in maker.map_slices(patient, {HEALTHY})
    ]
    share = np.mean(np.concatenate(inside) > maker.fusion.positive)
    assert share == pytest.approx(0.01, abs=0.003)
    assert maker.fusion.weights == (1 / 3,) * 3


def test_networks_are_blurred_as_their_folders_say_and_heatmaps_stay_out(
    study: Path, tmp_path: Path
) -> None:
    blurred = shutil.copytree(study / "network", tmp_path / "blurred")
    save_defaults(blurred, PredictionOptions(smooth_mm=4.0), "nothing")
    split = read_split(study / "stage1" / "split.json", find_patients(study / "scans"))
    patient = split["train"][0]
    recipe = recipe_of(study, tmp_path / "out", f"fuse=[{study / 'network'},{blurred}]")
    maker = FusedMaker(recipe, split["train"])
    assert maker.names == ("network 1", "network 2", "free_map")
    both = list(maker.map_slices(patient, {HEALTHY, UNHEALTHY}))
    scan = maker.read(patient, None)
    indices = [example.slice_index for example in scan]
    brain = stack_slices([example.image for example in scan], indices) > 0
    every = [maps for _, maps in maker.map_slices(patient, {example.label for example in scan})]
    scores = stack_slices([expit(maps["network 1"]) for maps in every], indices)
    smooth_scores(scores, brain, scan[0].spacing, 4.0)
    for example, maps in both:
        expected = to_logits(scores[example.slice_index - indices[0]])
        np.testing.assert_allclose(maps["network 2"], expected, atol=1e-4)


def test_a_network_of_other_patients_is_refused(study: Path, tmp_path: Path) -> None:
    other = shutil.copytree(study / "network", tmp_path / "other")
    content = json.loads((other / "split.json").read_text())
    content["train"], content["test"] = content["test"], content["train"]
    (other / "split.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"split"):
        make_pseudo_masks(recipe_of(study, tmp_path / "out", f"fuse=[{other}]"))


def test_networks_are_named_for_fused_maps_only(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fuse names networks for source=fused, got source=ddpt"):
        make_pseudo_masks(recipe_of(study, tmp_path / "out", "source=ddpt"))


def test_logits_of_the_surest_scores_are_finite() -> None:
    logits = to_logits(np.array([0, 0.5, 1], np.float32))
    assert np.isfinite(logits).all() and logits[1] == 0
