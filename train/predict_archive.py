"""A whole archive through a model: any number of processes, on any number of machines.

    python train/predict_archive.py scans=archive model=runs/stage2 out=results modality=t2
On four machines that share the folder, each with its own number:
    python train/predict_archive.py scans=archive model=runs/stage2 out=results shard=0/4
A process per GPU of one machine:
    accelerate launch train/predict_archive.py scans=archive model=runs/stage2 out=results
On a Ray cluster (extra [ray]), decoding on any free processor, the model on four GPUs:
    python train/predict_archive.py scans=archive model=runs/stage2 out=results \
        ray.workers=4 ray.gpus=1
How far all of them are:
    python train/predict_archive.py scans=archive model=runs/stage2 out=results only_progress=true

Start it again after an interruption, with the same shards or others: finished scans are skipped.
The last shard to finish writes results.parquet, one row per scan, failures with their reasons.
"""

import hashlib
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

from omegaconf import MISSING

from modeling_rasalore.files import claim_folder, write_json
from modeling_rasalore.prediction.archive import FILES, Archive, run_shard
from modeling_rasalore.prediction.loading import choose_precision, load_model
from modeling_rasalore.prediction.ray import run_on_ray
from modeling_rasalore.prediction.run import RunSettings
from modeling_rasalore.prediction.volume import describe_model
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.finding import find_scans


@dataclass
class RayRecipe:
    """Workers of a Ray cluster, RAY_ADDRESS's or one on this machine."""

    workers: int = 0  # that hold the model; 0: no Ray, this process works alone
    gpus: float = 0.0  # of each worker; 0.5: two share one


@dataclass
class ArchiveRecipe:
    """Which scans, which model, which share of the work."""

    scans: str = MISSING  # folder, searched through
    model: str = MISSING  # folder or repo id
    out: str = MISSING
    shard: str = "0/1"  # which, counted from 0, of how many
    revision: str = "main"  # of a repo id
    modality: str | None = None  # which scans of the folder, which volume of MSD scans
    volume: int | None = None  # of other 4-D scans
    threshold: float = 0.5
    flips: bool = False  # average over mirror images
    noise_samples: int = 0  # draws of the model's noise, for a quality score per scan
    smooth_mm: float = 0.0  # of the scores, across slices too
    smallest_ml: float = 0.0  # smaller components are left out of the mask
    precision: str = "auto"  # float32, bfloat16; auto: what suits the device
    files: list[str] = field(default_factory=lambda: ["mask"])  # mask, scores; []: rows only
    batch_size: int = 8
    device: str = "auto"
    ray: RayRecipe = field(default_factory=RayRecipe)
    only_progress: bool = False  # say how far all shards are, and do nothing


def main(words: list[str]) -> int:
    recipe = load_recipe(ArchiveRecipe, words)
    if unknown := [name for name in recipe.files if name not in FILES]:
        raise ValueError(f"files must be some of {', '.join(FILES)}, got {', '.join(unknown)}.")
    shard = pick_shard(recipe.shard)
    root, out = Path(recipe.scans), Path(recipe.out)
    if not root.is_dir():
        raise ValueError(f"scans must be a folder, got {root}.")
    names = [p.relative_to(root).as_posix() for p in find_scans([root], recipe.modality)]
    archive = Archive(root, tuple(names), out, tuple(recipe.files))
    if recipe.only_progress:
        return conclude(archive.progress(), out)
    device = pick_device(recipe.device)
    open_model = partial(load_model, recipe.model, recipe.revision, device)
    model, processor = open_model()
    shared = {setting.name for setting in fields(RunSettings)} & vars(recipe).keys()
    chosen = {name: getattr(recipe, name) for name in shared}
    chosen["precision"] = choose_precision(model, recipe.precision)
    settings = RunSettings(threshold_source="given", **chosen)
    facts = {
        "model": describe_model(model),
        "settings": {**asdict(settings), "files": recipe.files},
        "scans": len(names),
        "data_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }
    claim_folder(out, facts, "results")
    write_json(out / "run.json", {"stage": "archive", **facts, **provenance()})
    if recipe.ray.workers:
        progress = run_on_ray(archive, shard, open_model, settings, **asdict(recipe.ray))
    else:
        progress = run_shard(archive, shard, model, processor, settings)
    return conclude(progress, out)


def pick_shard(text: str) -> tuple[int, int]:
    """Number and count of this process's shard; processes of one launch share the given one."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard must be like 0/4, counted from 0, got {text!r}.")
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return int(number) * ranks + rank, int(count) * ranks


def pick_device(device: str) -> str:
    """The given device; for "auto" in a launch of several processes, each one's own GPU."""
    import torch

    if device == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def conclude(progress: dict[str, int], out: Path) -> int:
    """Say how far all shards are; returns the exit code."""
    print(
        f"{progress['done']} of {progress['scans']} scans done, {progress['failed']} failed, "
        f"{progress['left']} left; results are in {out}"
    )
    return int(progress["failed"] > 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
