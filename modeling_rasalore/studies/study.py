"""Studies the whole line in one process: scans and slice labels in, a judged network out."""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..benchmark.running import choose_rows
from ..data.layouts import find_patients
from ..data.patient import Patient
from ..data.phantoms import write_phantoms
from ..files import some
from ..processes import Helper
from ..provenance import available_cores
from ..recipes import SplitRecipe
from ..scans.naming import MODALITIES
from .judging import (
    benchmark_of,
    plan_choice,
    plan_cross_scores,
    plan_pools,
    plan_scores,
    plan_segmentation,
)
from .package_start import take_package_weights
from .recipe import HEALTHY_SLICES, PSEUDO_MASKS, STARTS, StudyRecipe
from .sharing import Parts, settle_split, splits_of, store_split, taking_part, words_of
from .steps import Line, Plan, Run, Step


def run_study(study: StudyRecipe) -> Path:
    """Return the study's folder after all its steps; those of an earlier start are not repeated.

    Raises:
        ValueError: a recipe or data that do not fit.
    """
    run_plan(plan := plan_study(study))
    print(f"Everything is in {study.out}: {', '.join(plan.results)}")
    return Path(study.out)


def run_plan(plan: Plan) -> None:
    """Do all steps of a plan, and say what was left out.

    Two steps that need nothing of each other go side by side where there are two cores, each with
    half of the threads.
    """
    # Small networks train on the CPU; ACCELERATE_USE_CPU=0 lets a GPU do it.
    os.environ.setdefault("ACCELERATE_USE_CPU", "1")
    threads, total, number = torch.get_num_threads(), sum(map(len, plan.rounds)), 0
    with Helper() as helper:
        for steps in plan.rounds:
            beside = len(steps) > 1 and available_cores() > 1
            torch.set_num_threads((threads + 1) // 2 if beside else threads)
            lines = []
            for step in steps:
                number += 1
                lines.append(f"step {number} of {total}: {step.title} ({step.out})")
            if beside:
                run_beside(steps, lines, helper)
            else:
                run_in_turn(steps, lines)
    torch.set_num_threads(threads)
    for part, reason in plan.left_out.items():
        print(f"left out: {part}, for {reason}")


def run_in_turn(steps: Sequence[Step], lines: Sequence[str]) -> None:
    """Run steps one after the other, each after its line is printed."""
    for step, line in zip(steps, lines, strict=True):
        print(line, flush=True)
        step.work()


def run_beside(steps: Sequence[Step], lines: Sequence[str], helper: Helper) -> None:
    """Run one step in this process and another one in the helper, with as many threads each.

    Raises:
        OSError: the helper was killed.
    """
    (here, there), log = steps, steps[1].out.parent / f"{steps[1].out.name}.log"
    print(f"{lines[0]}\n{lines[1]}, beside it; its progress: {log}", flush=True)
    future: Future[None] = helper.start(there.work, torch.get_num_threads(), log)
    here.work()
    print(f"waiting for {there.title}; its progress: {log}", flush=True)
    try:
        future.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"the process of {there.title} was killed, most often for memory; its progress is in "
            f"{log}, and the same command goes on from there."
        ) from error


# --- The plan -------------------------------------------------------------------------------------
def plan_study(study: StudyRecipe) -> Plan:
    """Return all steps of a study.

    Raises:
        ValueError: a recipe or data that do not fit.
    """
    if study.data.modality not in MODALITIES:
        raise ValueError(
            f"data.modality must be {', '.join(MODALITIES)}, got {study.data.modality!r}."
        )
    if not study.preset.startswith("rasalore"):
        raise ValueError(f"preset must be one of stage 2, rasalore..., got {study.preset!r}.")
    if study.start not in STARTS:
        raise ValueError(f"start must be {', '.join(STARTS)}, got {study.start!r}.")
    plan = Plan()
    if study.data.root:
        plan_on_scans(study, plan)
    else:
        plan_on_phantoms(study, plan)
    return plan


def plan_on_phantoms(study: StudyRecipe, plan: Plan) -> None:
    """Add the steps of a study on synthetic patients."""
    if study.folds or study.seeds:
        raise ValueError(
            "folds and seeds are of real scans; give data.root, got none and "
            f"folds={study.folds} seeds={study.seeds}."
        )
    folder = Path(study.out)
    line = Line(study, str(folder / "phantoms"), study.seed)
    plan_phantoms(line, folder, plan)
    run = Run(line, folder, folder / "warm_up", folder)
    plan_run(run, plan)
    plan_segmentation(run, plan)


