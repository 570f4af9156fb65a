"""Which of several stage-2 runs to go on with, by criteria that need no mask.

    python train/compare_runs.py stage1=runs/stage1 runs=[runs/a,runs/b,runs/c] data.root=scans \
        out=runs/choices

Validation patients are scored, whose slice labels are all that is read of them. choices.md has a
line per run and a column per criterion, and marks what each would choose; choices.json names the
chosen runs too, and says how well every two runs agree, such as two rounds of self-training.
oracle=true adds what true masks of the validation patients would have chosen. It is computed when
everything else is written, and is no choice: it says how good the others are.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from tqdm import tqdm

from modeling_rasalore import DdptModel, RasaloreImageProcessor
from modeling_rasalore.data.labels import HEALTHY, UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import LabelledSlice, Patient
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.data.splits import read_split, refuse_other_split, split_hash
from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.files import replace_file, some, write_json
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.volume import predict_slices
from modeling_rasalore.provenance import provenance
from modeling_rasalore.pseudo_masks.criteria import (
    SliceEvidence,
    Values,
    agreement,
    choices_table,
    choose,
    deletions,
    mean,
    slice_score,
    summarise,
)
from modeling_rasalore.recipes import DataRecipe, load_recipe
from modeling_rasalore.scans.background import brain_of

Image = NDArray[np.float32]
Network = tuple[Any, Any]  # model and image processor
Evidence = dict[str, list[SliceEvidence]]  # by run


@dataclass
class ComparisonRecipe:
    """Which runs, and on what they are compared."""

    stage1: str = MISSING  # folder of train/stage1.py: its split, and the classifier of deletion
    runs: list[str] = field(default_factory=list)  # folders of train/stage2.py of the same split
    out: str = MISSING
    data: DataRecipe = field(default_factory=DataRecipe)
    oracle: bool = False  # also what true masks of the validation patients would choose
    batch_size: int = 32


def main(words: list[str]) -> None:
    recipe = load_recipe(ComparisonRecipe, words)
    split = read_split(Path(recipe.stage1) / "split.json", find_patients(recipe.data.root))
    check_runs(recipe, split)
    networks = {name: open_network(name, recipe.data.modality) for name in recipe.runs}
    classifier = DdptModel.from_pretrained(recipe.stage1).eval()
    classifier.to(next(iter(networks.values()))[0].device)
    stage1 = classifier, RasaloreImageProcessor.from_pretrained(recipe.stage1)

    evidence: Evidence = {name: [] for name in recipe.runs}
    for patient in tqdm(split["validation"], desc=Path(recipe.out).name, unit="patient"):
        for name, found in look(patient, networks, stage1, recipe).items():
            evidence[name] += found
    facts = {**provenance(), "split_sha256": split_hash(split), "modality": recipe.data.modality}
    rows = {name: summarise(found) for name, found in evidence.items()}
    pairs = agreements(evidence)
    write_choices(recipe, rows, pairs, facts)
    if recipe.oracle:
        for name, value in true_dice(networks, split["validation"], recipe).items():
            rows[name]["oracle"] = value
        write_choices(recipe, rows, pairs, facts)
    print(choices_table(rows) + f"done: {recipe.out}")


def check_runs(recipe: ComparisonRecipe, split: Mapping[str, list[Patient]]) -> None:
    """Raise ValueError where there is nothing to compare, or no mask for the oracle."""
    if len(set(recipe.runs)) < max(len(recipe.runs), 1):
        raise ValueError(f"runs must be different folders of train/stage2.py, got {recipe.runs}.")
    for folder in recipe.runs:
        if not (Path(folder) / "run.json").is_file():
            raise ValueError(f"{folder} holds no finished run of train/stage2.py: no run.json.")
        refuse_other_split(folder, split)
    if not split["validation"]:
        raise ValueError("runs are compared on validation patients, and the split has none.")
    bare = [patient.patient_id for patient in split["validation"] if patient.mask is None]
    if recipe.oracle and bare:
        raise ValueError(
            f"oracle=true needs a mask of every validation patient, but {some(bare)} have none; "
            "every other criterion works without."
        )


def open_network(folder: str, modality: str) -> Network:
    """Model and processor of a run; ValueError where it learned from another sequence."""
    model, processor = load_model(folder)
    if model.config.modality != modality:
        raise ValueError(
            f"{folder} learned from {model.config.modality}, and data.modality is {modality}; runs "
            "are compared on the sequence that all of them know."
        )
    return model, processor


def look(
    patient: Patient,
    networks: Mapping[str, Network],
    stage1: tuple[DdptModel, RasaloreImageProcessor],
    recipe: ComparisonRecipe,
) -> Evidence:
    """What every run shows on one patient's labelled slices."""
    examples = read_examples(patient, recipe)
    images = [example.image for example in examples]
    unhealthy = [example.label == UNHEALTHY for example in examples]
    maps = {name: predict(network, images, recipe) for name, network in networks.items()}
    return {
        name: gather(name, maps, images, unhealthy, fall(maps[name], images, unhealthy, stage1))
        for name in networks
    }


