"""The rules of the house: imports point one way, and published files stand on their own."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from import_tables import (
    FORBIDDEN,
    HUB_LIBRARIES,
    HUB_RING,
    MODULES,
    NEEDS_TRAIN_EXTRA,
    OWNERS,
    SPACE,
    USER_LIBRARIES,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_rasalore"


@dataclass(frozen=True)
class Import:
    """One imported module, "" for `from . import x`, with where and how it is imported."""

    name: str
    level: int = 0  # leading dots
    lazy: bool = False  # inside a function
    guarded: bool = False  # inside a try block

    @property
    def library(self) -> str:
        return "" if self.level else self.name.split(".")[0]


def find_imports(
    node: ast.AST, lazy: bool = False, guarded: bool = False, level: int = 0
) -> Iterator[Import]:
    """Yield every import below `node`, in functions and try blocks too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, 0, lazy, guarded) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield Import(child.module or "", child.level, lazy, guarded)
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from find_imports(child, inside, guarded or isinstance(child, ast.Try))


def check_module(name: str, source: str) -> list[str]:
    """Return every broken import rule of one module of the package."""
    if name not in MODULES:
        return [f"{name}: not in the table of modules; add it with the siblings it may import"]
    problems = []
    for found in find_imports(ast.parse(source)):
        if found.level or found.library == PACKAGE.name:
            problems += check_sibling(name, found)
        elif found.library not in sys.stdlib_module_names:
            problems += check_library(name, found)
        if found.library in FORBIDDEN:
            problems.append(f"{name}: imports {found.library}, but {FORBIDDEN[found.library]}")
    return problems


def check_sibling(name: str, found: Import) -> list[str]:
    if found.level != 1 or not found.name or "." in found.name:
        return [f"{name}: only `from .name import Thing` survives a flat copy"]
    if found.name not in MODULES[name]:
        return [f"{name}: must not import .{found.name}"]
    if name not in NEEDS_TRAIN_EXTRA and found.name in NEEDS_TRAIN_EXTRA and not found.lazy:
        return [f"{name}: imports .{found.name}, which needs the train extra, when it is loaded"]
    return []


def check_library(name: str, found: Import) -> list[str]:
    owners = OWNERS.get(found.library)
    if owners and name not in owners:
        return [f"{name}: only {' and '.join(sorted(owners))} import {found.library}"]
    if found.library == "nibabel":
        return []
    if name in HUB_RING and found.library not in HUB_LIBRARIES and not found.guarded:
        return [f"{name}: everyone who loads the model would need {found.library}"]
    if name not in NEEDS_TRAIN_EXTRA and found.library not in USER_LIBRARIES and not found.lazy:
        return [f"{name}: {found.library} is not an inference dependency; import it where used"]
    return []


def check_script(path: str, source: str, scripts: set[str]) -> list[str]:
    """Return every broken import rule of a file of train/."""
    problems = []
    for found in find_imports(ast.parse(source)):
        words = set(found.name.split("."))
        if found.library in scripts or (found.library == "train" and words & scripts):
            problems.append(f"{path}: imports the script {found.name}")
        if found.level and Path(path).parent.name == "train":
            problems.append(f"{path}: a script has no siblings to import")
        if found.library in FORBIDDEN:
            problems.append(f"{path}: imports {found.library}, but {FORBIDDEN[found.library]}")
    return problems


def check_space_module(name: str, source: str) -> list[str]:
    """Return every broken import rule of a file of space_app/."""
    if name not in SPACE:
        return [f"{name}: not in the table of the Space; add it with the files it may import"]
    problems = []
    for found in find_imports(ast.parse(source)):
        if found.level:
            problems.append(f"{name}: a Space's files are no package, import by name")
        if found.library in SPACE and found.library not in SPACE[name]:
            problems.append(f"{name}: must not import {found.library}")
        if found.library == "train":
            problems.append(f"{name}: imports {found.name}, which a Space does not have")
        if found.library in FORBIDDEN:
            problems.append(f"{name}: imports {found.library}, but {FORBIDDEN[found.library]}")
    return problems


def check_loading(path: str, source: str) -> list[str]:
    """Return every call that could run foreign code or leave weights out unnoticed."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        function = ast.unparse(node.func)
        if function == "torch.load" and keywords.get("weights_only") != "True":
            problems.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
        if keywords.get("strict") == "False" and function != "zip":
            problems.append(f"{path}:{node.lineno}: strict=False hides missing weights")
    return problems


def python_files(*folders: str) -> dict[str, str]:
    """Every Python file of the folders that exist: path from the root -> source."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def text_files() -> Iterator[tuple[str, str]]:
    """Yield path and content of every text file of the checkout that git would keep."""
    ignored = {*(ROOT / ".gitignore").read_text("utf-8").replace("/", "").split(), ".git"}
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.name in ignored or path.suffix == ".egg-info":
                continue
            if path.is_dir():
                folders.append(path)
                continue
            try:
                yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # an image or weights


def test_every_module_keeps_the_import_rules() -> None:
    sources = {path.stem: path.read_text("utf-8") for path in sorted(PACKAGE.glob("[!_]*.py"))}
    assert [p for name, source in sources.items() for p in check_module(name, source)] == []


