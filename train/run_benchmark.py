"""Score systems on held-out patients under one protocol, and write the table.

    accelerate launch --cpu train/run_benchmark.py data.root=phantoms stage1=runs/stage1 \
        stage2=runs/stage2 ceiling=runs/ceiling out=runs/benchmark

Only test patients are scored, with every slice that shows brain. True masks are read here for the
first time, and only to score; thresholds come from healthy slices of validation patients, or are
called oracle.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from baselines.interface import System
from baselines.threshold import Chance, IntensityThreshold
from baselines.trained import Stage1Heatmap, Stage2Network
from omegaconf import MISSING
from tqdm import tqdm

from modeling_rasalore.evaluation import (
    PatientScores,
    Thresholds,
    check_disjoint,
    compare_rows,
    evaluate_system,
    write_results,
)
from modeling_rasalore.layouts import Patient, find_patients
from modeling_rasalore.metrics import false_alarm_threshold
from modeling_rasalore.recipes import DataRecipe, load_recipe
from modeling_rasalore.reports import results_figure, results_table
from modeling_rasalore.slices import HEALTHY, read_slices, read_split, split_hash
from modeling_rasalore.training import provenance


@dataclass
class BenchmarkRecipe:
    """Which systems, on which patients."""

    out: str = MISSING
    stage1: str = MISSING  # folder of train/stage1.py; its split.json says who is held out
    stage2: str = MISSING  # folder of train/stage2.py on stage 1's pseudo-masks
    ceiling: str = ""  # folder of train/stage2.py on true masks; empty: no such row
    data: DataRecipe = field(default_factory=DataRecipe)
    false_alarm_rate: float = 0.01  # of brain voxels of healthy slices, for label-free thresholds
    seed: int = 0


def main(words: list[str]) -> None:
    recipe = load_recipe(BenchmarkRecipe, words)
    split = read_split(Path(recipe.stage1) / "split.json", find_patients(recipe.data.root))
    unscored = [patient.patient_id for patient in split["test"] if patient.mask is None]
    if unscored:
        raise ValueError(
            f"scoring needs a mask of every test patient, but {', '.join(unscored)} have none; "
            "everything else works without: see train/demo.sh."
        )
    check_disjoint({name: [p.patient_id for p in part] for name, part in split.items()})
    rows = []
    for name, build in systems(recipe).items():
        system = build()
        with TemporaryDirectory() as folder:
            rows += evaluate_system(
                name,
                ScoredPatients(system, split["test"], recipe.data, name, Path(folder)),
                label_free(system, split["validation"], recipe),
                recipe.data.modality,
                seconds=system.seconds,
                peak_mib=system.peak_mib,
                weights=system.weights,
                seed=recipe.seed,
            )
    reference = {(r["view"], r["threshold"]): r for r in rows if r["system"] == "threshold"}
    comparisons = [
        compare_rows(row, reference[row["view"], row["threshold"]], recipe.seed)
        for row in rows
        if row["system"] != "threshold" and (row["view"], row["threshold"]) in reference
    ]
    write_out(recipe, rows, comparisons, split)


def systems(recipe: BenchmarkRecipe) -> dict[str, Callable[[], System]]:
    """Name -> constructor; a system is built when its turn comes."""
    available: dict[str, Callable[[], System]] = {
        "chance": lambda: Chance(recipe.seed),
        "threshold": IntensityThreshold,
        "ddpt": lambda: Stage1Heatmap(Path(recipe.stage1), Path(recipe.stage2)),
        "rasalore_without_sam": lambda: Stage2Network(Path(recipe.stage2)),
    }
    if recipe.ceiling:
        available["ceiling"] = lambda: Stage2Network(Path(recipe.ceiling))
    return available


class ScoredPatients:
    """Test patients with one system's scores, scored once; scores wait on disk between passes."""

    def __init__(
        self, system: System, patients: list[Patient], data: DataRecipe, name: str, folder: Path
    ):
        self.system, self.patients, self.data = system, patients, data
        self.name, self.folder = name, folder

    def __iter__(self) -> Iterator[PatientScores]:
        for patient in tqdm(self.patients, desc=self.name, unit="patient"):
            slices = list(
                read_slices(patient, self.data.modality, with_mask=True, skip=self.data.skip_slices)
            )
            images = [example["image"] for example in slices]
            yield PatientScores(
                patient_id=patient.patient_id,
                scores=self.scores(patient.patient_id, images),
                truth=np.stack([example["mask"] for example in slices]) > 0,
                brain=np.stack(images) > 0,
                spacing=slices[0]["spacing"],
            )

    def scores(self, patient_id: str, images: list[np.ndarray]) -> np.ndarray:
        """Scores (S, H, W) of one patient, computed in the first pass."""
        path = self.folder / f"{self.name}-{patient_id}.npy"
        if not path.exists():
            np.save(path, np.stack(self.system.score(images)))
        return np.load(path)


def label_free(system: System, patients: list[Patient], recipe: BenchmarkRecipe) -> Thresholds:
    """Threshold for the asked false-alarm rate on healthy validation slices; no mask is opened."""
    inside = []
    for patient in patients:
        healthy = read_slices(
            patient, recipe.data.modality, skip=recipe.data.skip_slices, labels={HEALTHY}
        )
        images = [example["image"] for example in healthy]
        scores = system.score(images) if images else []
        inside += [s[image > 0] for s, image in zip(scores, images, strict=True)]
    if not inside:
        return Thresholds()
    threshold = false_alarm_threshold(np.concatenate(inside), recipe.false_alarm_rate)
    return Thresholds(threshold, recipe.false_alarm_rate)


def write_out(
    recipe: BenchmarkRecipe, rows: list[dict], comparisons: list[dict], split: dict
) -> None:
    """Write results.json, results.md and results.png, and print the table."""
    out = Path(recipe.out)
    meta = {
        **provenance(),
        "modality": recipe.data.modality,
        "test_patients": [patient.patient_id for patient in split["test"]],
        "split_sha256": split_hash(split),
        "seeds": 1,
        "against_threshold": comparisons,
    }
    write_results(out / "results.json", meta, rows)
    table = results_table(rows)
    (out / "results.md").write_text(table + "\n")
    results_figure(rows, out / "results.png")
    print(table)
    print(f"done: {out / 'results.json'}, results.md, results.png")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