def read_examples(
    patient: Patient, recipe: ComparisonRecipe, with_mask: bool = False
) -> list[LabelledSlice]:
    """The labelled slices of one patient."""
    data, labels = recipe.data, {HEALTHY, UNHEALTHY}
    return list(read_slices(patient, data.modality, with_mask, data.skip_slices, labels))


def predict(network: Network, images: list[Image], recipe: ComparisonRecipe) -> list[Image]:
    """Score maps of a run."""
    return predict_slices(*network, images, recipe.batch_size)


def gather(
    name: str,
    maps: Mapping[str, list[Image]],
    images: list[Image],
    unhealthy: list[bool],
    falls: Iterator[float],
) -> list[SliceEvidence]:
    """Evidence of one run, slice by slice."""
    found = []
    for place, (scores, image) in enumerate(zip(maps[name], images, strict=True)):
        brain = brain_of(image)
        facts = (slice_score(scores, brain), int((scores[brain] > 0.5).sum()), int(brain.sum()))
        if not unhealthy[place]:
            found.append(SliceEvidence(False, *facts))
            continue
        agreed = {n: agreement(scores, other[place]) for n, other in maps.items() if n != name}
        found.append(SliceEvidence(True, *facts, next(falls), agreed))
    return found


def fall(
    maps: list[Image],
    images: list[Image],
    unhealthy: list[bool],
    stage1: tuple[DdptModel, RasaloreImageProcessor],
) -> Iterator[float]:
    """Deletion score of each unhealthy slice's map."""
    model, processor = stage1
    shown = [place for place, sick in enumerate(unhealthy) if sick]
    for start in range(0, len(shown), 32):
        places = shown[start : start + 32]
        batch = [maps[place] for place in places], [images[place] for place in places]
        yield from deletions(
            *batch, processor, lambda views: model.unhealthy_probability(views).cpu()
        )


def agreements(evidence: Evidence) -> dict[str, dict[str, float | None]]:
    """Mean agreement of every run with every other one."""
    return {
        name: {
            other: mean([one.agreements[other] for one in found if one.unhealthy])
            for other in evidence
            if other != name
        }
        for name, found in evidence.items()
    }


def true_dice(
    networks: Mapping[str, Network], patients: list[Patient], recipe: ComparisonRecipe
) -> dict[str, float | None]:
    """Mean Dice at 0.5 over unhealthy validation slices; the only place that true masks reach."""
    dices: dict[str, list[float]] = {name: [] for name in networks}
    for patient in tqdm(patients, desc="oracle", unit="patient"):
        examples = [e for e in read_examples(patient, recipe, True) if e.label == UNHEALTHY]
        for name, network in networks.items():
            maps = predict(network, [example.image for example in examples], recipe)
            pairs = zip(maps, examples, strict=True)
            dices[name] += [dice(scores > 0.5, example.lesion) for scores, example in pairs]
    return {name: mean(values) for name, values in dices.items()}


def write_choices(
    recipe: ComparisonRecipe,
    rows: Mapping[str, Values],
    pairs: dict[str, dict[str, float | None]],
    facts: dict[str, Any],
) -> None:
    """Write choices.json and choices.md, each whole or not at all."""
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    content = {**facts, "rows": rows, "chosen_by": choose(rows), "agreement_of_runs": pairs}
    write_json(out / "choices.json", content)
    replace_file(out / "choices.md", lambda draft: draft.write_text(choices_table(rows)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