def plan_on_scans(study: StudyRecipe, plan: Plan) -> None:
    """Add the steps of a study on real scans.

    Of few real patients the tiny networks learn next to nothing, so both start on synthetic ones,
    whose masks are known; no real patient and no pixel label has a part in it. Networks that see
    whole scans start on lesions painted into healthy slices of the very patients.
    """
    everyone = find_patients(study.data.root, study.data.same_person)
    patients = taking_part(everyone, study)
    check_patients(patients, study)
    if left_out := [patient.patient_id for patient in everyone if patient.left_out]:
        reason = f"{study.data.same_person} finds them in another data set"
        plan.left_out[f"{len(left_out)} patients, {', '.join(left_out)}"] = reason
    several = study.folds or len(study.seeds) > 1
    splits = splits_of(study, len(patients))
    settled = [settle_split(everyone, study, split, Path("split.json")) for split in splits]
    # One way for all folds, which differ by a patient.
    learns_from = study.learns_from(min(len(parts["train"]) for parts, _ in settled))
    for seed in study.seeds or [study.seed]:
        folder = Path(study.out) / f"seed{seed}" if several else Path(study.out)
        line, start = Line(study, study.data.root, seed), folder / "start"
        if study.begins == "phantoms":
            plan_start(Line(study, str(start / "phantoms"), seed), start, plan)
        for parts, split in settled:
            inside = folder / f"fold{split.fold}" if split.fold else folder
            if split.file:
                split = replace(split, file=str(inside / split.file))
                share = partial(store_split, parts, Path(split.file))
                plan.add(Step("patients shared out", share, inside))
            if study.begins != "phantoms":
                start = plan_beginning(line, inside, split, plan)
            words = words_of(split)
            plan.add(line.learn_labels(inside / "stage1", start / "stage1", *words))
            run = run_of(line, inside, start / "stage2", parts, learns_from, words)
            plan_run(run, plan)
            plan.runs.append(run)
    if len(plan.runs) > 1:
        plan_pools(study, plan.runs, plan)
    if any(patient.prepared for patient in patients):
        plan.left_out["a segmented patient"] = "prepared slices hold no volume"
    else:
        plan_segmentation(plan.runs[0], plan)


def run_of(
    line: Line, folder: Path, start: Path, parts: Parts, learns_from: str, split: Sequence[str]
) -> Run:
    """Return the run of one split, whose stage 2 starts from `start`."""
    study = line.study
    several = study.folds or len(study.seeds) > 1
    return Run(
        line,
        folder,
        start,
        folder / "benchmark" if several else folder,
        untaught=ids_without_mask([*parts["train"], *parts["validation"]]),
        unscored=ids_without_mask(parts["test"]),
        learns_from=learns_from,
        split=split,
    )


def check_patients(patients: Sequence[Patient], study: StudyRecipe) -> None:
    """Raise ValueError for scans that a study cannot learn from, before it begins."""
    if len(set(study.seeds)) < len(study.seeds) or study.folds < 0:
        raise ValueError(
            f"seeds must differ and folds be 0 or more, got {study.seeds} and {study.folds}."
        )
    modality = study.data.modality
    if lacking := [p.patient_id for p in patients if modality not in p.images]:
        raise ValueError(f"every patient needs a {modality} scan, but {some(lacking)} have none.")


def ids_without_mask(patients: Sequence[Patient]) -> list[str]:
    """Return the ids of patients whose true mask is not there."""
    return [patient.patient_id for patient in patients if patient.mask is None]


def plan_phantoms(line: Line, folder: Path, plan: Plan) -> None:
    """Add synthetic patients, stage 1 on them, and stage 2 on lesions painted into healthy ones."""
    made, root = line.study.phantoms, line.root
    grid = made.shape, made.voxel_size
    work = partial(write_phantoms, root, made.patients, line.seed, made.healthy, *grid)
    plan.add(Step("synthetic patients", work, Path(root)))
    split = words_of(SplitRecipe(made.validation, made.test, line.seed))
    plan.add(
        line.warm_up("stage 2 on painted lesions", folder / "warm_up", *split),
        line.stage1("stage 1 on synthetic patients", folder / "stage1", *split),
    )


