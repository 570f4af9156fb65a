r"""Judge a finished model as its users meet it, beside maps that learn nothing.

    rasalore phantom runs/healthy --patients 20 --healthy 20 --seed 2026
    python train/judge_model.py data.root=scans data.modality=t2 healthy=runs/healthy \
        out=runs/judged

Every patient with a scan of the sequence and a mask is scored as `rasalore predict` does it, and
cut at the model's own threshold, without its smallest parts. The rows `smoothed_rank` and `mirror`
get theirs from the same healthy scans, in the same way. Without model=FOLDER the package's own
model is judged, which has learned from nobody. With rates=[0.002,0.005,0.01,0.02] it is judged at
the thresholds of those rates, too: on synthetic patients, whose lesions are known, that chooses a
rate. Writes judged.json and judged.md: average precision and Dice of slices with a lesion, healthy
brain marked, and paired differences, with 95 % intervals over patients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING
from tqdm.auto import tqdm

from modeling_rasalore import recipes  # first, so that an interrupt is one line
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.slices import read_patient
from modeling_rasalore.evaluation.intervals import (
    bootstrap_interval,
    paired_bootstrap,
    pooled_interval,
)
from modeling_rasalore.evaluation.metrics import average_precision, dice
from modeling_rasalore.evaluation.row_scores import marked_share
from modeling_rasalore.evaluation.scan_thresholds import (
    USUAL_SHARE,
    attainable_share,
    promised_threshold,
    scan_threshold,
)
from modeling_rasalore.files import replace_file, write_json
from modeling_rasalore.prediction.free_map import free_map, polarity_of, smoothed_rank
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.saved_options import complete_options
from modeling_rasalore.prediction.volume import mask_above, predict_volume
from modeling_rasalore.provenance import provenance
from modeling_rasalore.recipes import DataRecipe
from modeling_rasalore.scans.background import BrainSlices
from modeling_rasalore.scans.volumes import Volume, read_mask

RATE = 0.01  # of healthy brain
FREE = ("mirror", "smoothed_rank")  # maps that learn nothing
Maker = Callable[[Volume], np.ndarray]  # a scan -> scores (S, H, W)


@dataclass
class JudgeRecipe:
    """Which model, on whom.

    Attributes:
        out: folder of the tables.
        model: folder or repo id of stage 2; empty: the package's own for data.modality.
        data: the patients.
        healthy: folder of healthy scans, whose sequence is chosen as the patients' is.
        rates: of healthy brain that may be marked, at whose thresholds the model is judged as well.
        least_pixels: slices with a smaller lesion have no Dice and no average precision.
        seed: of the intervals.
    """

    out: str = MISSING
    model: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    healthy: str = MISSING
    rates: list[float] = field(default_factory=list)
    least_pixels: int = 200
    seed: int = 0


@dataclass
class Tally:
    """What one row is worth on one patient: of slices with a lesion, and of healthy ones.

    Attributes:
        precisions, dices: of each slice with a lesion.
        healthy: voxels of brain in healthy slices, those that are marked first.
    """

    precisions: list[float] = field(default_factory=list)
    dices: list[float] = field(default_factory=list)
    healthy: list[int] = field(default_factory=lambda: [0, 0])


def main(recipe: JudgeRecipe) -> None:
    """Print and write the table."""
    data, out = recipe.data, Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    patients = find_judged(data)
    model, processor = load_model(recipe.model or None, modality=data.modality)
    options = complete_options(PredictionOptions(), (), model, recipe.model or None)
    predict = partial(predict_volume, model, processor, options=options)
    makers: dict[str, Maker] = {
        "model": lambda volume: predict(volume).scores,
        "mirror": partial(map_without_training, free_map, data.modality),
        "smoothed_rank": partial(map_without_training, smoothed_rank, data.modality),
    }
    thresholds = {("model", "model"): options.threshold, **calibrate_maps(makers, recipe)}
    tallies: dict[str, list[Tally]] = {row: [] for row, _ in thresholds}
    for patient in tqdm(patients, desc="patients", disable=None):
        assert patient.mask is not None
        volume = read_patient(patient, data.modality)
        truth = read_mask(patient.mask, volume) > 0
        scores = {name: make(volume) for name, make in makers.items()}
        smallest = options.smallest_ml / (volume.geometry.voxel_mm3 / 1000)
        for (row, name), threshold in thresholds.items():
            mask = mask_above(scores[name], threshold, smallest if name == "model" else 0.0)
            tallies[row].append(tally(scores[name], mask > 0, truth, volume, recipe.least_pixels))
    rows = [make_row(row, tallies, found, recipe.seed) for (row, _), found in thresholds.items()]
    facts = {"data": Path(data.root).name, "modality": data.modality, "patients": len(patients)}
    write_json(out / "judged.json", {**provenance(), **facts, "rows": rows})
    table = as_markdown(rows)
    replace_file(out / "judged.md", lambda draft: Path(draft).write_text(table, encoding="utf-8"))
    print(f"{table}done: {out}")


def find_judged(data: DataRecipe) -> list[Patient]:
    """Return the patients with a mask and a scan of the sequence, who are in no other data set.

    Raises:
        ValueError: there is none.
    """
    patients = [
        patient
        for patient in find_patients(data.root, data.same_person)
        if data.modality in patient.images and patient.mask and not patient.left_out
    ]
    if not patients:
        raise ValueError(f"{data.root} holds no patient with a mask and a {data.modality} scan.")
    return patients


def map_without_training(make: Callable[..., Any], modality: str, volume: Volume) -> np.ndarray:
    """Return a map that learns nothing, of a whole scan."""
    images = BrainSlices(volume.slices)
    scores: np.ndarray = make(images, images.foreground(), volume.spacing, polarity_of(modality))
    return scores


def calibrate_maps(makers: dict[str, Maker], recipe: JudgeRecipe) -> dict[tuple[str, str], float]:
    """Return (row, map) -> threshold, found on healthy scans as `rasalore calibrate` finds it.

    A map that learns nothing has one row, the model one of each rate.
    """
    rows = {(name, name): RATE for name in FREE}
    rows |= {(f"model, {100 * rate:g} %", "model"): rate for rate in recipe.rates}
    found: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
    for volume in healthy_scans(recipe):
        brain = BrainSlices(volume.slices).foreground()
        scores = {name: makers[name](volume) for name in {name for _, name in rows}}
        for row, rate in rows.items():
            found[row].append(scan_threshold(scores[row[1]], brain, rate))
    return {
        row: promised_threshold(values, attainable_share(USUAL_SHARE, len(values))).threshold
        for row, values in found.items()
    }


def healthy_scans(recipe: JudgeRecipe) -> Iterator[Volume]:
    """Yield the healthy scans of the sequence."""
    modality = recipe.data.modality
    patients = [p for p in find_patients(recipe.healthy) if modality in p.images]
    for patient in tqdm(patients, desc="healthy scans", disable=None):
        yield read_patient(patient, modality)


def tally(
    scores: np.ndarray, mask: np.ndarray, truth: np.ndarray, volume: Volume, least_pixels: int
) -> Tally:
    """Return what scores and mask (S, H, W) are worth in each slice with brain."""
    result = Tally()
    brains = BrainSlices(volume.slices).foreground()
    for plane, found, lesion, brain in zip(scores, mask & brains, truth, brains, strict=True):
        if lesion.sum() > least_pixels and brain.any():
            result.precisions.append(average_precision(plane[brain], lesion[brain]))
            result.dices.append(dice(found, lesion))
        elif not lesion.any():
            result.healthy[0] += int(found.sum())
            result.healthy[1] += int(brain.sum())
    return result


def make_row(
    name: str, tallies: dict[str, list[Tally]], threshold: float, seed: int
) -> dict[str, Any]:
    """Return a row in %: means over patients, differences to the free maps, and a share of voxels.

    The share is that of the healthy brain of all patients together that is marked.
    """
    row: dict[str, Any] = {"row": name, "threshold": threshold}
    for measure in ("precisions", "dices"):
        means = {key: patient_means(parts, measure) for key, parts in tallies.items()}
        row[measure] = [float(np.nanmean(means[name])), *bootstrap_interval(means[name], seed)]
        for other in FREE if name == "model" else ():
            row[f"{measure}_above_{other}"] = paired_bootstrap(means[name], means[other], seed)
    counts = np.array([part.healthy for part in tallies[name]], np.float64)
    found = (marked_share(counts.sum(0)), *pooled_interval(counts, marked_share, seed))
    row["marked"] = [None if share is None else 100 * float(share) for share in found]
    return row


def patient_means(tallies: list[Tally], measure: str) -> list[np.ndarray]:
    """Return each patient's mean in %, (1,) each; NaN for one without such slices."""
    values = [getattr(part, measure) for part in tallies]
    return [np.array([100 * np.mean(part) if part else np.nan]) for part in values]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table, and the model's differences below it."""
    lines = [
        "| Row | Threshold | Average precision | Dice | Healthy brain marked, % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [written(row[name]) for name in ("precisions", "dices", "marked")]
        lines.append(f"| {row['row']} | {row['threshold']:.3f} | {' | '.join(cells)} |")
    lines.append("")
    for other in FREE:
        precision, overlap = (rows[0][f"{m}_above_{other}"] for m in ("precisions", "dices"))
        lines.append(
            f"The model above {other}: average precision {written(precision)}, Dice "
            f"{written(overlap)}."
        )
    return "\n".join(lines) + "\n"


def written(estimate: Any) -> str:
    """Return a mean with its interval, as readers know it."""
    mean, low, high = estimate
    return f"{mean:.1f}" if low is None else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    recipes.run_script(main)
