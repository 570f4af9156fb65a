"""Trains stage 2 with one part changed, as the run it is compared with, and makes rows of it.

An ablation repeats a finished run of train/stage2.py, its recipe, seed and data, with other fields
of config.json. Where that run started from weights of an earlier one, the earlier one is repeated
with the same change first: the change then holds from the first step on. Stage 1's kinds of heatmap
are compared without any training: each is a row of its own.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..files import write_json
from ..models.configuration_rasalore import RasaloreConfig
from ..models.heatmaps_ddpt import HEATMAPS
from ..recipes import load_recipe
from ..training.stage2 import Stage2Recipe, train_stage2
from .own import TrainedRuns
from .systems import SystemRow, read_runs
from .trained import HeatmapOfKind, Stage2Network

HALF, TWICE = 0.5, 2.0
OTHER = {"el_dice": "el_tversky", "el_tversky": "el_dice", "bce_dice": "el_dice"}
CHANGES: dict[str, dict[str, Any]] = {
    "loss_without_false_positives": {"false_positive_weight": 0.0},
    "loss_without_background": {"background_weight": 0.0},
    "loss_without_sam": {"sam_weight": 0.0},
    "loss_without_points": {"point_activation_weight": 0.0},
    "loss_without_structure": {"structural_weight": 0.0},
    "loss_of_other_form": {"decoder_loss": OTHER},
    "half_the_points_per_side": {"grid_size": HALF},
    "twice_the_points_per_side": {"grid_size": TWICE},
    "half_the_refiner_grid": {"refiner_grid": HALF},
    "twice_the_refiner_grid": {"refiner_grid": TWICE},
    "locations_random": {"location_embeddings": "random"},
    "locations_learned": {"location_embeddings": "learned"},
    "locations_aliased": {"location_embeddings": "aliased"},
    "locations_none": {"location_embeddings": "none"},
    "noise_gaussian": {"value_noise": "gaussian"},
    "noise_learned": {"value_noise": "learned"},
    "noise_none": {"value_noise": "none"},
}
# Rows of stage 1 alone, by the kind of heatmap that is scored.
STAGE1_HEATMAPS = {f"ddpt_{kind}": kind for kind in HEATMAPS}


@dataclass(frozen=True)
class ChangedNetwork:
    """The row of stage 2 with one part changed; see `SystemRow`.

    Attributes:
        name: of the ablation.
        whole: folder of the run that it repeats.
        folder: of its own run.
    """

    name: str
    whole: str
    folder: str

    @property
    def title(self) -> str:
        return self.name

    def folders(self, recipe: TrainedRuns) -> list[str]:
        return [self.folder]

    def facts(self, recipe: TrainedRuns) -> dict[str, Any]:
        runs = read_runs(self.name, [self.folder])
        return {"seed": recipe.seed, "flips": recipe.flips, **runs}

    def make(self, recipe: TrainedRuns) -> Stage2Network:
        return Stage2Network(Path(self.folder), recipe.flips)

    def restore(self, folder: Path, recipe: TrainedRuns) -> None:
        return None

    def train(self) -> None:
        """Train it unless it is there; a run that was interrupted goes on."""
        for recipe in prepare_ablation(self.name, Path(self.whole), Path(self.folder)):
            if not (Path(recipe.out) / "run.json").is_file():
                train_stage2(recipe)


@dataclass(frozen=True)
class KindOfHeatmap:
    """The row of one of stage 1's kinds of heatmap, without any training; see `SystemRow`."""

    name: str

    @property
    def title(self) -> str:
        return self.name

    def folders(self, recipe: TrainedRuns) -> list[str]:
        return [recipe.stage1]

    def facts(self, recipe: TrainedRuns) -> dict[str, Any]:
        runs = read_runs(self.name, [recipe.stage1, recipe.cut_from_heatmaps])
        return {"seed": recipe.seed, **runs}

    def make(self, recipe: TrainedRuns) -> HeatmapOfKind:
        kind = STAGE1_HEATMAPS[self.name]
        return HeatmapOfKind(Path(recipe.stage1), recipe.cut_from_heatmaps, kind)

    def restore(self, folder: Path, recipe: TrainedRuns) -> None:
        return None


def ablation_rows(words: str, whole: str, out: Path) -> list[SystemRow]:
    """Return the rows of ablations, in the table's order; those that change nothing are left out.

    Args:
        words: "" for none, "all", or names with commas between them.
        whole: folder of the finished run that they are compared with.
        out: folder of their runs.

    Raises:
        ValueError: as `choose_ablations`.
    """
    return [
        KindOfHeatmap(name)
        if name in STAGE1_HEATMAPS
        else ChangedNetwork(name, whole, str(out / name))
        for name in choose_ablations(words, whole)
    ]


def choose_ablations(words: str, whole: str) -> list[str]:
    """Return the names of ablations; arguments as for `ablation_rows`.

    Raises:
        ValueError: for an unknown name, one that changes nothing, or no run to compare with, which
            stage 1's heatmaps do without.
    """
    names = [word.strip() for word in words.split(",") if words]
    if set(names) <= STAGE1_HEATMAPS.keys():
        return [name for name in STAGE1_HEATMAPS if name in names]
    if not whole or not (Path(whole) / "run.json").is_file():
        raise ValueError(
            f"ablations repeat a finished run of train/stage2.py, got rasalore={whole!r}; give its "
            "folder as rasalore."
        )
    telling = [*list_changes(whole), *STAGE1_HEATMAPS]
    if words == "all":
        return telling
    for name in names:
        if name not in CHANGES | STAGE1_HEATMAPS:
            known = ", ".join((*CHANGES, *STAGE1_HEATMAPS))
            raise ValueError(f"ablations are all or any of {known}, got {name!r}.")
        if name not in telling:
            raise ValueError(f"{whole} already is what the ablation {name} would make of it.")
    return [name for name in telling if name in names]


def list_changes(whole: str) -> list[str]:
    """Return the changes that make something else of a finished run."""
    fields = read_config(whole)
    made = json.loads((Path(whole) / "run.json").read_text())["pseudo_masks"] or {}
    return [
        name
        for name in CHANGES
        if changed(fields, name) != fields and (name != "loss_without_sam" or made.get("segmenter"))
    ]


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the fields of a model folder's config.json."""
    fields: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    return fields


def changed(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration's fields with an ablation's change; numbers double or halve."""
    new = dict(fields)
    for field, change in CHANGES[name].items():
        if isinstance(change, dict):
            new[field] = change[fields[field]]
        elif field in ("grid_size", "refiner_grid"):
            new[field] = max(round(fields[field] * change), 1)
        else:
            new[field] = change
    return new


def prepare_ablation(name: str, whole: Path, out: Path) -> list[Stage2Recipe]:
    """Return the recipes of the runs that make an ablation of `whole` in `out`, in order.

    Writes the changed model folder that they start from, `out`/model.

    Raises:
        ValueError: a network with this change cannot be built.
    """
    fields = changed(read_config(whole), name)
    try:
        RasaloreConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{name} of {whole} cannot be built: {error}") from error
    model = out / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_json(model / "config.json", fields)
    shutil.copy(whole / "preprocessor_config.json", model)
    start = OmegaConf.load(whole / "recipe.yaml").initial_weights
    words = [str(whole / "recipe.yaml"), f"model={model}", f"out={out}"]
    if not start:
        return [load_recipe(Stage2Recipe, words)]
    earlier = prepare_ablation(name, Path(start), out / "start")
    again = load_recipe(Stage2Recipe, [*words, f"initial_weights={out / 'start'}"])
    return [*earlier, again]