def test_the_package_is_flat() -> None:
    folders = [path.name for path in PACKAGE.iterdir() if path.is_dir()]
    assert set(folders) <= {"__pycache__"}


def test_the_tables_point_one_way() -> None:
    for table in (MODULES, SPACE):
        names = list(table)
        later = {n: table[n] - set(names[:row]) - {"cli"} for row, n in enumerate(names)}
        assert not any(later.values()), later
    assert not any("cli" in siblings for name, siblings in MODULES.items())


def test_importing_the_package_loads_only_the_hub_ring() -> None:
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    found = {item.name for item in find_imports(ast.parse(source))}
    assert found <= {*HUB_RING, *HUB_LIBRARIES, *sys.stdlib_module_names}


def test_no_script_imports_a_script() -> None:
    sources = python_files("train")
    scripts = {Path(path).stem for path in sources if Path(path).parent.name == "train"}
    assert [p for path, src in sources.items() for p in check_script(path, src, scripts)] == []


def test_the_space_keeps_the_import_rules() -> None:
    sources = {Path(path).stem: source for path, source in python_files("space_app").items()}
    assert [p for name, source in sources.items() for p in check_space_module(name, source)] == []


def test_no_script_is_named_like_a_library() -> None:
    stems = [
        path.stem for folder in ("train", "space_app") for path in (ROOT / folder).glob("*.py")
    ]
    found = {stem: importlib.util.find_spec(stem) for stem in stems}
    # Other tests may have put the Space's own folder on the path.
    assert [
        s for s, spec in found.items() if spec and ROOT not in Path(spec.origin or "/").parents
    ] == []


def test_weights_are_loaded_whole_and_without_running_code() -> None:
    sources = python_files("modeling_rasalore", "train", "space_app")
    assert [p for path, source in sources.items() for p in check_loading(path, source)] == []


def test_no_file_names_a_path_of_someones_machine() -> None:
    machine_path = re.compile(r"(?<![\w.:/])/(?:work|farm|root|home|Users)/\w")
    files = ((path, text) for path, text in text_files() if "niivue" not in path)
    assert [path for path, text in files if machine_path.search(text)] == []


def test_the_tree_in_the_readme_names_every_file() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    words = set(re.findall(r"[\w.]+", readme.read_text("utf-8")))
    paths = [*PACKAGE.glob("[!_]*.py"), *(ROOT / "train").glob("*.[ps][yh]")]
    paths += (ROOT / "space_app").glob("*.py")
    assert [path.name for path in paths if path.name not in words] == []


def test_versions_agree() -> None:
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    version = re.search(r'__version__ = "(.+)"', source)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("modeling_ddpt", "from .modeling_rasalore import RasaloreModel", "must not import"),
        ("modeling_ddpt", "from . import heatmaps_ddpt", "flat copy"),
        ("modeling_ddpt", "from .parts.blocks import Block", "flat copy"),
        ("modeling_ddpt", "import modeling_rasalore.heatmaps_ddpt", "flat copy"),
        ("modeling_ddpt", "def f():\n    import scipy", "everyone who loads"),
        ("prediction", "import nibabel", "only slice_frame and volume_writing"),
        ("reports", "import matplotlib", "inference dependency"),
        ("cli", "from .slices import read_slices", "train extra"),
        ("reports", "def f():\n    from .cli import main", "must not import"),
        ("volumes", "import torchvision.io", "torch"),
        ("newcomer", "", "table of modules"),
    ],
)
def test_a_broken_import_rule_is_found(module: str, source: str, complaint: str) -> None:
    assert complaint in " ".join(check_module(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("modeling_ddpt", "import math\nfrom .heatmaps_ddpt import relevance"),
        ("pipeline_rasalore", "try:\n    import scipy\nexcept ImportError:\n    scipy = None"),
        ("reports", "def f():\n    import matplotlib.figure"),
        ("cli", "def f():\n    from .slices import read_slices"),
    ],
)
def test_a_kept_import_rule_is_not_complained_about(module: str, source: str) -> None:
    assert check_module(module, source) == []


def test_a_script_that_imports_a_script_is_found() -> None:
    assert check_script("train/b.py", "from a import run", {"a", "b"})
    assert check_script("train/b.py", "import train.a", {"a", "b"})
    assert check_script("train/b.py", "from .common import run", {"a", "b"})
    assert not check_script("train/b.py", "from baselines.ae import Ae", {"a", "b"})


def test_a_broken_rule_of_the_space_is_found() -> None:
    assert check_space_module("analysis", "from app import main")
    assert check_space_module("app", "from .handlers import Handlers")
    assert check_space_module("app", "from train.baselines.ae import Ae")
    assert check_space_module("newcomer", "")
    assert not check_space_module("app", "from handlers import Handlers\nimport gradio")


def test_unsafe_loading_is_found() -> None:
    assert check_loading("x.py", "torch.load(path)")
    assert check_loading("x.py", "torch.load(path, weights_only=False)")
    assert check_loading("x.py", "model.load_state_dict(state, strict=False)")
    assert not check_loading("x.py", "torch.load(p, weights_only=True); zip(a, b, strict=False)")
