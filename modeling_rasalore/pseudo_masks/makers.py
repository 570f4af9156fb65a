"""Make the pseudo-masks of all unhealthy training and validation slices, patient by patient."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.layouts import find_patients
from ..data.patient import Patient
from ..data.splits import read_split, refuse_other_split, split_hash, write_split
from ..files import claim_folder, learned_hash, write_json
from ..provenance import provenance
from .fusion import FusedMaker
from .recipe import PseudoMaskRecipe, check_sources
from .sources import HeatmapMaker, ScoreMaker, TeacherMaker, TruthMaker
from .table import count_masks, table_path, write_masks


def make_pseudo_masks(recipe: PseudoMaskRecipe) -> Path:
    """Write the pseudo-masks of a recipe and return their folder; patients done before are kept.

    Where all are done, nothing is loaded or fitted again.

    Raises:
        ValueError: sources that exclude each other, know other patients, or made what the folder
            holds already.
    """
    check_sources(recipe)
    out = Path(recipe.out)
    patients = find_patients(recipe.data.root, recipe.data.same_person)
    split = read_split(Path(recipe.stage1) / "split.json", patients)
    sources = sources_of(recipe)
    for folder in sources:
        refuse_other_split(folder, split)
    patients = [*split["train"], *split["validation"]]
    settings, split_sha256 = settings_of(recipe), split_hash(split)
    if ended_before(out, settings, split_sha256, patients):
        print(f"done before: {out}")
        return out
    make = build_maker(recipe, split["train"])
    claim_folder(out, settings, "masks")
    if isinstance(make, ScoreMaker) and make.segmenter:
        make.facts |= make.settle_margin(split["train"])
    write_split(split, out / "split.json", sources)

    for patient in tqdm(patients, desc=out.name, unit="patient"):
        if not table_path(out, patient.patient_id).exists():
            write_masks(out, patient.patient_id, make(patient))
    summary = {
        **provenance(),
        **make.facts,
        "source": "teacher" if recipe.teacher else recipe.source,
        "modality": recipe.data.modality,
        "seed": recipe.seed,
        "split_sha256": split_sha256,
    }
    write_json(out / "run.json", summary)
    count = sum(count_masks(out, patient.patient_id) for patient in patients)
    print(f"done: pseudo-masks of {count} slices of {len(patients)} patients in {out}")
    return out


def settings_of(recipe: PseudoMaskRecipe) -> dict[str, Any]:
    """Return what decides the masks: a folder never mixes those of two recipes or networks."""
    settings = {k: v for k, v in vars(recipe).items() if k not in ("out", "batch_size", "data")}
    learned = {folder: learned_hash(Path(folder)) for folder in sources_of(recipe)}
    data = {"modality": recipe.data.modality, "skip_slices": recipe.data.skip_slices}
    return settings | data | {"weights_sha256": learned}


def sources_of(recipe: PseudoMaskRecipe) -> list[str]:
    """Return the folders of the trained networks that a recipe names."""
    return list(filter(None, (recipe.stage1, recipe.appearance, recipe.teacher, *recipe.fuse)))


def ended_before(
    out: Path, settings: dict[str, Any], split_sha256: str, patients: Sequence[Patient]
) -> bool:
    """Return whether a folder holds the masks of these settings of all patients of this split."""
    files = [out / "settings.json", out / "run.json"]
    if not all(file.is_file() for file in files):
        return False
    stored, made = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    whole = all(table_path(out, patient.patient_id).exists() for patient in patients)
    return whole and stored == settings and made["split_sha256"] == split_sha256


def build_maker(recipe: PseudoMaskRecipe, training: Sequence[Patient]) -> ScoreMaker | TruthMaker:
    """Return what makes the masks of a recipe; `training` patients may say how."""
    if recipe.source == "truth":
        return TruthMaker(recipe)
    if recipe.source == "fused":
        return FusedMaker(recipe, training)
    return TeacherMaker(recipe) if recipe.teacher else HeatmapMaker(recipe)
