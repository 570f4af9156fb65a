"""A round of self-training: a teacher's scores become masks, except where it is unsure."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import blobs  # noqa: F401 - puts train/ on the path
import numpy as np
import pytest

# isort: split
import small_ddpt
import small_rasalore
from safetensors.torch import load_file
from small_study import MODEL, run_stage2, write_study

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.benchmark.trained import Stage1Heatmap
from modeling_rasalore.data.labels import UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.volume import predict_slices
from modeling_rasalore.pseudo_masks.makers import make_pseudo_masks
from modeling_rasalore.pseudo_masks.recipe import PseudoMaskRecipe
from modeling_rasalore.pseudo_masks.table import MaskTable, write_masks
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training.examples import collate_masked

FEW = ["loop.max_steps=3", "loop.evaluate_every=1", "loop.tensorboard=false"]


pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with a teacher that learned nothing; masks/ stands for stage 1's split too."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=4)
    small_rasalore.make_model(modality="t2").save_pretrained(folder / "teacher")
    RasaloreImageProcessor(MODEL["image_size"], 1).save_pretrained(folder / "teacher")
    (folder / "teacher" / "run.json").write_text("{}")
    shutil.copy(folder / "masks" / "split.json", folder / "teacher")
    return folder


def words(study: Path, out: Path, *more: str) -> list[str]:
    start = [f"stage1={study / 'masks'}", f"data.root={study / 'scans'}", "data.skip_slices=1"]
    return [*start, f"out={out}", f"teacher={study / 'teacher'}", *more]


def run_maker(words: list[str]) -> None:
    make_pseudo_masks(load_recipe(PseudoMaskRecipe, words))


def train(study: Path, out: Path, *more: str) -> None:
    run_stage2([str(study / "training.yaml"), f"data.root={study / 'scans'}", f"out={out}", *FEW,
                 *more])  # fmt: skip


def test_certain_pixels_become_masks_and_uncertain_ones_are_marked(
    study: Path, tmp_path: Path
) -> None:
    patient = find_patients(study / "scans")[0]
    rows = list(read_slices(patient, "t2", skip=1, labels={UNHEALTHY}))
    network = load_model(str(study / "teacher"))
    scores = predict_slices(*network, [row.image for row in rows], 4, flips=True)
    inside = np.concatenate([one[one > 0] for one in scores])
    low, high = (float(v) for v in np.quantile(inside, [0.3, 0.8]))
    run_maker(words(study, tmp_path, f"uncertain_above={low}", f"uncertain_up_to={high}"))
    table = MaskTable(tmp_path, [patient.patient_id])
    for row, one in zip(rows, scores, strict=True):
        stored = table[patient.patient_id, row.slice_index]
        np.testing.assert_array_equal(stored.pseudo_mask, one > high)
        np.testing.assert_array_equal(stored.ignored, (one > low) & (one <= high))
        assert stored.area == pytest.approx(4.0 * (one > high).sum())
    made = json.loads((tmp_path / "run.json").read_text())
    assert (made["source"], made["teacher"]) == ("teacher", str(study / "teacher"))
    assert (made["uncertain_above"], made["uncertain_up_to"]) == (low, high)


def test_what_a_teacher_is_sure_of_prompts_the_segmenter(
    study: Path, sam_folder: Path, tmp_path: Path
) -> None:
    more = ["uncertain_above=0.05", "uncertain_up_to=0.1", f"segmenter={sam_folder}"]
    run_maker(words(study, tmp_path, *more))
    table = MaskTable(tmp_path, [path.stem for path in (tmp_path / "masks").iterdir()])
    assert len(table) and all(table[key].sam_mask is not None for key in table)
    made = json.loads((tmp_path / "run.json").read_text())
    assert made["segmenter"] == str(sam_folder)


def test_stage_2_learns_from_a_running_mean_that_taught_it(study: Path, tmp_path: Path) -> None:
    train(study, tmp_path / "teacher", "loop.ema=0.9")
    made = words(study, tmp_path / "round_1", f"teacher={tmp_path / 'teacher'}",
                 "uncertain_above=0.05", "uncertain_up_to=0.1")  # fmt: skip
    run_maker(made)
    train(study, tmp_path / "student", f"pseudo_masks={tmp_path / 'round_1'}", "minimum_area=1")
    summary = json.loads((tmp_path / "student" / "run.json").read_text())
    assert summary["pseudo_masks"]["teacher"] == str(tmp_path / "teacher")
    assert 0 <= summary["best_score"] <= 1


def with_ignored_square(study: Path, out: Path, under_it: int) -> Path:
    """The study's masks with a square to ignore across each lesion, and a value under it."""
    shutil.copytree(study / "masks", out)
    for path in sorted((out / "masks").iterdir()):
        table, changed = MaskTable(study / "masks", [path.stem]), []
        for key in table:
            mask, ignored = table[key].pseudo_mask.copy(), np.zeros((32, 32), np.uint8)
            ignored[6:14, 4:30] = 1
            mask[ignored > 0] = under_it
            changed.append(replace(table[key], pseudo_mask=mask, ignored=ignored))
        write_masks(out, path.stem, changed)
    return out


