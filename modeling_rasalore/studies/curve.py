"""Measure what more labelled patients bring: one study per number of them, and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..evaluation.rows import Row, write_results
from ..files import replace_file
from .recipe import StudyRecipe
from .report import FREE_ROWS, network_row, paper_row, read_rows, start_row, table_folder
from .steps import Plan, Run
from .study import plan_study

FOLDER = "curve"  # below the study's
MEASURE = "average_precision"
COLOURS = {
    "network": "#0072b2",
    "start": "#e69f00",
    "mirror": "#777777",
    "smoothed_rank": "#bbbbbb",
}
NAMES = {
    "network": "the network that rasalore train makes",
    "start": "its start, without labels",
    "mirror": "smoothed intensity and mirror, which learn nothing",
    "smoothed_rank": "smoothed intensity, which learns nothing",
}


@dataclass(frozen=True)
class CurvePoint:
    """A study of so many patients, and its plan.

    Attributes:
        patients: to learn from.
        study: what is asked for.
        plan: its steps.
    """

    patients: int
    study: StudyRecipe
    plan: Plan

    @property
    def learns_labels(self) -> bool:
        """Whether its network learned from slice labels, or is its start."""
        return all(run.learns_labels for run in self.plan.runs)

    def rows(self) -> dict[str, Row]:
        """Return the rows of the figure, by the names of its lines."""
        runs: Sequence[Run] = self.plan.runs
        rows = read_rows(table_folder(self.study, runs))
        systems = {"network": network_row(runs[0]), "start": start_row(self.study)}
        systems |= {name: name for name in FREE_ROWS}
        return {line: paper_row(rows, system) for line, system in systems.items()}


def plan_curve(study: StudyRecipe, numbers: Sequence[int]) -> list[CurvePoint]:
    """Return a study for each number of patients to learn from, all with the same test patients.

    Raises:
        ValueError: a number below 1 or above the patients there are, or test patients without mask.
    """
    points = []
    for number in sorted(set(numbers)):
        if number < 1:
            raise ValueError(f"--curve takes numbers of patients from 1 on, got {number}.")
        out = Path(study.out) / FOLDER / f"patients{number}"
        part = replace(study, learn_from=number, out=str(out), cross=[])
        points.append(CurvePoint(number, part, plan_study(part)))
    if any(run.unscored for point in points for run in point.plan.runs):
        raise ValueError("--curve draws scores, and test patients have no mask; go without it.")
    return points


def draw_curve(points: Sequence[CurvePoint], out: Path) -> Path:
    """Return the figure curve.png in `out`, with the numbers beside it in curve.json.

    Average precision over slices with a lesion, with 95 % intervals over test patients.
    """
    tables = [point.rows() for point in points]
    numbers = [
        {"patients": point.patients, "learns_labels": point.learns_labels}
        | {line: estimate(row) for line, row in table.items()}
        for point, table in zip(points, tables, strict=True)
    ]
    write_results(out / "curve.json", {"measure": MEASURE, "points": numbers}, [])
    return replace_file(out / "curve.png", lambda draft: draw_figure(numbers, draft))


def estimate(row: Row) -> list[float | None]:
    """Return average precision of a row and the limits of its interval, as shares of 1."""
    return [row[f"{MEASURE}{end}"] for end in ("", "_low", "_high")]


def in_percent(values: Sequence[float | None]) -> list[float]:
    """Return shares of 1 in percent, NaN for None, which is not drawn."""
    return [float("nan") if value is None else 100 * value for value in values]


def draw_figure(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one line per system over the number of patients to learn from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    places = [point["patients"] for point in points]
    for line, name in NAMES.items():
        means, lows, highs = zip(*(in_percent(point[line]) for point in points), strict=True)
        learns = line in ("network", "start")
        axes.plot(places, means, "o-" if learns else "--", color=COLOURS[line], label=name)
        if learns:
            axes.fill_between(places, lows, highs, color=COLOURS[line], alpha=0.15)
    if few := [point for point in points if not point["learns_labels"]]:
        heights = [in_percent(point["network"])[0] for point in few]
        (circles,) = axes.plot([point["patients"] for point in few], heights, "o", mfc="white")
        circles.set(markeredgecolor=COLOURS["network"], label="too few: labels not used")
    axes.set(
        xlabel="labelled patients to learn from", ylabel="average precision (%)", xlim=(0, None)
    )
    axes.set_xticks(places)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150)
