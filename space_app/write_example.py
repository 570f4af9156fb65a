"""Writes the example cases that the page offers, from a clone with the train extra installed.

    python space_app/write_example.py [runs/demo/stage2]

Twelve synthetic patients are made. The one with the largest tumour, the one with the smallest, and
the one whose tumour stands out least from the brain around it become cases, chosen by their truth
and voxels alone; then a healthy brain, and of the patients that are left the one with the lowest
Dice, as the case where the model fails. The model is the package's where none is given; without
either, the first four are written, without scores.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from analysis import Analyst, say_nothing
from example_cases import EXAMPLES, RECORD, write_scores
from scan_reading import read_scan
from scipy import ndimage

from modeling_rasalore.data.phantoms import Phantom, make_phantom
from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.packaged import packaged_sequences
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS
from modeling_rasalore.prediction.saved_options import complete_options
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask

PATIENTS, HEALTHY_SEED = range(12), 100
SHAPE, VOXEL_SIZE = (96, 112, 96), 2.0  # a whole brain in 0.2 MB
RIM_VOXELS = 4  # around a tumour, which it is compared with


@dataclass(frozen=True, eq=False)
class Patient:
    """A synthetic patient of one sequence.

    Attributes:
        seed: that it was made of.
        voxels: (X, Y, Z) uint8, background 0.
        truth: (X, Y, Z) uint8, 1 in the tumour.
        affine: (4, 4), voxel indices -> mm.
    """

    seed: int
    voxels: np.ndarray
    truth: np.ndarray
    affine: np.ndarray

    @property
    def contrast(self) -> float:
        """Mean of the tumour over that of the brain around it."""
        rim = ndimage.binary_dilation(self.truth, iterations=RIM_VOXELS) & (self.truth == 0)
        return float(
            self.voxels[self.truth > 0].mean() / self.voxels[rim & (self.voxels > 0)].mean()
        )


def make_patient(seed: int, sequence: str, tumour: bool = True) -> Patient:
    """Return a patient; the same seed gives the same voxels but for rounding."""
    phantom: Phantom = make_phantom(seed, SHAPE, VOXEL_SIZE, tumour)
    image = phantom.images[sequence]
    voxels = np.rint(image / image.max() * 255).astype(np.uint8)
    return Patient(seed, voxels, (phantom.mask > 0).astype(np.uint8), phantom.affine)


def write_case(patient: Patient, name: str, title: str, told: str, sequence: str) -> Path:
    """Return the folder of a case without scores, in the place of what it held."""
    folder = EXAMPLES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scan = f"phantom{patient.seed:03d}_{sequence}.nii.gz"
    write_nifti(folder / scan, patient.voxels, patient.affine)
    write_nifti(folder / "truth.nii.gz", patient.truth, patient.affine)
    record = {"title": title, "told": told, "scan": scan, "seed": patient.seed}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return folder


def score_case(folder: Path, analyst: Analyst) -> float:
    """Return the Dice of a case at the usual threshold, after storing its scores."""
    record = json.loads((folder / RECORD).read_text("utf-8"))
    scan = read_scan(folder / record["scan"], analyst.trained_on)
    analysis = analyst.analyse(scan, analyst.options.threshold, say_nothing)
    write_scores(folder, analysis.prediction.scores, scan.volume)
    record["weights_sha256"] = analyst.facts["weights_sha256"]
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return dice(analysis.prediction.mask, read_mask(folder / "truth.nii.gz", scan.volume))


def choose_patients(patients: list[Patient]) -> dict[str, Patient]:
    """Return the patients of the first three cases, by name; none of them is left in `patients`."""

    def take(choose: Callable[..., Patient], key: Callable[[Patient], float]) -> Patient:
        chosen = choose(patients, key=key)
        patients.remove(chosen)
        return chosen

    size, contrast = (
        (lambda patient: float(patient.truth.sum())),
        (lambda patient: patient.contrast),
    )
    return {"large": take(max, size), "small": take(min, size), "faint": take(min, contrast)}


def write_cases(sequence: str, analyst: Analyst | None) -> list[Path]:
    """Return the folders of all cases, with scores where there is a model."""
    shutil.rmtree(EXAMPLES, ignore_errors=True)
    patients = [make_patient(seed, sequence) for seed in PATIENTS]
    write = partial(write_case, sequence=sequence)
    chosen = choose_patients(patients)
    healthy = make_patient(HEALTHY_SEED, sequence, tumour=False)
    many = f"of {len(PATIENTS)} synthetic patients"
    folders = [
        write(chosen["large"], "1_large", "Large tumour", f"The largest tumour {many}."),
        write(chosen["small"], "2_small", "Small tumour", f"The smallest tumour {many}."),
        write(
            chosen["faint"], "3_faint", "Faint tumour", f"The faintest of the other tumours {many}."
        ),
        write(healthy, "4_healthy", "Healthy brain", "A synthetic brain without a lesion."),
    ]
    if analyst is None:
        return folders
    for folder in folders:
        score_case(folder, analyst)
    told = f"The lowest Dice of the other {len(patients)} {many}."
    fail = partial(write, name="5_failure", title="Where it fails", told=told)
    worst = min(patients, key=lambda patient: score_case(fail(patient), analyst))
    folders.append(fail(worst))
    score_case(folders[-1], analyst)
    return folders


def main(words: list[str]) -> None:
    """Write the cases of the model in a folder, else of the package's; without either, of FLAIR."""
    analyst = None
    if words or packaged_sequences():
        model, processor = load_model(words[0] if words else None, device="cpu")
        options = complete_options(DEFAULT_OPTIONS, (), model)
        analyst = Analyst(model, processor, options)
    sequence = (analyst and analyst.trained_on) or "flair"
    for folder in write_cases(sequence, analyst):
        print(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