def plan_start(line: Line, folder: Path, plan: Plan) -> None:
    """Add what both stages start from where the studied scans are real."""
    plan_phantoms(line, folder, plan)
    plan.add(line.true_masks(folder / "stage1", masks := folder / "true_masks"))
    title, start = "stage 2 on synthetic patients", folder / "warm_up"
    plan.add(line.continue_stage2(title, folder / "stage2", masks, start))


def plan_beginning(line: Line, folder: Path, split: SplitRecipe, plan: Plan) -> Path:
    """Add what both stages start from in one split of the scans themselves; return its folder."""
    start, words = folder / "start", words_of(split)
    if line.study.begins == "package":
        take = partial(take_package_weights, line.study.data.modality, start / "stage2")
        plan.add(Step("the package's own weights", take, start / "stage2"))
        plan.add(line.paint_stage1(start / "stage1", *words))
        return start
    plan.add(
        line.warm_up("stage 2 on painted lesions", start / "stage2", *words),
        line.paint_stage1(start / "stage1", *words),
    )
    return start


def plan_run(run: Run, plan: Plan) -> None:
    """Add all that follows stage 1: pseudo-masks, stage 2, its ceiling, and what judges them."""
    choose_rows(benchmark_of(run))  # a wrong name is refused before anything is trained
    line, folder, start, stage1 = run.line, run.folder, run.start, run.folder / "stage1"
    cut = learnt = None
    if run.learns_from == PSEUDO_MASKS:
        cut = pseudo_masks_of(run)
        learnt = line.continue_stage2("stage 2, RASALoRE", folder / "stage2", cut.out, start)
    else:
        instead = "their start is the network"
        if run.learns_from == HEALTHY_SLICES:
            instead = "lesions are painted into their healthy slices instead"
            title = "stage 2 on lesions painted into healthy slices"
            learnt = line.paint_stage2(title, run.network, start, *run.split)
        few = f"fewer than fuse_from={line.study.fuse_from} patients to learn from"
        plan.left_out["learning from pseudo-masks"] = f"{few}; {instead}"
    true = ceiling = None
    if line.study.ceiling and run.untaught:
        plan.left_out["the ceiling"] = f"{some(run.untaught)} have no mask"
    elif line.study.ceiling:
        true = line.true_masks(stage1, folder / "true_masks")
        ceiling = line.continue_stage2("stage 2, ceiling", folder / "ceiling", true.out, start)
    plan.add(cut, true)
    plan.add(learnt, ceiling)
    plan_further_rows(run, plan)
    if run.unscored:
        plan.left_out["the table of scores"] = f"{some(run.unscored)} have no mask"
        plan_choice(run, plan)
    else:
        plan_scores(run, plan)
    plan_cross_scores(run, plan)


def pseudo_masks_of(run: Run) -> Step:
    """Return the making of the pseudo-masks that stage 2 learns from."""
    line, stage1 = run.line, run.folder / "stage1"
    if line.study.begins != "phantoms":
        return line.fused_masks(stage1, run.masks, run.start)
    return line.cut_masks("pseudo-masks", stage1, run.masks, f"appearance={run.start}")


def plan_further_rows(run: Run, plan: Plan) -> None:
    """Add self-training, RASALoRE's control and the poster's start, where they are asked for."""
    line, folder, stage1 = run.line, run.folder, run.folder / "stage1"
    masks, networks = [], []
    if run.trains("rasalore_selftrained"):
        out, teacher = folder / "selftrained", f"teacher={folder / 'stage2'}"
        taught = line.masks("masks of a teacher", stage1, folder / "selftrained_masks", teacher)
        masks.append(taught)
        networks.append(line.continue_stage2("stage 2, self-trained", out, taught.out, run.start))
    if run.trains("rasalore_poster"):
        cut = line.cut_masks("pseudo-masks, poster", stage1, folder / "poster_masks")
        masks.append(cut)
        networks.append(line.poster_stage2("stage 2, poster", folder / "poster", cut.out))
    if run.trains("rasalore_control") and run.learns_from == PSEUDO_MASKS:
        out, title = folder / "control", "stage 2, RASALoRE's control"
        networks.append(line.control_stage2(title, out, run.masks, run.start))
    plan.add(*masks)
    for first in range(0, len(networks), 2):  # two go side by side
        plan.add(*networks[first : first + 2])
