"""Recipes: a YAML file and `key=value` words, checked against a dataclass."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Recipe = TypeVar("Recipe")


@dataclass
class DataRecipe:
    """Which slices, and in what order."""

    # Folder of scans in a known layout; or folder, web address or repo id of prepared slices.
    root: str = MISSING
    modality: str = "t2"  # or t1, t1ce, flair; stage 2 learns from "all" as channels too
    skip_slices: int = 15  # lowest and highest axial slices left out
    # Slices held back to mix the order of the stream; more mixes better and takes more memory.
    shuffle_buffer: int = 2000
    # Patients read side by side. Processes times workers should divide it: each reader then opens
    # patients of its own.
    lanes: int = 16


@dataclass
class SplitRecipe:
    """How patients are shared out, from a sorted list and a seed."""

    # Patients (whole numbers from 1 on) or shares of all patients (below 1).
    validation: float = 0.1
    test: float = 0.2
    seed: int = 0
    # Instead of `test`: all patients are dealt into so many test sets, and one of them is taken.
    folds: int = 0  # 0: none
    fold: int = 0  # from 1 on

    def amounts(self) -> dict[str, Any]:
        """What `split_patients` is asked for: counts are whole numbers, shares are not."""
        parts = {"validation": self.validation, "test": self.test}
        counted = {name: int(value) if value >= 1 else value for name, value in parts.items()}
        return {**counted, "folds": self.folds, "fold": self.fold}


@dataclass
class AugmentationRecipe:
    """Random changes of training slices; geometry is shared with their masks."""

    rotation_degrees: float = 0.0  # drawn from -value to value
    rotation_probability: float = 0.7
    smallest_scale: float = 1.0  # share of the area that a random crop keeps at least
    horizontal_flip: float = 0.5  # probabilities
    vertical_flip: float = 0.0
    brightness: float = 0.0  # factor drawn from 1 - value to 1 + value
    contrast: float = 0.0
    # Exponent drawn from 1 / (1 + value) to 1 + value: how bright tissue is between black and white
    # differs more from scanner to scanner than a factor can say. Poster and released: none.
    gamma: float = 0.0
    intensity_probability: float = 0.5  # of brightness, contrast and gamma, each
    noise_std: float = 0.0  # share of the intensity range
    noise_probability: float = 0.7
    # Of each sequence of data.modality=all, to be missing; one, another for each slice, never is.
    sequence_dropout: float = 0.0


@dataclass
class SyntheticLesionRecipe:
    """Healthy training slices with painted lesions. Poster and released: none."""

    share: float = 0.0  # of all training slices; 1: nothing else, and no pseudo-mask is needed
    # Of those slices, left as they are: what healthy brain looks like. Stage 1 needs some.
    blank_share: float = 0.0
    darker_share: float = 0.0  # of the lesions, darker than tissue; 0 suits T2 and FLAIR
    minimum_brain_area: float = 4000.0  # mm2 of brain on a slice that is painted on


@dataclass
class OptimizerRecipe:
    """Optimizer and learning-rate schedule, in epochs."""

    name: str = "sgd"  # sgd | adamw
    learning_rate: float = 1e-2
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    # "cosine" to 0; "halving": constant until `hold_epochs`, then halved every `halving_epochs`.
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_learning_rate: float = 1e-5  # constant during warm-up
    hold_epochs: float = 21.0
    halving_epochs: float = 20.0


@dataclass
class LoopRecipe:
    """How long a run is, what it keeps, and how it computes."""

    epochs: int = 0  # one of the two must be given; the shorter one ends the run
    max_steps: int = 0
    batch_size: int = 16  # slices of an optimizer step, in all processes together
    # Pieces that a batch is computed in, one after the other or shared out among processes: what a
    # run learns depends on this number and not on that of the processes. Memory falls with it.
    accumulation: int = 1
    seed: int = 0
    workers: int = 0  # decoding processes
    mixed_precision: str = "no"  # no | bf16
    compile: bool = False  # torch.compile: minutes at the start, faster steps; a CPU needs g++
    # Keep fewer intermediate maps and compute them again for the gradients: less memory, more time.
    gradient_checkpointing: bool = False
    gradient_clip: float = 0.0  # largest gradient norm; 0: unclipped
    # Decay per step of a running mean of the weights, which is validated and kept instead; 0: none.
    ema: float = 0.0
    log_every: int = 10  # steps between logged losses
    evaluate_every: int = 200  # steps between validations
    checkpoint_every: int = 200  # steps between checkpoints
    tensorboard: bool = True


@dataclass
class BaseRecipe:
    """What every training script asks for."""

    model: str = MISSING  # folder with config.json and preprocessor_config.json, or a repo id
    out: str = MISSING  # folder of the run
    data: DataRecipe = field(default_factory=DataRecipe)
    loop: LoopRecipe = field(default_factory=LoopRecipe)


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
