"""Recipes: a YAML file and `key=value` words, checked against a dataclass."""

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .files import first_line

Recipe = TypeVar("Recipe")


@dataclass
class DataRecipe:
    """Which slices, and in what order.

    Attributes:
        root: folder of scans in a known layout; or folder, web address or repo id of prepared
            slices.
        modality: t1, t1ce, t2 or flair; stage 2 learns from "all" as channels too.
        skip_slices: lowest and highest axial slices left out.
        shuffle_buffer: slices held back to mix the order of the stream; more mixes better and takes
            more memory.
        lanes: patients read side by side. Processes times workers should divide it: each reader
            then opens patients of its own.
    """

    root: str = MISSING
    modality: str = "t2"
    skip_slices: int = 15
    shuffle_buffer: int = 2000
    lanes: int = 16


@dataclass
class SplitRecipe:
    """How patients are shared out, from a sorted list and a seed.

    Attributes:
        validation: patients (whole numbers from 1 on) or a share of all patients (below 1).
        test: as `validation`.
        seed: of the order in which patients are dealt.
        folds: instead of `test`, deal all patients into so many test sets and take one; 0: none.
        fold: which of them, from 1 on.
    """

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    folds: int = 0
    fold: int = 0

    def amounts(self) -> dict[str, Any]:
        """What `split_patients` is asked for: counts are whole numbers, shares are not."""
        parts = {"validation": self.validation, "test": self.test}
        counted = {name: int(value) if value >= 1 else value for name, value in parts.items()}
        return {**counted, "folds": self.folds, "fold": self.fold}


@dataclass
class AugmentationRecipe:
    """Random changes of training slices; geometry is shared with their masks.

    Attributes:
        rotation_degrees: largest angle, drawn from -value to value.
        rotation_probability: of turning a slice at all.
        smallest_scale: share of the area that a random crop keeps at least.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: factor drawn from 1 - value to 1 + value.
        contrast: factor drawn from 1 - value to 1 + value.
        gamma: exponent drawn from 1 / (1 + value) to 1 + value: how bright tissue is between black
            and white differs more between scanners than a factor says. Poster and released: none.
        intensity_probability: of brightness, contrast and gamma, each.
        noise_std: share of the intensity range.
        noise_probability: of noise.
        sequence_dropout: probability of each sequence of data.modality=all to be missing; one,
            another for each slice, never is.
    """

    rotation_degrees: float = 0.0
    rotation_probability: float = 0.7
    smallest_scale: float = 1.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    intensity_probability: float = 0.5
    noise_std: float = 0.0
    noise_probability: float = 0.7
    sequence_dropout: float = 0.0


@dataclass
class SyntheticLesionRecipe:
    """Healthy training slices with painted lesions. Poster and released: none.

    Attributes:
        share: of all training slices; 1: nothing else, and no pseudo-mask is needed.
        blank_share: of those slices, left as they are: what healthy brain looks like. Stage 1
            needs some.
        darker_share: of the lesions, darker than tissue; 0 suits T2 and FLAIR.
        minimum_brain_area: mm2 of brain on a slice that is painted on.
    """

    share: float = 0.0
    blank_share: float = 0.0
    darker_share: float = 0.0
    minimum_brain_area: float = 4000.0


@dataclass
class OptimizerRecipe:
    """Optimizer and learning-rate schedule, in epochs.

    Attributes:
        name: sgd or adamw.
        learning_rate: after warm-up.
        momentum: of sgd.
        weight_decay: of all weights.
        schedule: "cosine" to 0, or "halving": constant until `hold_epochs`, then halved every
            `halving_epochs`.
        warmup_epochs: how long the rate is `warmup_learning_rate`.
        warmup_learning_rate: constant during warm-up.
        hold_epochs: of "halving".
        halving_epochs: of "halving".
    """

    name: str = "sgd"
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_learning_rate: float = 1e-5
    hold_epochs: float = 21.0
    halving_epochs: float = 20.0


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
        mixed_precision: "no" or "bf16".
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
    mixed_precision: str = "no"
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
    line and exit code 1, an interrupt is code 130.

    Args:
        main: takes one recipe, whose class its annotation names; returns an exit code or None.
        words: None for those of the command line.
    """
    (schema,) = list(get_type_hints(main).values())[:1]
    words = sys.argv[1:] if words is None else words
    if {"-h", "--help"} & set(words):
        print(describe_script(sys.modules[main.__module__].__doc__ or "", schema))
        sys.exit(0)
    try:
        sys.exit(main(load_recipe(schema, words)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {first_line(error)}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def describe_script(docstring: str, schema: type) -> str:
    """Return what a script does, and one line per field of its recipe."""
    lines = [
        f"  {key}={default} ({kind})  {text}" for key, kind, default, text in fields_of(schema)
    ]
    return "\n".join(
        [docstring.strip(), "", "Recipe, as key=value words or lines of YAML:", *lines]
    )


def fields_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yield key, type, default and meaning of every field of a recipe, sections opened."""
    kinds, meanings = get_type_hints(schema), describe_attributes(schema)
    for entry in fields(schema):
        key, kind = f"{prefix}{entry.name}", kinds[entry.name]
        if is_dataclass(kind):
            yield from fields_of(kind, f"{key}.")
            continue
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        yield key, name, "..." if default == MISSING else default, meanings.get(entry.name, "")


def describe_attributes(schema: type) -> dict[str, str]:
    """Return attribute -> meaning, from the docstrings of a dataclass and of those it extends."""
    meanings: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        listed = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


def load_recipe(schema: type[Recipe], words: Sequence[str], needs_file: bool = False) -> Recipe:
    """Return the recipe that YAML files and `key=value` words describe; words win.

    Args:
        schema: dataclass whose fields are the keys.
        words: command-line words, e.g. `["training.yaml", "data.root=scans", "loop.epochs=2"]`.

    Raises:
        ValueError: for an unknown key (the nearest one is named), a value of the wrong type, a
            missing file or a key without a value.
    """
    files = [word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word]
    if needs_file and not files:
        raise ValueError("a recipe file is needed, e.g. hub_configs/rasalore-tiny/training.yaml.")
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
    """Write a recipe dataclass as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(recipe)))


def list_keys(schema: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a recipe dataclass, sections included."""
    keys = []
    for key, value in OmegaConf.structured(schema)._content.items():
        keys.append(prefix + key)
        section = value._metadata.object_type
        if is_dataclass(section):
            keys += list_keys(section, f"{prefix}{key}.")
    return keys


def flatten(values: Any, prefix: str = "") -> list[str]:
    """Dotted keys of nested dictionaries, leaves only."""
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
