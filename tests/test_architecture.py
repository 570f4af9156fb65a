"""The rules of the house: floors import downwards, and published files stand on their own."""

import ast
import graphlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_rasalore"

# Which floors a floor may use besides the ground, the modules at the package root. A row names only
# rows above it, so imports point one way.
FLOORS: dict[str, set[str]] = {
    "models": set(),
    "formats": set(),
    "scans": {"formats"},
    "brains": {"scans"},
    "data": {"scans"},
    "evaluation": {"scans"},
    "reports": {"scans"},
    "prediction": {"models", "formats", "scans", "brains", "evaluation", "reports"},
    "pseudo_masks": {"models", "scans", "data", "evaluation", "prediction"},
    "training": {"models", "scans", "data", "evaluation", "prediction", "pseudo_masks"},
    "publishing": {
        *("models", "scans", "brains", "data", "evaluation", "prediction", "pseudo_masks"),
    },
}
FLOORS["labelling"] = {"scans", "data", "evaluation", "prediction", "pseudo_masks"}
FLOORS["benchmark"] = set(FLOORS)
FLOORS["studies"] = set(FLOORS)
FLOORS["commands"] = set(FLOORS)
GROUND = {"files", "packaged", "precision", "processes", "remote_files", "provenance", "recipes"}
# The files of the Space lie in one folder, its root, and import each other by name.
SPACE: dict[str, set[str]] = {
    "uploads": set(),
    "findings": set(),
    "thresholds": set(),
    "gpu": set(),
    "scan_reading": set(),
    "analysis": {"findings", "gpu", "scan_reading", "thresholds"},
    "model_choice": {"analysis", "scan_reading", "thresholds"},
    "drawing": {"analysis"},
    "layers": {"analysis", "drawing"},
    "words": set(),
    "downloads": {"analysis"},
    "example_cases": {"analysis", "model_choice", "scan_reading"},
    "page": set(),
    "traffic": {"uploads"},
    "handlers": {
        *("analysis", "downloads", "drawing", "example_cases", "layers", "model_choice"),
        *("scan_reading", "thresholds", "traffic", "uploads", "words"),
    },
    "controls": {
        *("downloads", "handlers", "model_choice", "page", "scan_reading", "thresholds"),
        "uploads",
    },
    "wiring": {"controls", "handlers", "page"},
    "app": {"controls", "handlers", "model_choice", "page", "traffic", "wiring"},
    "write_example": {"analysis", "example_cases", "scan_reading"},
}
HUB_LIBRARIES = {"torch", "transformers", "numpy"}
USER_LIBRARIES = {*HUB_LIBRARIES, "huggingface_hub", "safetensors", "scipy", "PIL", "tqdm", "typer"}
# Who knows voxel order, and the files of other programs.
OWNERS = {"nibabel": ("scans/", "formats/")} | dict.fromkeys(
    ("pydicom", "highdicom", "nrrd"), ("formats/",)
)
TRAINS = (
    "data",
    "pseudo_masks",
    "training",
    "benchmark",
    "studies",
    "recipes",
)  # may need the train extra when imported
FORBIDDEN = {
    "torchvision": "it replaces the installed torch",
    "timm": "it needs torchvision",
    "pickle": "weights and data are read without running code",
}


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

    def module(self, path: str) -> str:
        """What of the package is imported by the file at `path` below it, such as scans.bids."""
        if not self.level:
            return self.name.partition(".")[2]
        folders = path.split("/")[:-1]
        return ".".join([*folders[: len(folders) - self.level + 1], self.name])


