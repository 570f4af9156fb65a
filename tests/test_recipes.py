"""Recipes: what is written is what runs, and every mistake is named with a way out."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from omegaconf import DictConfig, OmegaConf

from modeling_rasalore.recipes import (
    BaseRecipe,
    LoopRecipe,
    SplitRecipe,
    describe_script,
    load_recipe,
    run_script,
    save_recipe,
    sections_of,
)
from modeling_rasalore.training.augmentation import AugmentationRecipe
from modeling_rasalore.training.optimizers import OptimizerRecipe

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "train").glob("*.py"))
    if "def main(recipe: " in path.read_text("utf-8")
]
NEEDED = ["model=m", "out=o", "data.root=scans"]


@dataclass
class FullRecipe(BaseRecipe):
    """A recipe with every section, as the training scripts have."""

    split: SplitRecipe = field(default_factory=SplitRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    augmentation: AugmentationRecipe = field(default_factory=AugmentationRecipe)
    note: str | None = None


def write(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def complaint(*words: str) -> str:
    """What load_recipe says about these words: one sentence on one line."""
    with pytest.raises(ValueError) as error:
        load_recipe(FullRecipe, [*NEEDED, *words])
    message = str(error.value)
    assert "\n" not in message
    return message


# --- What is written is what runs -------------------------------------------------------------


def test_words_set_fields_of_sections_with_their_types() -> None:
    words = ["loop.epochs=7", "loop.tensorboard=false", "optimizer.learning_rate=1e-3", "note=hi"]
    recipe = load_recipe(FullRecipe, [*NEEDED, *words])
    assert isinstance(recipe, FullRecipe) and recipe.data.root == "scans"
    assert recipe.loop.epochs == 7 and recipe.loop.tensorboard is False
    assert recipe.optimizer.learning_rate == 1e-3 and recipe.note == "hi"


def test_what_is_not_written_keeps_its_default() -> None:
    recipe = load_recipe(FullRecipe, NEEDED)
    assert recipe == FullRecipe(model="m", out="o", data=recipe.data)
    assert recipe.data.modality == "t2" and recipe.note is None


def test_later_words_win() -> None:
    recipe = load_recipe(FullRecipe, [*NEEDED, "loop.epochs=2", "loop.epochs=3"])
    assert recipe.loop.epochs == 3


def test_later_files_win_and_words_win_over_files_wherever_they_stand(tmp_path: Path) -> None:
    first = write(tmp_path, "loop: {epochs: 2, seed: 2, workers: 2}", "a.yaml")
    second = write(tmp_path, "loop: {epochs: 3, seed: 3}", "b.yml")
    loop = load_recipe(FullRecipe, [*NEEDED, "loop.epochs=4", first, second]).loop
    assert (loop.epochs, loop.seed, loop.workers) == (4, 3, 2)


def test_a_value_may_hold_an_equals_sign_and_end_like_a_file() -> None:
    recipe = load_recipe(FullRecipe, [*NEEDED, "out=runs/lr=1", "note=see.yaml"])
    assert recipe.out == "runs/lr=1" and recipe.note == "see.yaml"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    words = [write(tmp_path, "# nothing yet\n"), *NEEDED]
    assert load_recipe(FullRecipe, words) == load_recipe(FullRecipe, NEEDED)


def test_a_saved_recipe_loads_as_it_was(tmp_path: Path) -> None:
    words = ["loop.epochs=7", "optimizer.learning_rate=1.25e-7", "note=null", "split.test=3"]
    recipe = load_recipe(FullRecipe, [*NEEDED, *words])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(FullRecipe, [str(tmp_path / "recipe.yaml")]) == recipe


def test_two_recipes_share_nothing() -> None:
    first, second = load_recipe(FullRecipe, NEEDED), load_recipe(FullRecipe, NEEDED)
    first.loop.epochs = 99
    assert second.loop == LoopRecipe()


def test_patients_of_a_split_are_counts_from_one_on_and_shares_below() -> None:
    asked = {"validation": 0.1, "test": 74, "folds": 0, "fold": 0, "file": ""}
    assert SplitRecipe(validation=0.1, test=74).amounts() == asked
    assert isinstance(SplitRecipe(test=1.0).amounts()["test"], int)


@pytest.mark.parametrize("path", sorted((ROOT / "hub_configs").glob("*/training.yaml")), ids=str)
def test_sections_of_published_recipes_hold_known_keys_of_the_right_type(path: Path) -> None:
    published = OmegaConf.load(path)
    assert isinstance(published, DictConfig)
    for name in ("data", "split", "optimizer", "augmentation", "loop"):
        section = OmegaConf.structured(getattr(FullRecipe(), name))
        OmegaConf.merge(section, published.get(name, {}))


# --- Mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("loop.epoch=2", "loop.epochs"),
        ("optimizer.learningrate=1", "optimizer.learning_rate"),
        ("splits.seed=1", "split.seed"),
        ("mdoel=x", "model"),
        ("model.size=3", "model"),
    ],
)
def test_an_unknown_key_names_the_nearest(word: str, nearest: str) -> None:
    assert complaint(word) == (
        f"unknown recipe key {word.split('=')[0]!r}; the nearest is {nearest!r}."
    )


def test_an_unknown_key_of_a_file_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "loop:\n  batchsize: 3\n")
    assert "'loop.batchsize'; the nearest is 'loop.batch_size'" in complaint(path)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("loop.epochs=two", ["loop.epochs", "'two'", "Integer"]),
        ("loop.batch_size=1.5", ["loop.batch_size", "1.5", "Integer"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "'fast'", "Float"]),
        ("loop.tensorboard=perhaps", ["loop.tensorboard", "'perhaps'", "bool"]),
        ("loop.epochs=", ["loop.epochs", "None"]),
        ("data.root=null", ["data.root", "None"]),
        ("data=3", ["DataRecipe", "3"]),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(word: str, parts: list[str]) -> None:
    message = complaint(word)
    assert [part for part in parts if part not in message] == []


def test_a_value_that_is_needed_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"data\.root, out: add data\.root=\.\.\. to the command"):
        load_recipe(FullRecipe, ["model=m"])


def test_a_word_without_a_value_is_refused() -> None:
    assert complaint("loop.epochs") == "expected key=value or a .yaml file, got 'loop.epochs'."


def test_a_program_keeps_its_own_excepthook() -> None:
    code = "import sys; sys.excepthook = print; import modeling_rasalore.recipes; "
    code += "assert sys.excepthook is print"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_does_not_exist_is_named() -> None:
    assert complaint("nowhere.yaml") == "there is no recipe file 'nowhere.yaml'."


@pytest.mark.parametrize("text", ["loop: [1", "a: b: c", "\tloop: 1"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    assert complaint(write(tmp_path, text)).startswith("a recipe must be valid YAML")


def test_a_file_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    assert "`key: value` lines" in complaint(write(tmp_path, "- 1\n- 2\n"))


# --- Scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_field_of_every_script_s_recipe_has_a_meaning(name: str) -> None:
    script = import_module(name)
    (schema,) = [kind for key, kind in get_type_hints(script.main).items() if key == "recipe"]
    sections = list(sections_of(schema()))
    assert [heading for heading, _ in sections if heading.endswith(": ")] == []
    assert [word for _, rows in sections for word, _, meaning in rows if not meaning] == []
    assert max(map(len, describe_script("", schema).splitlines())) <= 100


def test_help_shows_commands_and_fields_with_types_and_defaults() -> None:
    command = [sys.executable, "train/stage2.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("    accelerate launch ") == 2
    lines = {line.split("  ")[1]: line for line in done.stdout.splitlines() if line[:2] == "  "}
    assert lines["out=..."].split() == ["out=...", "str", "folder", "of", "the", "run."]
    assert " float  mm2 of pseudo-mask " in lines["minimum_area=200.0"]
    assert "\nloop: how long a run is" in done.stdout and "loop.tensorboard=true" in lines


def exit_code(main: Callable[[Any], int | None], *words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        run_script(main, words)
    return ended.value.code


def test_a_script_ends_with_what_its_main_returns_or_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(recipe: FullRecipe) -> int | None:
        if recipe.note == "interrupt":
            raise KeyboardInterrupt
        if recipe.note == "refuse":
            raise ValueError("first line\nsecond line")
        return 3 if recipe.note == "three" else None

    assert exit_code(main, *NEEDED) is None
    assert exit_code(main, *NEEDED, "note=three") == 3
    assert exit_code(main, *NEEDED, "note=refuse") == "error: first line"
    assert exit_code(main, *NEEDED, "nota=x").startswith("error: unknown recipe key 'nota'")
    assert exit_code(main, *NEEDED, "note=interrupt") == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:  # as accelerate's launcher sets it
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert exit_code(main, *NEEDED, "note=refuse") == (
            "error: first line (The traceback of accelerate below says no more than that.)"
        )
    assert exit_code(main, "--help") == 0
    assert "note=null" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["stage1", "prepare_slices"])
def test_an_interrupt_while_a_script_starts_is_one_line(tmp_path: Path, script: str) -> None:
    text = (ROOT / "train" / f"{script}.py").read_text("utf-8")
    first, line, rest = text.partition("from modeling_rasalore import recipes")
    (tmp_path / "script.py").write_text(f"{first}{line}\nraise KeyboardInterrupt\n{rest}", "utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr == "interrupted; the same command goes on from here.\n"


def test_help_shows_the_defaults_of_this_recipe_not_of_its_sections() -> None:
    stage1 = import_module("modeling_rasalore.training.stage1").Stage1Recipe
    assert "synthetic_lesions.blank_share=0.5 " in describe_script("", stage1)
