"""Publish a trained model, a data set of slices, or a Space on the Hub; a dry run by default.

    python train/push_to_hub.py stage2=runs/demo/stage2 repo=me/rasalore \
        data_name="synthetic brains" data_license=apache-2.0 results=runs/demo/results.json
    python train/push_to_hub.py scans=scans split=runs/stage1/split.json repo=me/slices \
        data_name="BraTS 2021" data_license=...
    python train/push_to_hub.py space=space_app repo=me/rasalore-demo

Everything is assembled in a folder and shown with sizes. A model is then loaded from that folder by
a fresh process that cannot see this package, and must give the same logits and scores. Only
push=true uploads, in one commit; pushing the same thing again makes none. New repositories are
private unless private=false. No path of this machine and, with a model, no patient id is published.
A `calibration.json` that `rasalore calibrate` left beside the model goes with it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from huggingface_hub import RepoCard
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import MISSING, OmegaConf
from transformers import AutoImageProcessor, AutoModel

import modeling_rasalore.models  # noqa: F401 - registers them
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.shard_writing import SliceChoice, write_split_files
from modeling_rasalore.data.splits import read_split, split_hash, write_split
from modeling_rasalore.evaluation.rows import BY_PATIENT
from modeling_rasalore.files import write_json
from modeling_rasalore.models.pipeline_rasalore import BrainAnomalyPipeline
from modeling_rasalore.prediction.calibration import CALIBRATION_FILE, find_calibration
from modeling_rasalore.prediction.volume import predict_slices
from modeling_rasalore.publishing.cards import DataFacts, ModelFacts, data_card, model_card
from modeling_rasalore.publishing.repository import Target, UploadError, local_files, push_folder
from modeling_rasalore.publishing.stranger import outputs_without_package
from modeling_rasalore.recipes import load_recipe

TEMPLATES = Path(__file__).resolve().parents[1] / "hub_configs"
# Keys of a run's recipe that name folders of this machine; training.yaml leaves them to its user.
LOCAL_KEYS = ("out", "pseudo_masks", "initial_weights", "root")
PROBE = np.random.default_rng(0).random((2, 70, 60), dtype=np.float32)  # slices (B, H, W)
PROBE[:, :10] = 0  # background


@dataclass
class PushRecipe:
    """What to publish, exactly one of the first four, and where."""

    stage1: str = ""  # folder of train/stage1.py
    stage2: str = ""  # folder of train/stage2.py
    scans: str = ""  # folder of scans, published as slices; needs split=
    space: str = ""  # folder that becomes a Space as it is
    repo: str = MISSING  # user/name
    push: bool = False  # false: show and check only
    private: bool = True  # who sees a new repository
    out: str = ""  # keep the assembled folder there, to look at
    license: str = "apache-2.0"  # of the weights
    # --- models and data sets ---
    data_name: str = ""  # the scans, as a reader knows them: "BraTS 2021"
    data_license: str = ""  # under which they may be used; a data set is published under it
    results: str = ""  # results.json of train/run_benchmark.py on the same split
    # --- data sets ---
    split: str = ""  # split.json of a run
    modality: str = "t2"
    skip_slices: int = 15
    with_masks: bool = False  # publish true masks too


def main(words: list[str]) -> None:
    recipe = load_recipe(PushRecipe, words)
    kind = what_to_publish(recipe)
    with TemporaryDirectory() as scratch:
        folder = claim(Path(recipe.out)) if recipe.out else Path(scratch)
        if kind == "space":
            folder = Path(recipe.space)
            target = space_target(recipe, folder)
            show(folder)
        elif kind == "scans":
            counts = assemble_data(recipe, folder)
            target = Target(recipe.repo, "dataset", recipe.private)
            show(folder)
            check_data(folder, counts)
        else:
            parts = assemble_model(recipe, kind, folder)
            target = Target(recipe.repo, "model", recipe.private)
            show(folder)
            check_model(*parts, folder)
        if recipe.push:
            upload(folder, target)
        else:
            print(f"dry run: nothing was uploaded; push=true publishes this as {recipe.repo}")


def what_to_publish(recipe: PushRecipe) -> str:
    """The one key that says what is published; ValueError for none, two, or missing facts."""
    given = [name for name in ("stage1", "stage2", "scans", "space") if getattr(recipe, name)]
    if len(given) != 1:
        raise ValueError(
            f"give one of stage1=, stage2=, scans= and space=, got {' and '.join(given) or 'none'}."
        )
    source = Path(getattr(recipe, given[0]))
    if not source.is_dir():
        raise ValueError(f"{given[0]} must be a folder, and there is none at {source}.")
    if given[0] != "space":
        for key in ("data_name", "data_license", *(["split"] if given[0] == "scans" else [])):
            if not getattr(recipe, key):
                raise ValueError(f"the card states where scans come from; add {key}=...")
    return given[0]


def claim(out: Path) -> Path:
    """The folder to assemble in; ValueError where something else lies there."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give out=<a new folder> or delete it.")
    out.mkdir(parents=True, exist_ok=True)
    return out


