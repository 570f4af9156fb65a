"""All that stage 2 needs, in seconds: toy scans, their masks as pseudo-masks, a toy model."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor
from modeling_rasalore.benchmark import running
from modeling_rasalore.data.labels import UNHEALTHY
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.data.splits import split_patients, write_split
from modeling_rasalore.processes import Work, reason_of_failure
from modeling_rasalore.pseudo_masks.table import SliceMasks, write_masks
from modeling_rasalore.recipes import load_recipe
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.studies import judging, study
from modeling_rasalore.training.stage2 import Stage2Recipe, train_stage2

SIDE, DEPTH = 32, 14
FEW = "loop.batch_size=4,data.shuffle_buffer=20,loop.tensorboard=false"
TWO_STEPS = (  # words of a study
    f"stage1=[loop.max_steps=2,heatmap_slices=4,{FEW}]",
    f"stage2=[loop.max_steps=2,loop.checkpoint_every=1,minimum_area=1,{FEW},"
    "synthetic_lesions.minimum_brain_area=100]",
    # After two steps neither stage is sure of anything.
    "pseudo_masks=[minimum_probability=0,uncertain_above=0,uncertain_up_to=0]",
)
ONE_AT_A_TIME = Lock()
# Dropout, noise and BatchNorm are all there: a step must not depend on who computes which part.
MODEL = {
    "image_size": 16,
    "base_channels": 2,
    "grid_size": 8,
    "refiner_grid": 8,
    "num_attention_heads": 2,
    "dropout": 0.1,
}
RECIPE = {
    "model": "",
    "minimum_area": 50,
    "data": {"modality": "t2", "skip_slices": 1, "shuffle_buffer": 12, "lanes": 4},
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    "augmentation": {"rotation_degrees": 90, "brightness": 0.2, "noise_std": 0.05},
    "loop": {"batch_size": 6, "accumulation": 2, "gradient_clip": 1.0, "log_every": 1},
}


def write_scans(folder: Path, patients: int, seed: int = 0) -> Path:
    """Patients of the BraTS 2021 layout with lesions of different height; half have whole numbers,
    the others fractions."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = (rows - 16) ** 2 + (columns - 16) ** 2 < 196
    for number in range(patients):
        name = f"BraTS2021_{number:05d}"
        scan = random.integers(100, 300, (SIDE, SIDE, DEPTH)) * inside[..., None]
        mask = np.zeros(scan.shape, np.uint8)
        row, column, low = random.integers(8, 14), random.integers(8, 14), 2 + number % 3
        mask[row : row + 9, column : column + 9, low : low + 4 + number % 5] = 1
        scan = np.where(mask, scan + 400, scan) / (1.0 + number % 2 / 3)
        (folder / name).mkdir(parents=True, exist_ok=True)
        affine = np.diag([-2.0, -2.0, 3.0, 1.0])
        write_nifti(folder / name / f"{name}_t2.nii.gz", scan.astype(np.float32), affine)
        write_nifti(folder / name / f"{name}_seg.nii.gz", mask, affine)
    return folder


def write_study(folder: Path, patients: int = 9) -> Path:
    """`folder` with scans/, masks/ as of train/make_pseudo_masks.py, model/ and training.yaml."""
    found = find_patients(write_scans(folder / "scans", patients))
    masks = folder / "masks"
    masks.mkdir(parents=True)
    write_split(split_patients(found, 0, validation=2, test=1), masks / "split.json")
    (masks / "run.json").write_text("{}")
    for patient in found:
        rows = read_slices(patient, "t2", with_mask=True, skip=1, labels={UNHEALTHY})
        tables = [
            SliceMasks(row.patient_id, row.slice_index, row.mask, 4.0 * row.mask.sum())
            for row in rows
        ]
        write_masks(masks, patient.patient_id, tables)
    RasaloreConfig(**MODEL).save_pretrained(folder / "model")
    RasaloreImageProcessor(MODEL["image_size"], 1).save_pretrained(folder / "model")
    recipe = {**RECIPE, "model": str(folder / "model"), "pseudo_masks": str(masks)}
    (folder / "training.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder


def run_stage2(words: Sequence[str]) -> Path:
    """Run stage 2 on the words of a command line, in this process."""
    return train_stage2(load_recipe(Stage2Recipe, words))


def benchmark(words: Sequence[str]) -> Path:
    """Run the benchmark on the words of a command line."""
    return running.run_benchmark(load_recipe(running.BenchmarkRecipe, words))


@contextmanager
def studying_here() -> Iterator[None]:
    """Study in nothing but this process, with the same numbers on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        for module in (study, judging):
            patch.setattr(module, "available_cores", lambda: 1)
        patch.setenv("ACCELERATE_USE_CPU", "1")
        torch.set_num_threads(1)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run_here(work: Work) -> str:
    """Do one system's work at a time: transformers changes its classes while it loads a model, so
    that two threads that load at once leave it broken."""
    with ONE_AT_A_TIME:
        return reason_of_failure(work)


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmark run its systems here: starting a process takes longer than all they do."""
    monkeypatch.setattr(running, "run_apart", run_here)
