"""Make a model of one's own scans and slice labels: `rasalore train`."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..files import printable
from .saying import one_line_errors

if TYPE_CHECKING:
    from ..studies.curve import CurvePoint
    from ..studies.recipe import StudyRecipe
    from ..studies.report import Verdict
    from ..studies.steps import Plan
    from ..studies.survey import Survey

DEFAULTS = ("preset=rasalore-base", "ceiling=false")  # of this command; words overrule them


def list_fields(asked: bool) -> None:
    """Print every field of the recipe and end, where that is asked for."""
    if asked:
        from ..recipes import describe_script
        from ..studies.recipe import StudyRecipe

        print(describe_script(f"{' '.join(DEFAULTS)} are this command's own.", StudyRecipe))
        raise typer.Exit


def train(
    scans: Annotated[Path, typer.Argument(help="folder of scans with slice_labels.csv or masks")],
    out: Annotated[Path, typer.Option(help="folder for everything; the same one goes on")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="fields of the recipe, which --fields lists"),
    ] = None,
    modality: Annotated[
        str, typer.Option(help="t1, t1ce, t2 or flair; not needed where all scans are of one")
    ] = "",
    folds: Annotated[
        int, typer.Option(min=0, help="test every patient once, in so many test sets; 0: one set")
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="do everything so often")] = 1,
    curve: Annotated[
        str, typer.Option(help="train with so many patients as well, such as 5,10,20,40")
    ] = "",
    fields: Annotated[
        bool, typer.Option("--fields", is_eager=True, callback=list_fields, help="of the recipe")
    ] = False,
) -> None:
    """Learn from scans and slice labels: a calibrated model folder, and a report that judges it.

    A quarter of the patients is held out and scored where masks exist; masks have no other part.
    Interrupted, the same command goes on from where it was.
    """
    with one_line_errors("the same command goes on from here"):
        numbers = read_numbers(curve)
        from ..studies.curve import draw_curve, plan_curve
        from ..studies.delivery import MODEL, plan_delivery
        from ..studies.report import judge_learning, require_rows, write_report
        from ..studies.study import plan_study, run_plan
        from ..studies.survey import survey_scans

        study = recipe_of(scans, out, modality, folds, seeds, words or [])
        survey = survey_scans(study.data)
        study.data.modality = survey.modality
        study.without = sorted({*study.without, *survey.left_out})
        plan = plan_study(study)
        require_rows(study, plan.runs)
        points = plan_curve(study, numbers)
        plan_delivery(plan, out)
        begin(study, survey, plan, points)
        with full_disk_in_words(out):
            run_plan(plan)
            for point in points:
                print(f"learning curve: {point.patients} patients to learn from")
                run_plan(point.plan)
            if points:
                draw_curve(points, out)
            verdict = judge_learning(study, plan.runs, out / MODEL)
            command = command_of(study, verdict)
            page = write_report(study, plan.runs, verdict, survey.describe(), command)
    conclude(verdict, page, command)


def read_numbers(text: str) -> list[int]:
    """Return the numbers of patients of a learning curve; ValueError for other words."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"--curve takes numbers with commas between them, got {text!r}.")
    return [int(word) for word in words]


def recipe_of(
    scans: Path, out: Path, modality: str, folds: int, seeds: int, words: Sequence[str]
) -> "StudyRecipe":
    """Return the recipe that the options and words of the command line describe."""
    from ..recipes import load_recipe
    from ..studies.recipe import StudyRecipe

    study = load_recipe(StudyRecipe, [f"out={out}", *DEFAULTS, *words])
    study.out, study.data.root, study.data.modality = str(out), str(scans), modality
    study.folds = folds or study.folds
    if seeds > 1:
        study.seeds = [study.seed + number for number in range(seeds)]
    return study


def begin(
    study: "StudyRecipe", survey: "Survey", plan: "Plan", points: Sequence["CurvePoint"]
) -> None:
    """Say what was found, the recipe and how long it will take; claim the folder for it.

    Raises:
        ValueError: the folder holds what was learned with other words, scans or labels.
    """
    from dataclasses import asdict
    from functools import partial

    from ..files import claim_folder, replace_file
    from ..recipes import recipe_text, save_recipe
    from ..studies.timing import in_words, time_plan

    for line in survey.describe():
        print(printable(line))
    out = Path(study.out)
    claim_folder(out, {**asdict(study), "labels_sha256": survey.fingerprint()}, "a network")
    replace_file(out / "study.yaml", partial(save_recipe, study))
    print(f"the recipe, also in {out / 'study.yaml'}:\n{recipe_text(study)}")
    plans = [plan, *(point.plan for point in points)]
    if seconds := sum(time_plan(each, *survey.example()) for each in plans):
        print(
            f"training takes {in_words(seconds)} on this machine, by a few steps that were "
            "measured; pseudo-masks and scores come on top. It can be interrupted at any time."
        )


@contextmanager
def full_disk_in_words(folder: Path) -> Iterator[None]:
    """Tell of a full disk in one sentence, where libraries have words of their own for it."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not re.search(r"os error (28|112)\b|inline_container", str(error)):
            raise
        raise OSError(
            f"the disk that holds {folder} takes no more; make room, and the same command goes on."
        ) from error


def command_of(study: "StudyRecipe", verdict: "Verdict") -> str:
    """Return the line that segments the scans with what the verdict names."""
    model = [] if verdict.model is None else ["--model", str(verdict.model)]
    given = [study.data.root, "--modality", study.data.modality, *model]
    return shlex.join(["rasalore", "predict", *given, "--out", str(Path(study.out) / "masks")])


def conclude(verdict: "Verdict", page: Path, command: str) -> None:
    """Say whether labels helped, where the report is, and what to try."""
    from ..provenance import DISCLAIMER

    print(f"{verdict.sentence}\nreport: {page}\n{DISCLAIMER}\ntry: {command}")
