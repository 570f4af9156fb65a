"""Scans -> Parquet files of slices, decoded once for every epoch to come.

    python train/prepare_slices.py root=scans out=slices modalities=[t2,flair]
    python train/prepare_slices.py root=scans out=slices modalities=[t2] with_masks=true processes=8

Every script of this folder then takes data.root=slices, or the web address or data set repo id that
the folder was uploaded to, and reads the same slices, bit for bit. Patients are sorted, one row
group each. True masks go to masks/, which training never opens. Start it again after an
interruption: what is done and unchanged is kept. Scans that cannot be read are listed with the
reason and left out.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from tqdm import tqdm

from modeling_rasalore.data.layouts import SLICES_FILE, find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.shard_writing import (
    SliceChoice,
    describe_inputs,
    write_manifest,
    write_part,
)
from modeling_rasalore.files import claim_folder, remove_drafts, write_json
from modeling_rasalore.provenance import available_cores, provenance
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.naming import MODALITIES


@dataclass
class PrepareRecipe:
    """What is stored, and how it is shared out."""

    root: str = MISSING  # folder of scans in a known layout
    out: str = MISSING
    modalities: list[str] = field(default_factory=lambda: ["t2"])
    with_masks: bool = False  # store true masks too, for scoring
    skip_slices: int = 0  # lowest and highest axial slices left out
    patients_per_file: int = 16
    processes: int = 0  # files written at once; 0: one per core


def main(words: list[str]) -> None:
    recipe = load_recipe(PrepareRecipe, words)
    unknown = [name for name in recipe.modalities if name not in MODALITIES]
    if unknown or not recipe.modalities or recipe.patients_per_file < 1:
        raise ValueError(
            f"modalities must be some of {', '.join(MODALITIES)} and patients_per_file at least 1, "
            f"got {recipe.modalities} and {recipe.patients_per_file}."
        )
    out = Path(recipe.out)
    choice = SliceChoice(tuple(recipe.modalities), recipe.skip_slices, recipe.with_masks)
    patients = find_patients(recipe.root)
    size = recipe.patients_per_file
    shares = [patients[start : start + size] for start in range(0, len(patients), size)]
    claim_folder(out, settings_of(recipe), "slices")
    names = [f"part-{number:05d}" for number in range(len(shares))]
    drop_others(out, names)
    write = partial(write_or_keep, out, choice)
    progress = partial(tqdm, total=len(shares), desc=out.name, unit="file")
    processes = min(recipe.processes or available_cores(), len(shares))
    if processes == 1:
        parts = list(progress(map(write, names, shares)))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            parts = list(progress(pool.map(write, names, shares)))
    write_manifest(out, parts, choice, **provenance())
    failed = [failure for part in parts for failure in part["failed"]]
    for failure in failed:
        print(f"left out: {failure['patient_id']}: {failure['reason']}")
    print(f"done: {len(patients) - len(failed)} of {len(patients)} patients are in {out}")


def settings_of(recipe: PrepareRecipe) -> dict[str, Any]:
    """What decides the files, so that a folder never mixes those of two recipes."""
    return {k: v for k, v in asdict(recipe).items() if k not in ("root", "out", "processes")}


def drop_others(out: Path, names: list[str]) -> None:
    """Delete files of earlier runs that this one will not write, such as drafts of killed ones."""
    (out / SLICES_FILE).unlink(missing_ok=True)  # until everything it lists is there
    remove_drafts(out)
    for path in out.glob("*/part-*"):
        if path.stem not in names:
            path.unlink()


def write_or_keep(
    out: Path, choice: SliceChoice, name: str, patients: list[Patient]
) -> dict[str, Any]:
    """Entry of one file, which is written unless it is there, complete and of the same scans."""
    record = out / "parts" / f"{name}.json"
    if record.exists():
        entry: dict[str, Any] = json.loads(record.read_text())
        if still_true(out, choice, entry, patients):
            return entry
    entry = write_part(out, name, patients, choice)
    record.parent.mkdir(exist_ok=True)
    write_json(record, entry)
    return entry


def still_true(
    out: Path, choice: SliceChoice, entry: dict[str, Any], patients: list[Patient]
) -> bool:
    """Whether a file was made whole from these patients, whose scans have their length still."""
    known = {patient["patient_id"]: patient["inputs"] for patient in entry["patients"]}
    now = {p.patient_id: describe_inputs(p, choice.modalities) for p in patients}
    data = out / "data" / f"{entry['name']}.parquet"
    return known == now and data.is_file() and data.stat().st_size == entry["bytes"]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
