"""Measure what more labelled patients bring: one study per number of them, and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.rows import Row, write_results
from ..files import replace_file
from .recipe import HEALTHY_SLICES, NOTHING, StudyRecipe
from .report import (
    FREE_ROWS,
    MEASURES,
    find_row,
    network_row,
    paper_row,
    read_rows,
    start_row,
    table_folder,
)
from .steps import Plan, Run
from .study import plan_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = "curve"  # below the study's
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
CIRCLES = {
    HEALTHY_SLICES: "too few for pseudo-masks: healthy slices alone",
    NOTHING: "too few: labels not used",
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
    def learns_from(self) -> str:
        """What slice labels gave its network, as of `StudyRecipe.learns_from`."""
        return self.plan.runs[0].learns_from

    def scores(self) -> dict[str, dict[str, list[float | None]]]:
        """Return measure -> line of the figure -> score and its limits, as shares of 1."""
        runs: Sequence[Run] = self.plan.runs
        rows = read_rows(table_folder(self.study, runs))
        systems = {"network": network_row(runs[0]), "start": start_row(self.study)}
        systems |= {name: name for name in FREE_ROWS}
        for system in systems.values():
            paper_row(rows, system)  # one that failed is named
        return {
            measure: {
                line: estimate(find_row(rows, system, threshold), measure)
                for line, system in systems.items()
            }
            for measure, (threshold, _) in MEASURES.items()
        }


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

    Scores are those of slices with a lesion, with 95 % intervals over test patients.
    """
    numbers: list[dict[str, Any]] = [
        {"patients": point.patients, "learns_from": point.learns_from, **point.scores()}
        for point in points
    ]
    write_results(out / "curve.json", {"points": numbers}, [])
    return replace_file(out / "curve.png", lambda draft: draw_figure(numbers, draft))


def estimate(row: Row | None, measure: str) -> list[float | None]:
    """Return a row's score and the limits of its interval, as shares of 1; None: unknown."""
    return [None if row is None else row[f"{measure}{end}"] for end in ("", "_low", "_high")]


def in_percent(values: Sequence[float | None]) -> list[float]:
    """Return shares of 1 in percent, NaN for None, which is not drawn."""
    return [float("nan") if value is None else 100 * value for value in values]


def draw_figure(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one line per system over the number of patients to learn from, a panel per measure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(ncols=len(MEASURES))
    for axes, (measure, (_, words)) in zip(panels, MEASURES.items(), strict=True):
        draw_lines(axes, points, measure)
        axes.set(xlabel="labelled patients to learn from", ylabel=f"{words} (%)", xlim=(0, None))
        axes.set_xticks([point["patients"] for point in points])
        axes.grid(alpha=0.3)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def draw_lines(axes: "Axes", points: Sequence[dict[str, Any]], measure: str) -> None:
    """Draw the lines of one measure, and circles where pseudo-masks had no part."""
    places = [point["patients"] for point in points]
    for line, name in NAMES.items():
        scores = [in_percent(point[measure][line]) for point in points]
        means, lows, highs = zip(*scores, strict=True)
        learns = line in ("network", "start")
        axes.plot(places, means, "o-" if learns else "--", color=COLOURS[line], label=name)
        if learns:
            axes.fill_between(places, lows, highs, color=COLOURS[line], alpha=0.15)
    for learns_from, label in CIRCLES.items():
        if few := [point for point in points if point["learns_from"] == learns_from]:
            heights = [in_percent(point[measure]["network"])[0] for point in few]
            (circles,) = axes.plot([point["patients"] for point in few], heights, "o", mfc="white")
            circles.set(markeredgecolor=COLOURS["network"], label=label)
