"""The control of rows that start from another: the same start, as many steps, painted lesions."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from modeling_rasalore.benchmark.output import compare_controlled
from modeling_rasalore.benchmark.own import CONTROL, OWN_ROWS, TrainedRuns, controlled_rows
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.studies.recipe import StudyRecipe
from modeling_rasalore.studies.steps import Line
from modeling_rasalore.training.stage2 import Stage2Recipe


def finished(folder: Path, *words: str, steps: int = 400) -> str:
    """A finished run of stage 2, as far as a control is compared with it."""
    recipe = load_recipe(Stage2Recipe, [f"out={folder}", "model=m", "data.root=scans",
                                        "initial_weights=start", *words])  # fmt: skip
    folder.mkdir()
    OmegaConf.save(OmegaConf.structured(recipe), folder / "recipe.yaml")
    (folder / "run.json").write_text(json.dumps({"steps": steps}))
    return str(folder)


def runs(folder: Path, control: str = "synthetic_lesions.share=1", steps: int = 400) -> TrainedRuns:
    """RASALoRE, its ceiling from the same start, one with SAM from random weights, a control."""
    masks = "pseudo_masks=masks", "synthetic_lesions.share=0.3"
    return TrainedRuns(
        rasalore=finished(folder / "rasalore", *masks),
        ceiling=finished(folder / "ceiling", *masks, "pseudo_masks=true_masks"),
        rasalore_with_sam=finished(folder / "with_sam", *masks, "initial_weights=''"),
        rasalore_control=finished(folder / "control", control, steps=steps),
    )


def test_a_control_is_of_the_rows_with_its_start_and_steps(tmp_path: Path) -> None:
    assert controlled_rows(runs(tmp_path)) == ["rasalore", "ceiling"]
    assert controlled_rows(TrainedRuns(rasalore="x")) == []
    (row,) = [row for row in OWN_ROWS if row.name == CONTROL]
    assert row.title == "Control of RASALoRE (painted lesions alone)"


@pytest.mark.parametrize(
    ("control", "steps", "message"),
    [
        ("synthetic_lesions.share=0.5", 400, "initial_weights and synthetic_lesions.share=1, got"),
        ("initial_weights=''", 400, "must be a run with initial_weights"),
        ("synthetic_lesions.share=1", 200, "differ in steps; train it with the same words"),
    ],
)
def test_a_run_that_is_no_control_is_refused(
    control: str, steps: int, message: str, tmp_path: Path
) -> None:
    given = runs(tmp_path, control, steps)
    with pytest.raises(ValueError, match=message):
        controlled_rows(given)
    (tmp_path / "control" / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"control holds no recipe.yaml, which says how"):
        controlled_rows(given)


def test_a_study_s_control_repeats_rasalore_without_its_pseudo_masks(tmp_path: Path) -> None:
    study = StudyRecipe(
        out=str(tmp_path), stage2=["loop.max_steps=7", "synthetic_lesions.share=0.5"]
    )
    line, places = Line(study, "scans", seed=3), (tmp_path / "masks", tmp_path / "start")
    learnt, control = (
        make("title", tmp_path / "out", *places).work.args[0]
        for make in (line.continue_stage2, line.control_stage2)
    )
    assert (learnt.synthetic_lesions.share, control.synthetic_lesions.share) == (0.5, 1)
    control.synthetic_lesions.share = 0.5
    assert control == learnt


def test_differences_from_the_control_are_those_of_its_rows() -> None:
    shown: dict[str, Any] = {"view": "paper", "threshold": "0.5", "modality": "t2", "patients": 2}
    systems = {CONTROL: 0.5, "rasalore": 0.75, "mirror": 0.6}
    rows = [
        shown | {"system": system, "title": system, "dice_by_patient": {"a": [d, 1], "b": [d, 1]}}
        for system, d in systems.items()
    ]
    (difference,) = compare_controlled(rows, ["rasalore", "ceiling"], seed=0)
    assert (difference["system"], difference["reference"]) == ("rasalore", CONTROL)
    assert difference["dice_difference"] == pytest.approx(0.25)