# --- Models ---------------------------------------------------------------------------------
def assemble_model(recipe: PushRecipe, kind: str, folder: Path) -> tuple[Any, Any]:
    """Fill `folder` with a model repository; returns model and processor."""
    source = Path(recipe.stage1 or recipe.stage2)
    model, processor = AutoModel.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    stage = {"stage1": "ddpt", "stage2": "rasalore"}[kind]
    if model.config.model_type != stage:
        raise ValueError(f"{kind} must hold a {stage} model, got {model.config.model_type}.")
    model.eval()
    # Saving also copies the package's own files, so remote code is never older than the package.
    if stage == "rasalore":
        BrainAnomalyPipeline(model=model, image_processor=processor).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    calibration = find_calibration(source, model)
    if calibration:
        write_json(folder / CALIBRATION_FILE, calibration)
    run = json.loads((source / "run.json").read_text("utf-8"))
    write_json(folder / "run.json", run)
    trained = OmegaConf.load(source / "recipe.yaml")
    OmegaConf.save(public_recipe(trained, recipe.repo), folder / "training.yaml")
    results = public_results(Path(recipe.results), run) if recipe.results else {"rows": []}
    if results["rows"]:
        write_json(folder / "results.json", results)
    facts = ModelFacts(
        repo=recipe.repo,
        stage=stage,
        modality=trained.data.modality,
        data_name=recipe.data_name,
        data_license=recipe.data_license,
        license=recipe.license,
        parameters=model.num_parameters(),
        backbone=getattr(model.config, "base_model_name_or_path", None),
        skip_slices=trained.data.skip_slices,
        run=run,
        rows=results["rows"],
        thresholds=calibration.get("thresholds", []),
        **commands(kind, trained.data.modality),
    )
    model_card(facts, TEMPLATES / "model_card.md").save(folder / "README.md")
    return model, processor


def public_recipe(trained: Any, repo: str) -> Any:
    """The run's recipe as others start it: no folder of this machine, the model from the Hub."""
    recipe: Any = OmegaConf.create(OmegaConf.to_container(trained))
    for section in (recipe, recipe.data):
        for key in LOCAL_KEYS:
            section.pop(key, None)
    recipe.model = repo
    return recipe


