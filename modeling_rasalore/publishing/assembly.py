"""Assemble what is published in a folder of its own: a model, a data set of slices, or a Space.

No path of this machine and, with a model, no patient id is published.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from transformers import AutoImageProcessor, AutoModel

from ..data.layouts import find_patients
from ..data.patient import AUTO
from ..data.shard_writing import SliceChoice, write_split_files
from ..data.splits import read_split, split_hash, write_split
from ..evaluation.rows import BY_PATIENT, systems_in
from ..files import write_json
from ..models.pipeline_rasalore import BrainAnomalyPipeline
from ..prediction.saved_options import (
    CALIBRATION_FILE,
    carry_defaults,
    find_calibration,
)
from ..recipes import MISSING
from .cards import DataFacts, ModelFacts, data_card, model_card
from .repository import Target

SOURCES = ("stage1", "stage2", "scans", "space")
MODEL_TYPES = {"stage1": "ddpt", "stage2": "rasalore"}
# Keys of a run's recipe that name folders of this machine; training.yaml leaves them to its user.
LOCAL_KEYS = ("out", "pseudo_masks", "initial_weights", "root", "same_person", "file")
AUTO_SKIP = "15 of 155 (none of scans with fewer than 50)"  # skip_slices=auto in words


@dataclass
class PushRecipe:
    """What to publish, exactly one of the first four, and where.

    Attributes:
        stage1: folder of train/stage1.py.
        stage2: folder of train/stage2.py.
        scans: folder of scans, published as slices; needs `split`.
        space: folder that becomes a Space as it is.
        repo: "user/name".
        push: whether anything is uploaded; without it all is shown and checked only.
        private: who sees a new repository.
        out: new folder that keeps what was assembled; "": none.
        license: of the weights.
        data_name: the scans, as a reader knows them: "BraTS 2021".
        data_license: under which they may be used; a data set is published under it.
        results: results.json of train/run_benchmark.py on the same split.
        row: of the results, the system that these weights are; "": ddpt of stage 1, rasalore of
            stage 2.
        split: split.json of a run, for a data set.
        modality: t1, t1ce, t2 or flair, of a data set.
        skip_slices: lowest and highest axial slices left out of a data set.
        with_masks: publish the true masks of a data set too.
    """

    stage1: str = ""
    stage2: str = ""
    scans: str = ""
    space: str = ""
    repo: str = MISSING
    push: bool = False
    private: bool = True
    out: str = ""
    license: str = "apache-2.0"
    data_name: str = ""
    data_license: str = ""
    results: str = ""
    row: str = ""
    split: str = ""
    modality: str = "t2"
    skip_slices: int = 15
    with_masks: bool = False


def what_to_publish(recipe: PushRecipe) -> str:
    """Return the one of SOURCES that is given; ValueError for none, two, or missing facts."""
    given = [name for name in SOURCES if getattr(recipe, name)]
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


# --- Models ---------------------------------------------------------------------------------
def assemble_model(
    recipe: PushRecipe, stage: str, templates: Path, folder: Path
) -> tuple[Any, Any]:
    """Fill `folder` with a model repository; return model and processor.

    Args:
        stage: "stage1" or "stage2".
        templates: folder with model_card.md.
    """
    source = Path(getattr(recipe, stage))
    model, processor = load_stage(source, stage)
    save_with_code(model, processor, folder)
    calibration = find_calibration(source, model)
    if calibration:
        write_json(folder / CALIBRATION_FILE, calibration)
    carry_defaults(source, folder)
    run = without_paths(json.loads((source / "run.json").read_text("utf-8")))
    write_json(folder / "run.json", run)
    data = write_training_recipe(source / "recipe.yaml", recipe.repo, folder / "training.yaml")
    row = recipe.row or MODEL_TYPES[stage]
    rows = []
    if recipe.results:
        results = public_results(Path(recipe.results), run)
        rows = results["rows"]
        require_row(row, rows, recipe.results)
        write_json(folder / "results.json", results)
    facts = ModelFacts(
        repo=recipe.repo,
        stage=model.config.model_type,
        modality=data["modality"],
        data_name=recipe.data_name,
        data_license=recipe.data_license,
        license=recipe.license,
        parameters=model.num_parameters(),
        backbone=getattr(model.config, "base_model_name_or_path", None),
        skip_slices=AUTO_SKIP if data["skip_slices"] == AUTO else data["skip_slices"],
        run=run,
        row=row,
        rows=rows,
        thresholds=calibration.get("thresholds", []),
        training_command=training_command(stage),
        benchmark_command=benchmark_command(row, data["modality"]),
        sees_scans=processor.see is not None,
    )
    model_card(facts, templates / "model_card.md").save(folder / "README.md")
    return model, processor


def load_stage(source: Path, stage: str) -> tuple[Any, Any]:
    """Return model, in evaluation mode, and processor; ValueError for a model of another stage."""
    model, processor = AutoModel.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    expected = MODEL_TYPES[stage]
    if model.config.model_type != expected:
        raise ValueError(f"{stage} must hold a {expected} model, got {model.config.model_type}.")
    return model.eval(), processor


def save_with_code(model: Any, processor: Any, folder: Path) -> None:
    """Save a model with the package's own files, so that remote code is never older than it."""
    if model.config.model_type == "rasalore":
        BrainAnomalyPipeline(model=model, image_processor=processor).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def without_paths(content: Any) -> Any:
    """Return what a run says of itself with names in the place of this machine's paths."""
    if isinstance(content, dict):
        return {without_paths(key): without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    local = isinstance(content, str) and (Path(content).is_absolute() or Path(content).exists())
    return Path(content).name if local else content


def write_training_recipe(source: Path, repo: str, target: Path) -> dict[str, Any]:
    """Write a run's recipe as others start it; return its section on data.

    It names no folder of this machine, and the model is that of the Hub.
    """
    from omegaconf import OmegaConf

    recipe: Any = OmegaConf.to_container(OmegaConf.load(source))
    for section in (recipe, recipe["data"], recipe.get("split", {})):
        for key in LOCAL_KEYS:
            section.pop(key, None)
    recipe["model"] = repo
    OmegaConf.save(OmegaConf.create(recipe), target)
    return dict(recipe["data"])


def public_results(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Return scores without patient ids and folders; ValueError for scores of other patients."""
    results = json.loads(path.read_text("utf-8"))
    meta, rows = results["meta"], results["rows"]
    if "split_sha256" not in meta:
        raise ValueError(
            f"{path} is a table of several runs, which no single model has made; give the results "
            "of one benchmark."
        )
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


def require_row(system: str, rows: Sequence[Mapping[str, Any]], results: str) -> None:
    """Raise ValueError where no row scores the model, so that a card claims no other's scores."""
    systems = systems_in(rows)
    if system not in systems:
        raise ValueError(
            f"{results} must score this model, and has no row {system!r}, only "
            f"{', '.join(systems) or 'none'}; say which row is this model's with row=..."
        )


def training_command(stage: str) -> str:
    """Return what trains the model, from a clone of the code."""
    masks = " pseudo_masks=<folder of make_pseudo_masks.py>" if stage == "stage2" else ""
    script = f"accelerate launch train/{stage}.py training.yaml"
    return f"{script} data.root=<scans>{masks} out=runs/{stage}"


def benchmark_command(row: str, modality: str) -> str:
    """Return what scores the model, from a clone of the code."""
    stage2 = "rasalore" if row == "ddpt" else row
    return (
        f"python train/run_benchmark.py data.root=<scans> data.modality={modality} "
        f"stage1=runs/stage1 {stage2}=runs/stage2 out=runs/benchmark"
    )


# --- Data sets and Spaces -------------------------------------------------------------------
def assemble_data(recipe: PushRecipe, templates: Path, folder: Path) -> list[dict[str, Any]]:
    """Fill `folder` with a data set repository; return the counts of each split.

    Args:
        templates: folder with data_card.md.
    """
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
    data_card(facts, templates / "data_card.md").save(folder / "README.md")
    ids = [patient.patient_id for patients in split.values() for patient in patients]
    print(f"patient ids are published as they are, such as {ids[0]}; they must not name anyone")
    return counts


def space_target(recipe: PushRecipe) -> Target:
    """Return where a Space goes; ValueError for a folder that the Hub could not start."""
    readme = Path(recipe.space) / "README.md"
    sdk = RepoCard.load(readme).data.get("sdk") if readme.is_file() else None
    if not sdk:
        raise ValueError(
            f"{recipe.space} needs a README.md whose header says `sdk:`, as every Space."
        )
    return Target(recipe.repo, "space", recipe.private, sdk)
