"""Stage 2 with one part changed: each ablation by name, trained as the run it is compared with.

An ablation repeats a finished run of train/stage2.py, its recipe, seed and data, with other fields
of config.json. Where that run started from weights of an earlier one, the earlier one is repeated
with the same change first: the change then holds from the first step on. Stage 1's kinds of heatmap
are compared without any training: each is a row of its own.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from modeling_rasalore import RasaloreConfig
from modeling_rasalore.files import write_json
from modeling_rasalore.models.heatmaps_ddpt import HEATMAPS

HALF, TWICE, OTHER = 0.5, 2.0, {"el_dice": "el_tversky", "el_tversky": "el_dice"}
CHANGES: dict[str, dict[str, Any]] = {
    "loss_without_false_positives": {"false_positive_weight": 0.0},
    "loss_without_background": {"background_weight": 0.0},
    "loss_without_sam": {"sam_weight": 0.0},
    "loss_without_points": {"point_activation_weight": 0.0},
    "loss_without_structure": {"structural_weight": 0.0},
    "loss_of_other_form": {"decoder_loss": OTHER},  # el_dice or el_tversky
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


def choose_ablations(words: str, stage2: str) -> list[str]:
    """Names of the ablations to run, in the table's order; those that change nothing are left out.

    Args:
        words: "" for none, "all", or names with commas between them.
        stage2: folder of the finished run that they are compared with.

    Raises:
        ValueError: for an unknown name, one that changes nothing, or no run to compare with, which
            stage 1's heatmaps do without.
    """
    asked = [word.strip() for word in words.split(",") if words]
    if set(asked) <= STAGE1_HEATMAPS.keys():
        return [name for name in STAGE1_HEATMAPS if name in asked]
    if not stage2 or not (Path(stage2) / "run.json").is_file():
        raise ValueError(
            f"ablations repeat a finished run of train/stage2.py, got stage2={stage2!r}; give its "
            "folder as stage2."
        )
    fields = read_config(stage2)
    telling = [name for name in CHANGES if changed(fields, name) != fields]
    made = json.loads((Path(stage2) / "run.json").read_text())["pseudo_masks"] or {}
    if not made.get("segmenter"):
        telling = [name for name in telling if name != "loss_without_sam"]
    telling += STAGE1_HEATMAPS
    if words == "all":
        return telling
    for name in asked:
        if name not in CHANGES | STAGE1_HEATMAPS:
            known = ", ".join((*CHANGES, *STAGE1_HEATMAPS))
            raise ValueError(f"ablations are all or any of {known}, got {name!r}.")
        if name not in telling:
            raise ValueError(f"{stage2} already is what the ablation {name} would make of it.")
    return [name for name in telling if name in asked]


def read_config(folder: str | Path) -> dict[str, Any]:
    """Fields of a model folder's config.json."""
    fields: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    return fields


def changed(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration's fields with an ablation's change; numbers double or halve."""
    new = dict(fields)
    for field, change in CHANGES[name].items():
        if isinstance(change, dict):
            new[field] = change[fields[field]]
        elif field in ("grid_size", "refiner_grid"):
            new[field] = max(round(fields[field] * change), 1)
        else:
            new[field] = change
    return new


def prepare_ablation(name: str, stage2: Path, out: Path) -> list[list[str]]:
    """Words of the train/stage2.py runs that make an ablation of `stage2` in `out`, in order.

    Writes the changed model folder that they start from, `out`/model.

    Raises:
        ValueError: a network with this change cannot be built.
    """
    fields = changed(read_config(stage2), name)
    try:
        RasaloreConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{name} of {stage2} cannot be built: {error}") from error
    model = out / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_json(model / "config.json", fields)
    shutil.copy(stage2 / "preprocessor_config.json", model)
    words = [str(stage2 / "recipe.yaml"), f"model={model}", f"out={out}"]
    start = OmegaConf.load(stage2 / "recipe.yaml").initial_weights
    if not start:
        return [words]
    earlier = prepare_ablation(name, Path(start), out / "start")
    return [*earlier, [*words, f"initial_weights={out / 'start'}"]]


def train_ablation(name: str, stage2: Path, out: Path) -> None:
    """Train an ablation unless it is there; a run that was interrupted goes on.

    Raises:
        ValueError: it cannot be built, or its training failed.
    """
    script = Path(__file__).parents[1] / "stage2.py"
    for words in prepare_ablation(name, stage2, out):
        folder = Path(next(w for w in words if w.startswith("out=")).removeprefix("out="))
        if (folder / "run.json").is_file():
            continue
        done = subprocess.run(
            [sys.executable, str(script), *words], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"training {name} ended with code {done.returncode}: {last}")
