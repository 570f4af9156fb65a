"""Store scans as Parquet files of slices, decoded once for every epoch to come.

    python train/prepare_slices.py root=scans out=slices modalities=[t2,flair]
    python train/prepare_slices.py root=scans out=slices modalities=[t2] with_masks=true processes=8

Every script of this folder then takes data.root=slices, or the web address or data set repo id that
the folder was uploaded to, and reads the same slices, bit for bit. Patients are sorted, one row
group each. True masks go to masks/, which training never opens. Start it again after an
interruption: what is done and unchanged is kept. Patients that cannot be read are listed with the
reason and left out, and the exit code is 1.

Labels come from the masks, or from slice_labels.csv in the folder of scans, with the columns
volume (the patient's folder), slice_index (0 is the most inferior) and label (healthy, unhealthy).
"""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from tqdm import tqdm

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.data.labels import LABEL_NAMES
from modeling_rasalore.data.layouts import SLICES_FILE, find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.shard_writing import (
    SliceChoice,
    describe_inputs,
    write_manifest,
    write_part,
)
from modeling_rasalore.files import claim_folder, remove_drafts, some, write_json
from modeling_rasalore.provenance import available_cores, provenance
from modeling_rasalore.scans.naming import MODALITIES


@dataclass
class PrepareRecipe:
    """What is stored, and how it is shared out.

    Attributes:
        root: folder of scans in a known layout.
        out: folder of the slices.
        modalities: t1, t1ce, t2 and flair, those of them that are stored.
        with_masks: store true masks too, for scoring.
        skip_slices: lowest and highest axial slices left out.
        patients_per_file: how many share a file.
        processes: files written at once; 0: one per core.
    """

    root: str = MISSING
    out: str = MISSING
    modalities: list[str] = field(default_factory=lambda: ["t2"])
    with_masks: bool = False
    skip_slices: int = 0
    patients_per_file: int = 16
    processes: int = 0


def main(recipe: PrepareRecipe) -> int:
    unknown = [name for name in recipe.modalities if name not in MODALITIES]
    if unknown or not recipe.modalities or recipe.patients_per_file < 1:
        raise ValueError(
            f"modalities must be some of {', '.join(MODALITIES)} and patients_per_file at least 1, "
            f"got {recipe.modalities} and {recipe.patients_per_file}."
        )
    out, size = Path(recipe.out), recipe.patients_per_file
    choice = SliceChoice(tuple(recipe.modalities), recipe.skip_slices, recipe.with_masks)
    listed = find_patients(recipe.root, some_may_lack_labels=True)
    patients = [patient for patient in listed if patient.has_labels]
    shares = [patients[start : start + size] for start in range(0, len(patients), size)]
    names = [f"part-{number:05d}" for number in range(len(shares))]
    claim_folder(out, settings_of(recipe), "slices")
    delete_others(out, names)
    parts = write_parts(out, choice, dict(zip(names, shares, strict=True)), recipe.processes)
    failed = [failure for part in parts for failure in part["failed"]]
    failed += [
        {"patient_id": patient.patient_id, "reason": "it has neither a mask nor slice labels"}
        for patient in listed
        if not patient.has_labels
    ]
    for failure in failed:
        print(f"left out: {failure['patient_id']}: {failure['reason']}")
    if len(failed) == len(listed):
        raise ValueError(f"none of {len(listed)} patients could be prepared; see the lines above.")
    write_manifest(out, parts, choice, **provenance())
    written = [patient for part in parts for patient in part["patients"]]
    if bare := [
        p["patient_id"] for p in written if not any(map(p["labels"].get, LABEL_NAMES.values()))
    ]:
        print(f"without a labelled slice, so nothing is learned from them: {some(bare)}")
    print(f"done: {len(written)} of {len(listed)} patients are in {out}")
    return 1 if failed or len(bare) == len(written) else 0


def settings_of(recipe: PrepareRecipe) -> dict[str, Any]:
    """Return what decides the files, so that a folder never mixes those of two recipes."""
    return {k: v for k, v in asdict(recipe).items() if k not in ("root", "out", "processes")}


def delete_others(out: Path, names: list[str]) -> None:
    """Delete files of earlier runs that this one will not write, such as drafts of killed ones."""
    (out / SLICES_FILE).unlink(missing_ok=True)  # until everything it lists is there
    remove_drafts(out)
    for path in out.glob("*/part-*"):
        if path.stem not in names:
            path.unlink()


def write_parts(
    out: Path, choice: SliceChoice, shares: dict[str, list[Patient]], processes: int
) -> list[dict[str, Any]]:
    """Return the entry of every file, several written at once; 0 processes: one per core."""
    write = partial(write_unless_current, out, choice)
    progress = partial(tqdm, total=len(shares), desc=out.name, unit="file")
    processes = min(processes or available_cores(), len(shares))
    if processes == 1:
        return list(progress(map(write, shares, shares.values())))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(progress(pool.map(write, shares, shares.values())))


def write_unless_current(
    out: Path, choice: SliceChoice, name: str, patients: list[Patient]
) -> dict[str, Any]:
    """Return the entry of one file; it is written unless it is whole and of the same scans."""
    record = out / "parts" / f"{name}.json"
    if record.exists():
        entry: dict[str, Any] = json.loads(record.read_text())
        if is_current(out, choice, entry, patients):
            return entry
    entry = write_part(out, name, patients, choice)
    record.parent.mkdir(exist_ok=True)
    write_json(record, entry)
    return entry


def is_current(
    out: Path, choice: SliceChoice, entry: dict[str, Any], patients: list[Patient]
) -> bool:
    """Whether a file was made whole from these patients, whose scans have their length still."""
    written = {patient["patient_id"]: patient["inputs"] for patient in entry["patients"]}
    current = {p.patient_id: describe_inputs(p, choice.modalities) for p in patients}
    data = out / "data" / f"{entry['name']}.parquet"
    return written == current and data.is_file() and data.stat().st_size == entry["bytes"]


if __name__ == "__main__":
    recipes.run_script(main)