def public_results(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Scores without patient ids and folders; ValueError where they are of other patients."""
    results = json.loads(path.read_text("utf-8"))
    meta, rows = results["meta"], results["rows"]
    if meta["split_sha256"] != run["split_sha256"]:
        raise ValueError(f"{path} scores another split than the run's; benchmark this run.")
    learned, scored = meta.pop("learned_from", None), meta.pop("scored_on", None)
    if learned != scored:
        raise ValueError(
            f"{path} scores {scored['root']}, another data set than the run's; give the results of "
            "a benchmark without cross.root."
        )
    meta.pop("test_patients", None)
    return {"meta": meta, "rows": [{**row, **dict.fromkeys(BY_PATIENT)} for row in rows]}


def commands(kind: str, modality: str) -> dict[str, str]:
    """What trains and what scores the model, from a clone of the code."""
    data = f"data.root=<scans> data.modality={modality}"
    masks = " pseudo_masks=<folder of make_pseudo_masks.py>" if kind == "stage2" else ""
    return {
        "training_command": f"accelerate launch train/{kind}.py training.yaml data.root=<scans>"
        f"{masks} out=runs/{kind}",
        "benchmark_command": f"python train/run_benchmark.py {data} stage1=runs/stage1 "
        "stage2=runs/stage2 out=runs/benchmark",
    }


@torch.no_grad()
def check_model(model: Any, processor: Any, folder: Path) -> None:
    """ValueError unless a fresh process without the package gets the same logits and scores."""
    ours = {"logits": model(**processor(list(PROBE), return_tensors="pt")).logits}
    if not ours["logits"].isfinite().all():
        raise ValueError("the model's logits are not finite, so its training went astray.")
    if model.config.model_type == "rasalore":
        ours["scores"] = torch.from_numpy(np.stack(predict_slices(model, processor, list(PROBE))))
    theirs = outputs_without_package(folder, PROBE)
    for name, expected in ours.items():
        if not torch.allclose(expected, theirs[name], rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"without the package the model's {name} differ by "
                f"{(expected - theirs[name]).abs().max():.2g}; nothing was uploaded."
            )
    print(f"loads without the package: same {' and '.join(ours)}")


# --- Data sets and Spaces -------------------------------------------------------------------
def assemble_data(recipe: PushRecipe, folder: Path) -> list[dict[str, Any]]:
    """Fill `folder` with a data set repository; returns the counts of each split."""
    split = read_split(recipe.split, find_patients(recipe.scans))
    choice = SliceChoice((recipe.modality,), recipe.skip_slices, recipe.with_masks)
    counts = write_split_files(split, folder, choice)
    write_split(split, folder / "split.json")
    facts = DataFacts(
        repo=recipe.repo,
        modality=recipe.modality,
        data_name=recipe.data_name,
        data_license=recipe.data_license,
        license=recipe.data_license,
        skip_slices=recipe.skip_slices,
        with_masks=recipe.with_masks,
        split_sha256=split_hash(split),
        splits=counts,
    )
    data_card(facts, TEMPLATES / "data_card.md").save(folder / "README.md")
    ids = [patient.patient_id for patients in split.values() for patient in patients]
    print(f"patient ids are published as they are, such as {ids[0]}; they must not name anyone")
    return counts


def check_data(folder: Path, counts: list[dict[str, Any]]) -> None:
    """ValueError unless `datasets` streams every slice from the folder."""
    for row in counts:
        stream = load_dataset(str(folder), split=row["split"], streaming=True)
        if sum(1 for _ in stream.select_columns("label")) != row["slices"]:
            raise ValueError(f"{row['split']} does not read back whole; nothing was uploaded.")
    print("streams with `datasets`: every slice")


def space_target(recipe: PushRecipe, folder: Path) -> Target:
    """Where a Space goes; ValueError for a folder that the Hub could not start."""
    readme = folder / "README.md"
    sdk = RepoCard.load(readme).data.get("sdk") if readme.is_file() else None
    if not sdk:
        raise ValueError(f"{folder} needs a README.md whose header says `sdk:`, as every Space.")
    return Target(recipe.repo, "space", recipe.private, sdk)


# --- What is shown and sent -----------------------------------------------------------------
def show(folder: Path) -> None:
    """Print every file with its size."""
    files = local_files(folder)
    for name, path in files.items():
        print(f"{path.stat().st_size:>12,}  {name}")
    total = sum(path.stat().st_size for path in files.values())
    print(f"{total:>12,}  bytes in {len(files)} files")


def upload(folder: Path, target: Target) -> None:
    """Upload in one commit and print the revision to pin."""
    pushed = push_folder(folder, target, f"Publish {target.repo.split('/')[-1]}")
    if not pushed.added and not pushed.removed:
        print(f"{target.repo} holds exactly this already; no commit was made")
    else:
        print(f"{target.repo}: {len(pushed.added)} files sent, {len(pushed.removed)} removed")
    print(f"revision={pushed.revision}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, UploadError, HfHubHTTPError) as error:
        sys.exit(f"error: {error}")
