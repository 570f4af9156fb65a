"""Read recipes: a YAML file and `key=value` words, checked against a dataclass."""

import difflib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeVar, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .files import first_line

Recipe = TypeVar("Recipe")
GO_ON = "the same command goes on from here"
Section = tuple[str, list[tuple[str, str, str]]]  # heading, fields


@dataclass
class DataRecipe:
    """Which slices, and in what order.

    Attributes:
        root: folder of scans in a known layout, with masks or slice_labels.csv; or folder, web
            address or repo id of prepared slices.
        modality: t1, t1ce, t2 or flair; stage 2 learns from "all" as channels too, and from
            lesions painted into "each" as a scan of its own.
        skip_slices: lowest and highest axial slices left out of a scan: a number, or auto: as many
            as 15 of 155, such as 9 of 96, and none of a scan with fewer than 50.
        shuffle_buffer: slices held back to mix the order of the stream; more mixes better and takes
            more memory.
        lanes: patients read side by side. Processes times workers should divide it: each reader
            then opens patients of its own.
        same_person: table of persons who are in another data set as well, a CSV file with a column
            patient and others that begin with same_person. Whom its first column names and whose
            other scan is not in root is left out of every split, so that the other data set can be
            scored; scans of one person in root stay together. Networks that know a scored person
            are refused.
    """

    root: str = MISSING
    modality: str = "t2"
    skip_slices: int | str = "auto"
    shuffle_buffer: int = 2000
    lanes: int = 16
    same_person: str = ""


@dataclass
class SplitRecipe:
    """How patients are shared out, from a sorted list and a seed.

    Attributes:
        validation: patients (whole numbers from 1 on) or a share of all patients (below 1).
        test: as `validation`.
        seed: of the order in which patients are dealt.
        folds: instead of `test`, deal all patients into so many test sets and take one; 0: none.
        fold: which of them, from 1 on.
        file: instead of all that, a split.json that says who is in which part; empty: none.
    """

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    folds: int = 0
    fold: int = 0
    file: str = ""

    def amounts(self) -> dict[str, Any]:
        """Return arguments of `split_patients`: counts are whole numbers, shares are not."""
        parts = {"validation": self.validation, "test": self.test}
        counted = {name: int(value) if value >= 1 else value for name, value in parts.items()}
        return {**counted, "folds": self.folds, "fold": self.fold, "file": self.file}


@dataclass
class LoopRecipe:
    """How long a run is, what it keeps, and how it computes.

    Attributes:
        epochs: passes over the training slices; this or `max_steps` must be given, and the shorter
            one ends the run.
        max_steps: optimizer steps.
        batch_size: slices of an optimizer step, in all processes together.
        accumulation: pieces that a batch is computed in, one after the other or shared out among
            processes: what a run learns depends on this number and not on that of the processes.
            Memory falls with it.
        seed: of everything that is drawn.
        workers: decoding processes.
        precision: float type of the network: float32, bfloat16, or auto for the one in which the
            device is faster. Weights, losses and optimizer stay in float32.
        compile: torch.compile: minutes at the start, faster steps; a CPU needs g++.
        gradient_checkpointing: keep fewer intermediate maps and compute them again for the
            gradients: less memory, more time.
        gradient_clip: largest gradient norm; 0: unclipped.
        ema: decay per step of a running mean of the weights, which is validated and kept instead;
            0: none.
        log_every: steps between logged losses.
        evaluate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        tensorboard: whether losses are logged for TensorBoard.
    """

    epochs: int = 0
    max_steps: int = 0
    batch_size: int = 16
    accumulation: int = 1
    seed: int = 0
    workers: int = 0
    precision: str = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    gradient_clip: float = 0.0
    ema: float = 0.0
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 200
    tensorboard: bool = True


@dataclass
class BaseRecipe:
    """What every training script asks for.

    Attributes:
        model: folder with config.json and preprocessor_config.json, or a repo id.
        out: folder of the run.
        data: which slices, and in what order.
        loop: how long a run is, what it keeps, and how it computes.
    """

    model: str = MISSING
    out: str = MISSING
    data: DataRecipe = field(default_factory=DataRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)


