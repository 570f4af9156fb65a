"""Runs are compared without masks, and the oracle is a column that has to be asked for."""

import json
import shutil
from pathlib import Path

import pytest
import small_ddpt
import small_rasalore
from label_files import write_slice_labels
from small_study import MODEL, write_study

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.pseudo_masks.comparison import ComparisonRecipe, compare_runs
from modeling_rasalore.recipes import load_recipe

CHOICES = {"slice_auroc", "false_alarms", "deletion", "agreement"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy study with a stage 1 and three runs, none of which learned anything."""
    folder = write_study(tmp_path_factory.mktemp("study"), patients=5)
    split = folder / "masks" / "split.json"
    small_ddpt.make_model(**small_ddpt.TRAINED).save_pretrained(folder / "stage1")
    RasaloreImageProcessor(32, 3, gamma=1.0).save_pretrained(folder / "stage1")
    shutil.copy(split, folder / "stage1")
    for seed, name in enumerate("abc"):
        model = small_rasalore.make_model(seed, modality="t2")
        model.save_pretrained(folder / name)
        RasaloreImageProcessor(MODEL["image_size"], 1).save_pretrained(folder / name)
        (folder / name / "run.json").write_text("{}")
        shutil.copy(split, folder / name)
    return folder


def words(study: Path, out: Path, *more: str, runs: str = "abc") -> list[str]:
    named = ",".join(str(study / name) for name in runs)
    start = [f"stage1={study / 'stage1'}", f"runs=[{named}]", f"out={out}"]
    return [*start, f"data.root={study / 'scans'}", "data.skip_slices=1", *more]


def compare(words: list[str]) -> None:
    compare_runs(load_recipe(ComparisonRecipe, words))


def test_a_row_per_run_and_a_column_per_criterion(study: Path, tmp_path: Path) -> None:
    compare(words(study, tmp_path))
    choices = json.loads((tmp_path / "choices.json").read_text())
    runs = [str(study / name) for name in "abc"]
    assert list(choices["rows"]) == runs
    assert all(set(values) == CHOICES for values in choices["rows"].values())
    assert all(0 <= values["slice_auroc"] <= 1 for values in choices["rows"].values())
    assert set(choices["chosen_by"].values()) <= set(runs)
    pairs = choices["agreement_of_runs"]
    assert pairs[runs[0]][runs[1]] == pairs[runs[1]][runs[0]] > 0
    table = (tmp_path / "choices.md").read_text()
    assert table.count("\n") == 5 and "Oracle" not in table
    assert {path.name for path in tmp_path.iterdir()} == {"choices.json", "choices.md"}


def test_slice_labels_without_masks_choose_the_same(study: Path, tmp_path: Path) -> None:
    bare = tmp_path / "scans"
    patients = find_patients(study / "scans")
    for patient in patients:
        (bare / patient.patient_id).mkdir(parents=True)
        (scan,) = patient.images.values()
        (bare / patient.patient_id / scan.name).symlink_to(scan)
    write_slice_labels(patients, bare / "slice_labels.csv")
    for name, root in (("with", study / "scans"), ("without", bare)):
        compare(words(study, tmp_path / name, f"data.root={root}"))
    with_masks, without = ((tmp_path / n / "choices.md").read_text() for n in ("with", "without"))
    assert with_masks == without
    with pytest.raises(ValueError, match="oracle=true needs a mask of every validation patient"):
        compare(words(study, tmp_path / "x", f"data.root={bare}", "oracle=true"))


def test_the_oracle_comes_last_and_changes_no_other_column(study: Path, tmp_path: Path) -> None:
    compare(words(study, tmp_path / "plain", runs="ab"))
    compare(words(study, tmp_path / "oracle", "oracle=true", runs="ab"))
    plain, oracle = (
        json.loads((tmp_path / name / "choices.json").read_text()) for name in ("plain", "oracle")
    )
    for run, values in oracle["rows"].items():
        assert 0 <= values.pop("oracle") <= 1
        assert values == plain["rows"][run]
    assert (
        "Oracle: Dice with true masks (no claim) |\n"
        in (tmp_path / "oracle" / "choices.md").read_text()
    )


def test_runs_that_cannot_be_compared_are_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="runs must be different folders"):
        compare(words(study, out, runs="aa"))
    with pytest.raises(ValueError, match=r"holds no finished run of train/stage2\.py"):
        compare(words(study, out, f"runs=[{study / 'masks' / 'masks'}]"))
    with pytest.raises(ValueError, match=r"learned from t2, and data\.modality is flair"):
        compare(words(study, out, "data.modality=flair"))
    other = tmp_path / "other"
    shutil.copytree(study / "a", other)
    split = split_patients(find_patients(study / "scans"), 7, validation=1, test=2)
    write_split(split, other / "split.json")
    with pytest.raises(ValueError, match="was trained on another split"):
        compare(words(study, out, f"runs=[{study / 'a'},{other}]"))
    assert not out.exists()
