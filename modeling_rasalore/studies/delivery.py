"""Deliver what a study ends in: a model folder with thresholds, card, scores and a picture."""

import os
import shutil
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..data.labels import HEALTHY
from ..data.layouts import find_patients
from ..data.patient import Patient
from ..data.slices import read_patient, read_slices
from ..data.splits import read_split
from ..files import sha256_of
from ..prediction.calibration import calibrate_on_slices
from ..prediction.loading import load_model
from ..prediction.options import PredictionOptions
from ..prediction.saved_options import complete_options, save_calibration
from ..publishing.assembly import PushRecipe, assemble_model
from ..recipes import DataRecipe, preset_folder
from ..scans.volumes import Volume
from .report import draw_test_slices, network_row
from .steps import Plan, Run, Step

RATE = 0.01  # of healthy brain, for which a threshold is stored
MODEL = "model"  # folder below the study's


def plan_delivery(plan: Plan, out: Path) -> None:
    """Add the model folder of a study on real scans: that of its first seed and fold."""
    run = plan.runs[0]
    if run.network == run.start and run.line.study.begins == "package":
        plan.left_out["a model folder"] = "the package's own weights are the network"
        return
    plan.add(Step("model folder", partial(deliver_model, run, out / MODEL), out / MODEL))
    plan.results.append(f"{MODEL}/")


def deliver_model(run: Run, out: Path) -> Path:
    """Return `out`, a folder that `rasalore predict --model` takes; one of the same weights stays.

    It appears whole or not at all.
    """
    weights = "model.safetensors"
    if (out / weights).is_file() and sha256_of(out / weights) == sha256_of(run.network / weights):
        return out
    print(calibrate_network(run))
    draft = out.with_name(f".{out.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    recipe = PushRecipe(
        stage2=str(run.network),
        repo=f"<user>/{out.parent.name}",
        license="unknown",
        data_name=Path(run.line.root).name,
        data_license="not stated",
        results="" if run.unscored else str(run.out / "results.json"),
        row=network_row(run),
    )
    templates = preset_folder(run.line.study.preset).parent
    assemble_model(recipe, "stage2", templates, draft)
    if not run.unscored:
        draw_test_slices([run], draft / "test_slices.png")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(draft, out)
    return out


# --- Thresholds -----------------------------------------------------------------------------------
def calibrate_network(run: Run) -> str:
    """Store thresholds beside a run's network; return what they promise, or why there are none.

    Each patient who was held out, to choose weights or to be tested, counts as one scan, of which
    the slices that are labelled healthy are read.
    """
    data = run.line.data
    split = read_split(run.folder / "stage1" / "split.json", find_patients(data.root))
    network: tuple[Any, Any] = load_model(str(run.network))
    scans = healthy_parts([*split["validation"], *split["test"]], data)
    options = complete_options(PredictionOptions(), (), network[0])
    try:
        result = calibrate_on_slices(*network, scans, [RATE], options=options)
    except ValueError as error:
        return f"no threshold was calibrated: {error}"
    save_calibration(run.network, result)
    (entry,) = result["thresholds"]
    return f"threshold {entry['threshold']:.4g}: {entry['promise']}"


def healthy_parts(
    patients: Collection[Patient], data: DataRecipe
) -> Iterator[tuple[Volume, list[int]]]:
    """Yield the scans of patients with the indices of their healthy slices, where there are any."""
    for patient in patients:
        examples = read_slices(patient, data.modality, skip=data.skip_slices, labels={HEALTHY})
        healthy = [example.slice_index for example in examples]
        if healthy and not patient.prepared:
            yield read_patient(patient, data.modality), healthy