def run_script(main: Callable[[Any], int | None], words: Sequence[str] | None = None) -> None:
    """Run `main(recipe)` on the words of the command line, and end the process.

    `--help` prints the script's docstring and every field of its recipe. A user's mistake is one
    line and exit code 1, an interrupt is code 130; `accelerate launch` adds a traceback of its own.

    Args:
        main: takes one recipe, whose class its annotation names; returns an exit code or None.
        words: None for those of the command line.
    """
    (schema,) = list(get_type_hints(main).values())[:1]
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(describe_script(sys.modules[main.__module__].__doc__ or "", schema))
        sys.exit(0)
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # which the launcher always sets
    note = " (The traceback of accelerate below says no more than that.)" * launched
    try:
        sys.exit(main(load_recipe(schema, words)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {first_line(error)}{note}")
    except KeyboardInterrupt:
        print(f"interrupted; {GO_ON}.{note}", file=sys.stderr)
        sys.exit(130)


def _tell_interrupt(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Tell in one line of an interrupt while a script is still importing what it needs."""
    starting = getattr(sys.modules["__main__"], "recipes", None) is sys.modules[__name__]
    if starting and issubclass(kind, KeyboardInterrupt):
        print(f"interrupted; {GO_ON}.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:  # else a program has one of its own
    sys.excepthook = _tell_interrupt  # scripts import this module first


def describe_script(docstring: str, schema: type) -> str:
    """Return what a script does, and every field of its recipe: default, type and meaning."""
    lines = [docstring.strip(), "", "Recipe, as key=value words or lines of YAML; ... is needed:"]
    for heading, rows in sections_of(schema()):
        lines += ["", *wrap(heading, 100)] if heading else []
        words, kinds = (max(len(row[column]) for row in rows) for column in (0, 1))
        for word, kind, meaning in rows:
            start = f"  {word:{words}}  {kind:{kinds}}  "
            lines += wrap(start + meaning, 100, subsequent_indent=" " * len(start))
    return "\n".join(lines)


def sections_of(recipe: Any, heading: str = "", prefix: str = "") -> Iterator[Section]:
    """Yield the plain fields of a recipe that holds its defaults, then its sections, each headed.

    Each field is (key=default as on a command line, type, meaning); "..." must be given.
    """
    kinds, meanings = get_type_hints(type(recipe)), describe_attributes(type(recipe))
    rows, sections = [], []
    for name in (entry.name for entry in fields(recipe)):
        default, key, meaning = getattr(recipe, name), f"{prefix}{name}", meanings.get(name, "")
        if is_dataclass(default):
            sections.append((default, f"{key}: {meaning}", f"{key}."))
            continue
        text = default if isinstance(default, str) and default else json.dumps(default)
        kind = kinds[name].__name__ if isinstance(kinds[name], type) else str(kinds[name])
        rows.append((f"{key}={'...' if default == MISSING else text}", kind, meaning))
    yield heading, rows
    for section in sections:
        yield from sections_of(*section)


def describe_attributes(schema: type) -> dict[str, str]:
    """Return attribute -> meaning, from the docstrings of a dataclass and of those it extends.

    A section without a line of its own means what its class says first.
    """
    meanings: dict[str, str] = {}
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            meanings[name] = (inspect.getdoc(kind) or "").partition("\n")[0]
    for base in reversed(schema.__mro__):
        listed = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


def load_recipe(schema: type[Recipe], words: Sequence[str]) -> Recipe:
    """Return the recipe that YAML files and `key=value` words describe; words win.

    Args:
        schema: dataclass whose fields are the keys.
        words: command-line words, e.g. `["training.yaml", "data.root=scans", "loop.epochs=2"]`.

    Raises:
        ValueError: for an unknown key (the nearest one is named), a value of the wrong type, a
            missing file or a key without a value.
    """
    files = [word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word]
    overrides = [word for word in words if word not in files]
    for word in overrides:
        if "=" not in word:
            raise ValueError(f"expected key=value or a .yaml file, got {word!r}.")
    for name in files:
        if not Path(name).is_file():
            raise ValueError(f"there is no recipe file {name!r}.")
    try:
        layers = [*(OmegaConf.load(name) for name in files), OmegaConf.from_dotlist(overrides)]
    except YAMLError as error:
        raise ValueError(
            f"a recipe must be valid YAML, got {' '.join(str(error).split())}."
        ) from error
    known = list_keys(schema)
    for layer in layers:
        if not OmegaConf.is_dict(layer):
            raise ValueError(f"a recipe file must hold `key: value` lines, got {layer}.")
        reject_unknown_keys(flatten(OmegaConf.to_container(layer)), known)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), *layers)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ValueError(
                f"the recipe needs a value for {', '.join(sorted(missing))}: add "
                f"{min(missing)}=... to the command."
            )
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ValueError(
            f"the recipe is not valid at {error.full_key or 'a section'}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def recipe_text(recipe: Any) -> str:
    """Return a recipe as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def is_recipe(path: Path, recipe: Any) -> bool:
    """Return whether a file holds a recipe; fields that it does not name have their defaults."""
    text = path.read_text(encoding="utf-8")
    try:
        stored = OmegaConf.merge(OmegaConf.structured(type(recipe)), OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError):  # of a version with other fields
        return False
    return recipe_text(stored) == recipe_text(recipe)


def preset_folder(name: str) -> Path:
    """Return the folder of a preset: its configuration, and how it is trained.

    Installed, hub_configs/ lies in the package; in a clone it lies beside it.

    Raises:
        ValueError: there is no preset of that name.
    """
    package = Path(__file__).parent
    presets = {
        path.parent.name: path.parent
        for parent in (package.parent, package)
        for path in (parent / "hub_configs").glob("*/training.yaml")
    }
    if name not in presets:
        raise ValueError(f"presets are {', '.join(sorted(presets))}, got {name!r}.")
    return presets[name]


def model_folder(model: str) -> str:
    """Return where a recipe's model lies: presets, hub_configs/<name>, are found from anywhere."""
    path = Path(model)
    if path.is_dir() or path.parts[:-1] != ("hub_configs",):
        return model
    return str(preset_folder(path.name))


def save_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe as YAML."""
    path.write_text(recipe_text(recipe), encoding="utf-8")


def list_keys(schema: Any, prefix: str = "") -> list[str]:
    """Return all dotted keys of a recipe dataclass, sections included."""
    keys = []
    for key, value in OmegaConf.structured(schema)._content.items():
        keys.append(prefix + key)
        section = value._metadata.object_type
        if is_dataclass(section):
            keys += list_keys(section, f"{prefix}{key}.")
    return keys


def flatten(values: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of nested dictionaries, leaves only."""
    keys = []
    for key, value in values.items():
        if isinstance(value, dict):
            keys += flatten(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys


def reject_unknown_keys(keys: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError for the first key that no recipe field has, naming the nearest one."""
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown recipe key {key!r}; the nearest is {nearest[0]!r}.")
