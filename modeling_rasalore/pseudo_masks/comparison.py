"""Compare finished stage-2 runs on validation patients, by criteria that need no mask."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from tqdm import tqdm

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.layouts import find_patients
from ..data.patient import LabelledSlice, Patient, See
from ..data.slices import read_slices
from ..data.splits import read_split, refuse_other_split, split_hash
from ..evaluation.metrics import dice
from ..files import replace_file, some, write_json
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..prediction.loading import load_model
from ..prediction.volume import predict_slices
from ..provenance import provenance
from ..recipes import DataRecipe
from ..scans.background import brain_of
from .criteria import (
    SliceEvidence,
    Values,
    agreement,
    choices_table,
    choose,
    mean,
    score_deletions,
    slice_score,
    summarise,
)

Image = NDArray[np.float32]
Network = tuple[Any, Any]  # model and image processor
Networks = Mapping[str, Network]  # by run
Evidence = dict[str, list[SliceEvidence]]  # by run
Agreements = dict[str, dict[str, float | None]]  # by run and other run


@dataclass
class ComparisonRecipe:
    """Which runs, and on what they are compared.

    Attributes:
        stage1: folder of train/stage1.py: its split, and the classifier of the deletion scores.
        runs: folders of train/stage2.py of the same split.
        out: folder of choices.json and choices.md.
        oracle: whether true masks of the validation patients also choose.
        batch_size: slices scored at once.
    """

    stage1: str = MISSING
    runs: list[str] = field(default_factory=list)
    out: str = MISSING
    data: DataRecipe = field(default_factory=DataRecipe)
    oracle: bool = False
    batch_size: int = 32


def compare_runs(recipe: ComparisonRecipe) -> dict[str, Values]:
    """Write choices.json and choices.md, and return the values of every run by criterion.

    Raises:
        ValueError: nothing to compare, or runs of another split or sequence.
    """
    split = read_split(
        Path(recipe.stage1) / "split.json", find_patients(recipe.data.root, recipe.data.same_person)
    )
    check_runs(recipe, split)
    networks = {name: open_network(name, recipe.data.modality) for name in recipe.runs}
    classifier = DdptModel.from_pretrained(recipe.stage1).eval()
    classifier.to(next(iter(networks.values()))[0].device)
    stage1 = classifier, RasaloreImageProcessor.from_pretrained(recipe.stage1)

    evidence: Evidence = {name: [] for name in recipe.runs}
    for patient in tqdm(split["validation"], desc=Path(recipe.out).name, unit="patient"):
        for name, slices in score_patient(patient, networks, stage1, recipe).items():
            evidence[name] += slices
    facts = {**provenance(), "split_sha256": split_hash(split), "modality": recipe.data.modality}
    pairs = agreements(evidence)
    rows = {name: summarise(slices) for name, slices in evidence.items()}
    write_choices(Path(recipe.out), rows, pairs, facts)
    if recipe.oracle:  # when all else is written, so that true masks can change none of it
        for name, value in true_dice(networks, split["validation"], recipe).items():
            rows[name]["oracle"] = value
        write_choices(Path(recipe.out), rows, pairs, facts)
    return rows


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
    """Return model and processor of a run; ValueError where it learned from another sequence."""
    model, processor = load_model(folder)
    if model.config.modality != modality:
        raise ValueError(
            f"{folder} learned from {model.config.modality}, and data.modality is {modality}; runs "
            "are compared on the sequence that all of them know."
        )
    return model, processor


def score_patient(
    patient: Patient, networks: Networks, stage1: Network, recipe: ComparisonRecipe
) -> Evidence:
    """Return what every run shows on one patient's labelled slices."""
    see = find_see([*networks.values(), stage1])
    examples = read_examples(patient, recipe, see)
    maps = {name: predict(network, examples, recipe) for name, network in networks.items()}
    return {name: collect_evidence(name, maps, examples, stage1) for name in networks}