def find_imports(node: ast.AST, lazy: bool = False, guarded: bool = False) -> Iterator[Import]:
    """Yield every import below `node`, in functions and try blocks too, but for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, 0, lazy, guarded) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield Import(child.module or "", child.level, lazy, guarded)
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from find_imports(child, inside, guarded or isinstance(child, ast.Try))


def check_module(path: str, source: str) -> list[str]:
    """Return every broken import rule of one module, named by its path below the package."""
    floor = path.split("/")[0].removesuffix(".py")
    problems = []
    for found in find_imports(ast.parse(source)):
        if found.level or found.library == PACKAGE.name:
            problems += check_floor(path, floor, found)
        elif found.library not in sys.stdlib_module_names:
            problems += check_library(path, floor, found)
        if found.library in FORBIDDEN:
            problems.append(f"{path}: imports {found.library}, but {FORBIDDEN[found.library]}")
    return problems


def check_floor(path: str, floor: str, found: Import) -> list[str]:
    target = found.module(path).split(".")[0]
    is_published = floor == "models" and path != "models/__init__.py"
    if is_published and (found.level != 1 or not found.name or "." in found.name):
        return [f"{path}: only `from .name import Thing` survives a flat copy"]
    if floor in ("__init__", "cli"):
        return []
    if floor not in FLOORS and floor not in GROUND:
        return [f"{path}: no floor of the house; add it to the table with the floors it may use"]
    if target not in {floor, *FLOORS.get(floor, ()), *GROUND}:
        return [f"{path}: {floor} must not import {target}"]
    return []


def check_library(path: str, floor: str, found: Import) -> list[str]:
    owner = OWNERS.get(found.library)
    if owner:
        rule = f"{path}: only {' and '.join(owner)} imports {found.library}"
        return [] if path.startswith(owner) else [rule]
    if floor == "models" and found.library not in HUB_LIBRARIES and not found.guarded:
        return [f"{path}: everyone who loads the model would need {found.library}"]
    if floor not in TRAINS and found.library not in USER_LIBRARIES and not found.lazy:
        return [f"{path}: {found.library} is not an inference dependency; import it where used"]
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


def package_files() -> dict[str, str]:
    """Every module: path below the package -> source."""
    start = f"{PACKAGE.name}/"
    return {path.removeprefix(start): text for path, text in python_files(PACKAGE.name).items()}


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
    assert [p for path, src in package_files().items() for p in check_module(path, src)] == []


def test_the_floors_point_one_way() -> None:
    names = list(FLOORS)
    assert {name: FLOORS[name] - set(names[:row]) for row, name in enumerate(names)} == {
        name: set() for name in names
    }


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {p.removesuffix(".py").replace("/", "."): (p, s) for p, s in package_files().items()}
    graph = {
        name: {found.module(path) for found in find_imports(ast.parse(source))} & sources.keys()
        for name, (path, source) in sources.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize(
    "floor", [f.name for f in PACKAGE.iterdir() if (f / "__init__.py").exists()]
)
def test_a_floor_lists_its_files_and_is_no_corridor(floor: str) -> None:
    files = {path.name for path in (PACKAGE / floor).glob("[!_]*.py")}
    docstring = ast.get_docstring(ast.parse((PACKAGE / floor / "__init__.py").read_text("utf-8")))
    listed = re.findall(r"^(\w+\.py) {2,}\S", docstring or "", re.MULTILINE)
    assert (sorted(listed), floor in FLOORS) == (sorted(files), True)
    assert 4 <= len(files) <= 12


def test_importing_the_package_loads_nothing_heavy() -> None:
    found = {item.library for item in find_imports(ast.parse(package_files()["__init__.py"]))}
    assert found <= sys.stdlib_module_names


def test_no_script_imports_a_script() -> None:
    sources = python_files("train")
    scripts = {Path(path).stem for path in sources if Path(path).parent.name == "train"}
    assert [p for path, src in sources.items() for p in check_script(path, src, scripts)] == []


def test_the_space_keeps_the_import_rules() -> None:
    names = list(SPACE)
    assert not any(SPACE[name] - set(names[:row]) for row, name in enumerate(names))
    sources = {Path(path).stem: source for path, source in python_files("space_app").items()}
    assert [p for name, source in sources.items() for p in check_space_module(name, source)] == []


def test_no_script_is_named_like_a_library() -> None:
    stems = [
        path.stem
        for folder in ("train", "train/plain", "space_app")
        for path in (ROOT / folder).glob("*.py")
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
    vendored = re.compile("niivue|onnxruntime/")
    files = ((path, text) for path, text in text_files() if not vendored.search(path))
    assert [path for path, text in files if machine_path.search(text)] == []


def test_the_house_in_the_readme_names_every_floor_and_what_it_may_use() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)/` \| .* \| (.*) \|$", readme, re.MULTILINE))
    assert told.keys() == FLOORS.keys()
    for floor, cell in told.items():
        if cell != "all above":
            assert set(filter(None, cell.strip("\u2013").split(", "))) == FLOORS[floor], floor


def test_versions_agree() -> None:
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    version = re.search(r'__version__ = "(.+)"', source)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("models/modeling_ddpt.py", "from . import heatmaps_ddpt", "flat copy"),
        ("models/modeling_ddpt.py", "from .parts.blocks import Block", "flat copy"),
        ("models/modeling_ddpt.py", "import modeling_rasalore.models.heatmaps_ddpt", "flat copy"),
        ("models/modeling_ddpt.py", "from ..files import write_json", "flat copy"),
        ("models/modeling_ddpt.py", "def f():\n    import scipy", "everyone who loads"),
        ("scans/volumes.py", "from ..data.slices import read_slices", "must not import data"),
        ("scans/volumes.py", "from modeling_rasalore.data import slices", "must not import data"),
        ("evaluation/rows.py", "def f():\n    from ..prediction.run import x", "must not import"),
        ("files.py", "from .scans.volumes import read_volume", "files must not import scans"),
        ("data/slices.py", "from ..cli import main", "must not import cli"),
        ("prediction/volume.py", "import nibabel", "only scans/"),
        ("scans/volumes.py", "import pydicom", "only formats/"),
        ("evaluation/tables.py", "import matplotlib", "inference dependency"),
        ("scans/volumes.py", "import torchvision.io", "torch"),
        ("newcomer.py", "from .files import write_json", "no floor"),
    ],
)
def test_a_broken_import_rule_is_found(path: str, source: str, complaint: str) -> None:
    assert complaint in " ".join(check_module(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/modeling_ddpt.py", "import math\nfrom .heatmaps_ddpt import relevance"),
        ("models/pipeline.py", "try:\n    import scipy\nexcept ImportError:\n    scipy = None"),
        ("evaluation/tables.py", "def f():\n    import matplotlib.figure"),
        ("prediction/volume.py", "from ..scans.volumes import Volume\nfrom ..files import x"),
        ("cli.py", "def f():\n    from .data.slices import read_slices"),
    ],
)
def test_a_kept_import_rule_is_not_complained_about(path: str, source: str) -> None:
    assert check_module(path, source) == []


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