def test_what_a_table_says_of_ignored_pixels_changes_no_weight_and_no_choice(
    study: Path, tmp_path: Path
) -> None:
    """Through crop, turns, flips, every loss and the validation: two tables, one network."""
    for value in (0, 1):
        masks = with_ignored_square(study, tmp_path / f"masks_{value}", value)
        train(study, tmp_path / f"run_{value}", f"pseudo_masks={masks}", "minimum_area=1")
    train(study, tmp_path / "plain", "minimum_area=1")
    runs = [tmp_path / name for name in ("run_0", "run_1", "plain")]
    scores = [json.loads((run / "run.json").read_text())["best_score"] for run in runs]
    zero, one, plain = (load_file(run / "model.safetensors") for run in runs)
    assert scores[0] == scores[1] != scores[2]
    assert all(zero[name].equal(one[name]) for name in zero)
    assert not all(zero[name].equal(plain[name]) for name in zero)


def test_a_painted_slice_ignores_nothing() -> None:
    slices = [{"pixel_values": np.zeros((1, 4, 4)), "labels": np.zeros((8, 8), np.uint8),
               "healthy": healthy} for healthy in (True, False)]  # fmt: skip
    slices[1]["ignored"] = np.ones((8, 8), np.uint8)
    batch = collate_masked(slices)
    assert batch["ignored"].flatten(1).sum(1).tolist() == [0, 64]
    assert "sam_masks" not in batch


def test_stage_1_is_scored_by_the_poster_s_rule_where_a_teacher_made_the_masks(
    tmp_path: Path,
) -> None:
    small_ddpt.make_model(**small_ddpt.TRAINED).save_pretrained(tmp_path / "stage1")
    RasaloreImageProcessor(32, 3, gamma=1.0).save_pretrained(tmp_path / "stage1")
    (tmp_path / "stage2").mkdir()
    for name, made in (("stage1", {}), ("stage2", {"teacher": "x"})):
        (tmp_path / name / "run.json").write_text(json.dumps({"pseudo_masks": made}))
    rule = Stage1Heatmap(tmp_path / "stage1", str(tmp_path / "stage2")).rule
    assert (rule.threshold, rule.filter_reach) == (0.5, 0)


def test_a_teacher_that_cannot_teach_is_refused(study: Path, tmp_path: Path) -> None:
    def complaint(*more: str) -> str:
        with pytest.raises(ValueError) as error:
            run_maker(words(study, tmp_path / "out", *more))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    other = tmp_path / "other"
    shutil.copytree(study / "teacher", other)
    split = split_patients(find_patients(study / "scans"), 7, validation=1, test=2)
    write_split(split, other / "split.json")
    assert "was trained on another split" in complaint(f"teacher={other}")
    assert "learned from t2, and data.modality is flair" in complaint("data.modality=flair")
    (tmp_path / "unfinished").mkdir()
    shutil.copy(study / "masks" / "split.json", tmp_path / "unfinished")
    assert "holds no run.json" in complaint(f"teacher={tmp_path / 'unfinished'}")
    heat = ["source=truth", "filter_reach=0.1", f"appearance={study / 'teacher'}"]
    assert "leave out source and filter_reach and appearance, or teacher." in complaint(*heat)
    assert "got 0.7 and 0.3" in complaint("uncertain_above=0.7", "uncertain_up_to=0.3")
