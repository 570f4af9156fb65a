"""What the documents say exists, exists: scripts, recipes, make targets, recipe keys."""

import re
import shlex
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from modeling_rasalore.recipes import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LINE = re.compile(r"^(?:accelerate launch|python) (.+)$", re.MULTILINE)
COMMANDS = LINE.findall(README.replace("\\\n", ""))
PAGES = ("README.md", "BENCHMARK.md", "EVIDENCE.md")
SCHEMAS = {"stage1": "Stage1Recipe", "stage2": "Stage2Recipe"}
SCHEMAS |= {"make_pseudo_masks": "PseudoMaskRecipe", "run_benchmark": "BenchmarkRecipe"}
SCHEMAS |= {"push_to_hub": "PushRecipe", "prepare_slices": "PrepareRecipe"}
SCHEMAS |= {"study": "StudyRecipe", "pool_folds": "PoolRecipe", "compare_runs": "ComparisonRecipe"}
SCHEMAS |= {"scale": "ScaleRecipe", "judge_model": "JudgeRecipe"}
TRAINING_COMMANDS = [
    command
    for page in PAGES
    for command in LINE.findall((ROOT / "train" / page).read_text().replace("\\\n", ""))
    if Path(command.split()[0]).stem in SCHEMAS and "--help" not in command
]


def script(name: str) -> ModuleType:
    """A training script as a module, without running it."""
    (path,) = [*(ROOT / "train").glob(f"{name}.py"), *(ROOT / "train/plain").glob(f"{name}.py")]
    spec = spec_from_file_location(f"script_{name}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(ROOT / "train"))
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


@pytest.mark.parametrize("command", [*COMMANDS, *TRAINING_COMMANDS])
def test_every_training_command_of_the_readmes_is_a_valid_recipe(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path, *words = shlex.split(command, comments=True)
    name = Path(path).stem
    schema = getattr(script(name), SCHEMAS[name])
    assert isinstance(load_recipe(schema, words), schema)


def test_the_documents_show_a_command_of_every_script() -> None:
    shown = {Path(command.split()[0]).stem for command in [*COMMANDS, *TRAINING_COMMANDS]}
    assert shown == set(SCHEMAS)


@pytest.mark.parametrize("recipe", sorted((ROOT / "hub_configs").glob("*/training.yaml")))
def test_every_published_recipe_fits_its_script(recipe: Path) -> None:
    name = "stage1" if recipe.parent.name.startswith("ddpt") else "stage2"
    words = [str(recipe), "data.root=x", "out=y", *(["pseudo_masks=z"] if name == "stage2" else [])]
    loaded = load_recipe(getattr(script(name), SCHEMAS[name]), words)
    assert loaded.model == f"hub_configs/{recipe.parent.name}"


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ROOT.glob("*.md"):
        named = set(re.findall(r"make (\w+)(?=[`\s])", document.read_text()))
        assert named & {"demo", "test", "lint", "clean"} <= targets


def test_the_first_command_stands_in_the_first_forty_lines() -> None:
    head = "\n".join(README.splitlines()[:40])
    assert "make demo" in head
    assert "AutoModel.from_pretrained" in head
    assert "rasalore predict" in head