def read_examples(
    patient: Patient, recipe: ComparisonRecipe, see: See | None, with_mask: bool = False
) -> list[LabelledSlice]:
    """Return the labelled slices of one patient."""
    data, labels = recipe.data, {HEALTHY, UNHEALTHY}
    return list(read_slices(patient, data.modality, with_mask, data.skip_slices, labels, see=see))


def find_see(networks: Iterable[Network]) -> See | None:
    """Return how scans are seen, where one of the networks sees whole scans."""
    return next((processor.see for _, processor in networks if processor.see), None)


def predict(
    network: Network, examples: Sequence[LabelledSlice], recipe: ComparisonRecipe
) -> list[Image]:
    """Return a run's score maps of slices, (H, W) each."""
    images, views = [e.image for e in examples], [e.seen for e in examples]
    return predict_slices(*network, images, recipe.batch_size, views=views)


def collect_evidence(
    name: str, maps: Mapping[str, list[Image]], examples: list[LabelledSlice], stage1: Network
) -> list[SliceEvidence]:
    """Return the evidence of one run, slice by slice.

    Args:
        name: of the run.
        maps: run -> score map of each slice.
    """
    deletions = iter(deletion_scores_of(maps[name], examples, stage1))
    evidence = []
    for index, (scores, example) in enumerate(zip(maps[name], examples, strict=True)):
        brain = brain_of(example.image)
        counts = int((scores[brain] > 0.5).sum()), int(brain.sum())
        shown = slice_score(scores, brain), *counts
        if example.label == UNHEALTHY:
            others = {n: agreement(scores, m[index]) for n, m in maps.items() if n != name}
            evidence.append(SliceEvidence(True, *shown, next(deletions), others))
        else:
            evidence.append(SliceEvidence(False, *shown))
    return evidence


def deletion_scores_of(
    maps: list[Image], examples: list[LabelledSlice], stage1: Network
) -> list[float]:
    """Return the deletion score of each unhealthy slice's map, in their order."""
    model, processor = stage1
    rows = [
        (scores, example.image, example.seen)
        for scores, example in zip(maps, examples, strict=True)
        if example.label == UNHEALTHY
    ]
    scores: list[float] = []
    for start in range(0, len(rows), 32):
        batch, images, views = zip(*rows[start : start + 32], strict=True)
        scores += score_deletions(
            batch,
            images,
            processor,
            lambda slices: model.unhealthy_probability(slices).cpu(),
            views,
        )
    return scores


def agreements(evidence: Evidence) -> Agreements:
    """Return the mean agreement of every run with every other one."""
    return {
        name: {
            other: mean([shown.agreements[other] for shown in slices if shown.unhealthy])
            for other in evidence
            if other != name
        }
        for name, slices in evidence.items()
    }


def true_dice(
    networks: Networks, patients: list[Patient], recipe: ComparisonRecipe
) -> dict[str, float | None]:
    """Return mean Dice at 0.5 over unhealthy slices; the only place that true masks reach."""
    dices: dict[str, list[float]] = {name: [] for name in networks}
    for patient in tqdm(patients, desc="oracle", unit="patient"):
        labelled = read_examples(patient, recipe, find_see(networks.values()), True)
        examples = [example for example in labelled if example.label == UNHEALTHY]
        for name, network in networks.items():
            pairs = zip(predict(network, examples, recipe), examples, strict=True)
            dices[name] += [dice(scores > 0.5, example.lesion) for scores, example in pairs]
    return {name: mean(values) for name, values in dices.items()}


def write_choices(
    out: Path, rows: Mapping[str, Values], pairs: Agreements, facts: dict[str, Any]
) -> None:
    """Write choices.json and choices.md, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    content = {**facts, "rows": rows, "chosen_by": choose(rows), "agreement_of_runs": pairs}
    write_json(out / "choices.json", content)
    replace_file(
        out / "choices.md", lambda draft: draft.write_text(choices_table(rows), encoding="utf-8")
    )
