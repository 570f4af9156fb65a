"""How long a study will take is said in words, from what its unfinished trainings ask for."""

from functools import partial
from pathlib import Path

import pytest
from small_study import write_study

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.studies.steps import Plan, Step
from modeling_rasalore.studies.timing import (
    SliceCost,
    in_words,
    measure,
    seconds_of,
    unfinished_trainings,
)
from modeling_rasalore.training.stage2 import Stage2Recipe, train_stage2


def recipe(out: Path, *words: str) -> Stage2Recipe:
    needed = "model=x", "data.root=x", f"out={out}", "loop.max_steps=100", "loop.evaluate_every=50"
    return load_recipe(Stage2Recipe, [*needed, "loop.batch_size=8", *words])


def test_a_training_costs_its_steps_and_its_validations(tmp_path: Path) -> None:
    # 100 steps of 8 slices at 0.3 s, 2 validations of 10 slices at 0.1 + 0.4 * 0.2 s.
    assert seconds_of(recipe(tmp_path), SliceCost(0.1, 0.2), 10) == pytest.approx(240 + 3.6)


def test_what_is_finished_costs_nothing(tmp_path: Path) -> None:
    plan = Plan()
    for name in ("done", "begun"):
        (tmp_path / name).mkdir()
        told = recipe(tmp_path / name)
        plan.add(Step(name, partial(train_stage2, told), tmp_path / name))
    plan.add(Step("scores", partial(print), tmp_path))
    (tmp_path / "done" / "run.json").write_text("{}")
    assert [told.out for told in unfinished_trainings(plan)] == [str(tmp_path / "begun")]


def test_a_step_is_measured_on_a_patient_s_own_slices(tmp_path: Path) -> None:
    study = write_study(tmp_path, 4)
    told = load_recipe(
        Stage2Recipe,
        [
            str(study / "training.yaml"),
            *(f"data.root={study / 'scans'}", f"out={tmp_path / 'run'}", "loop.max_steps=1"),
            *("synthetic_lesions.share=0.5", "synthetic_lesions.minimum_brain_area=100"),
        ],
    )
    cost = measure(told, find_patients(study / "scans")[0])
    assert 0 < cost.read < 5 and 0 < cost.learn < 5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "about 10 s"), (44, "about 40 s"), (1500, "about 25 min"), (12600, "about 3.5 h")],
)
def test_lengths_of_time_are_for_people(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
