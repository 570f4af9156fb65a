"""Folds: both stages share patients out alike."""

from pathlib import Path

import pytest
from small_study import write_scans

from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.splits import split_patients
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.training.stage1 import Stage1Recipe, train_stage1
from modeling_rasalore.training.stage2 import Stage2Recipe, open_split

FOLDS = ["split.validation=1", "split.seed=3", "split.folds=3"]


def test_both_stages_know_folds(tmp_path: Path) -> None:
    scans = write_scans(tmp_path, 6)
    words = [f"data.root={scans}", "model=hub_configs/ddpt-tiny", f"out={tmp_path}", *FOLDS]
    with pytest.raises(ValueError, match=r"split\.fold must be 1 to 3"):
        train_stage1(load_recipe(Stage1Recipe, [*words, "split.fold=4"]))
    for fold in (1, 2, 3):
        recipe = load_recipe(Stage2Recipe, [*words, f"split.fold={fold}"])
        expected = split_patients(find_patients(scans), 3, validation=1, folds=3, fold=fold)
        assert open_split(recipe) == expected
        assert len(expected["test"]) == 2
