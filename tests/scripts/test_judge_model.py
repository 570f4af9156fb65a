"""The script that judges a finished model, on synthetic patients."""

import json
from dataclasses import replace
from pathlib import Path

import judge_model
import numpy as np
import pytest
from small_study import write_scans

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.recipes import DataRecipe


def recipe_of(folder: Path) -> judge_model.JudgeRecipe:
    write_scans(folder / "patients", 2)
    write_scans(folder / "healthy", 3, seed=1)
    return judge_model.JudgeRecipe(
        out=str(folder / "out"),
        data=DataRecipe(str(folder / "patients"), "t2"),
        healthy=str(folder / "healthy"),
        rates=[0.01, 0.2],
        least_pixels=5,
    )


def test_a_model_is_judged_at_each_rate_beside_maps_that_learn_nothing(tmp_path: Path) -> None:
    judge_model.main(recipe_of(tmp_path))
    judged = json.loads((tmp_path / "out" / "judged.json").read_text())
    rows = {row["row"]: row for row in judged["rows"]}
    assert list(rows) == ["model", "mirror", "smoothed_rank", "model, 1 %", "model, 20 %"]
    assert judged["patients"] == 2
    few, many = rows["model, 1 %"], rows["model, 20 %"]
    assert many["threshold"] < few["threshold"]  # who may mark more, marks more
    assert many["marked"][0] > few["marked"][0]
    assert few["precisions"] == rows["model"]["precisions"]  # of the same scores
    table = (tmp_path / "out" / "judged.md").read_text()
    assert all(f"| {name} |" in table for name in rows)
    precision, low, high = rows["model"]["precisions_above_mirror"]
    assert precision == pytest.approx(
        rows["model"]["precisions"][0] - rows["mirror"]["precisions"][0]
    )
    assert low <= precision <= high


def test_patients_without_the_sequence_are_one_clear_error(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    recipe.data.modality = "flair"
    with pytest.raises(ValueError, match="holds no patient with a mask and a flair scan"):
        judge_model.main(recipe)


def test_a_slice_counts_by_its_lesion(tmp_path: Path) -> None:
    (patient,) = find_patients(write_scans(tmp_path, 1))
    volume = judge_model.read_patient(patient, "t2")
    brain = volume.slices[:3] > 0
    volume = replace(volume, slices=volume.slices[:3])
    truth = np.zeros(brain.shape, bool)
    truth[0, 12:16, 12:16] = truth[1, 12, 12] = True  # 16 pixels; one, too few; none
    scores = np.where(truth, 0.9, 0.1)
    scores[2, 14, 12:16] = 0.8
    found = judge_model.tally(scores, scores > 0.5, truth, volume, least_pixels=5)
    assert (found.precisions, found.dices) == ([1.0], [1.0])
    assert found.healthy == [4, brain[2].sum()]
    twice = judge_model.make_row("mirror", {"mirror": [found, found]}, 0.5, seed=0)
    assert twice["marked"] == pytest.approx([100 * 4 / brain[2].sum()] * 3)
