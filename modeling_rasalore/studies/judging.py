"""Plan what judges a study's networks: scores, pooled tables, mask-free criteria, a picture."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..benchmark.pooling import PoolRecipe, pool_folds
from ..benchmark.recipe import BenchmarkRecipe, CrossRecipe
from ..benchmark.running import load_held_out, run_benchmark
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..provenance import available_cores
from ..pseudo_masks.comparison import ComparisonRecipe
from ..recipes import preset_folder
from .recipe import PSEUDO_MASKS, StudyRecipe
from .steps import Plan, Run, Step, compare_networks, segment_test_patient


def plan_scores(run: Run, plan: Plan) -> None:
    """Add the scores of the test patients."""
    recipe = benchmark_of(run)
    plan.add(Step("scores of test patients", partial(run_benchmark, recipe), run.out))
    if run.out == Path(run.line.study.out):
        plan.results += ["results.md", "results.json", "results.png", "results_grid.png"]


def plan_cross_scores(run: Run, plan: Plan) -> None:
    """Add the scores on further data sets, which need no mask of the scans that were studied."""
    study, recipe = run.line.study, benchmark_of(run)
    for root in study.cross:
        crossed = replace(recipe, cross=CrossRecipe(root))
        load_held_out(crossed, {})  # masks that are missing are refused now, too
        plan.add(Step(f"scores on {root}", partial(run_benchmark, crossed), crossed.results))
        if run.out == Path(study.out):
            plan.results.append(f"cross/{Path(root).name}/results.md")


def benchmark_of(run: Run) -> BenchmarkRecipe:
    """Return the recipe that scores a run's networks."""
    folder, further = run.folder, further_folders(run)
    from_package = run.line.study.begins == "package" and bool(run.line.study.data.root)
    return BenchmarkRecipe(
        stage1=str(folder / "stage1"),
        synthetic_only="" if from_package else str(run.start),
        package=str(run.start) if from_package else "",
        rasalore=str(folder / "stage2") if run.learns_from == PSEUDO_MASKS else "",
        ceiling="" if run.untaught or not run.line.study.ceiling else str(folder / "ceiling"),
        rasalore_selftrained=further.get("rasalore_selftrained", ""),
        rasalore_control=further.get("rasalore_control", ""),
        rasalore_poster=further.get("rasalore_poster", ""),
        data=run.line.data,
        out=str(run.out),
        systems=run.line.study.systems,
        view=view_of(run.line.study.preset),
        seed=run.line.seed,
        workers=available_cores(),
    )


def view_of(preset: str) -> str:
    """Return how a preset sees slices, which competing systems then do, too: "slice" or "scan"."""
    view: str = RasaloreImageProcessor.from_pretrained(preset_folder(preset)).view
    return view


def further_folders(run: Run) -> dict[str, str]:
    """Return row -> folder of the networks that are asked for besides."""
    names = {"rasalore_selftrained": "selftrained", "rasalore_control": "control"}
    names["rasalore_poster"] = "poster"
    return {row: str(run.folder / name) for row, name in names.items() if run.trains(row)}


def plan_choice(run: Run, plan: Plan) -> None:
    """Add the criteria that need no mask, which say what network to go on with."""
    own = dict.fromkeys([str(run.start), str(run.network)])
    folders = [*own, *further_folders(run).values()]
    stage1, out = str(run.folder / "stage1"), run.out
    recipe = ComparisonRecipe(stage1, folders, str(out), run.line.data)
    plan.add(Step("criteria that need no mask", partial(compare_networks, recipe), out))
    plan.results.append(f"{out.relative_to(run.line.study.out) / 'choices.md'}")


def plan_pools(study: StudyRecipe, runs: Sequence[Run], plan: Plan) -> None:
    """Add one table of all folds and seeds where all were scored, and one per further data set."""
    own = [] if any(run.unscored for run in runs) else [""]
    for below in (*own, *(f"cross/{Path(root).name}" for root in study.cross)):
        out = Path(study.out) / "pooled" / below
        recipe = PoolRecipe([str(run.out / below) for run in runs], str(out))
        title = f"one table of {len(runs)} runs" + (f", {below}" if below else "")
        plan.add(Step(title, partial(pool_folds, recipe), out))
        plan.results.append(f"{out.relative_to(study.out) / 'results.md'}")


def plan_segmentation(run: Run, plan: Plan) -> None:
    """Add the segmentation of a test patient, as whoever uses the network will see it."""
    out = Path(run.line.study.out) / "prediction"
    stage1 = run.folder / "stage1"
    work = partial(segment_test_patient, stage1, run.network, run.line.data, out)
    plan.add(Step("one test patient segmented", work, out))
    plan.results.append("prediction/")
