"""Write a benchmark for people: its Markdown tables and its figure of intervals."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]  # of results.json

# Start of the names of systems that a table by sequence compares.
BY_SEQUENCE = ("rasalore_t", "rasalore_flair", "rasalore_average", "rasalore_all")
THRESHOLD_NAMES = {"0.5": "0.5", "label_free": "label-free", "oracle": "oracle (no claim)"}
THRESHOLD_COLOURS = {"0.5": "#0072b2", "label_free": "#e69f00", "oracle": "#bbbbbb"}
DASH = "–"  # noqa: RUF001 - stands for what a row does not have
CONTAMINATED = "contaminated"  # weights that know true masks like those that scores come from
REMARKS = {"stand-in": "stand-in weights", CONTAMINATED: "contaminated, not weakly supervised"}
FIGURE_MEASURES = {"dice": "Dice (%)", "average_precision": "Average precision (%)"}


def markdown_table(
    header: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int = 1
) -> str:
    """Return a Markdown table of cells; all columns but the first `text_columns` are numbers.

    A bar inside a cell, which would end the cell, becomes a slash.
    """
    alignment = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    cells = [[cell.replace("|", "/") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, alignment, *cells])


def results_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of rows of results.json, one line each, in their order.

    Scores are percentages with their 95 % interval over patients; a dash stands for what a row
    does not have. Rows of stand-in or contaminated weights say so, and those of failed systems why
    they failed.
    """
    header = (
        *("System", "Sequence", "View", "Threshold", "Dice", "Average precision", "AUROC"),
        *("False alarms per healthy slice", "Patients", "Slices"),
    )
    return markdown_table(header, [_results_line(row) for row in rows], text_columns=4)


def _results_line(row: Row) -> tuple[str, ...]:
    shown = (system_name(row), row["modality"], row["view"])
    if "failure" in row:
        return (*shown, DASH, f"failed: {row['failure']}", *[DASH] * 5)
    return (
        *(*shown, _threshold(row)),
        *(_percent(row, name) for name in ("dice", "average_precision", "auroc")),
        _number(row.get("false_alarms_per_healthy_slice"), 1, 2),
        *(str(row["patients"]), str(row["slices"])),
    )


def overview_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of all systems at a glance, one line each; failed ones left out.

    Dice at every threshold and average precision of the paper view, then what the label-free
    threshold gives in whole volumes: Dice, false alarms, the share of healthy brain above it, and
    the share of scans with more of it above than was asked for.
    """
    header = (
        *("System", "Dice at 0.5", "Dice, label-free", "Dice, oracle (no claim)"),
        *("Average precision", "Volumes: Dice, label-free", "False alarms per healthy slice"),
        *("Healthy brain marked, %", "Scans with more than asked, %"),
    )
    by_system: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if "failure" not in row:
            by_system.setdefault(system_name(row), {})[row["view"], row["threshold"]] = row
    lines = []
    for name, system_rows in by_system.items():
        dices = (_percent(system_rows.get(("paper", t), {}), "dice") for t in THRESHOLD_NAMES)
        volume = system_rows.get(("volume", "label_free"), {})
        alarms = _number(volume.get("false_alarms_per_healthy_slice"), 1, 2)
        precision = _percent(system_rows.get(("paper", "0.5"), {}), "average_precision")
        marked = (_percent(volume, key) for key in ("healthy_brain_marked", "scans_above_rate"))
        lines.append((name, *dices, precision, _percent(volume, "dice"), alarms, *marked))
    return markdown_table(header, lines)


def system_name(row: Row) -> str:
    """Return what people read of a row's system."""
    name = str(row.get("title", row["system"]))
    remark = REMARKS.get(str(row.get("weights")))
    return f"{name} ({remark})" if remark else name


def sequence_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of RASALoRE by sequence, one line per system and view; "" without."""
    chosen = [row for row in rows if row["system"].startswith(BY_SEQUENCE) and "failure" not in row]
    by_view: dict[tuple[str, str], dict[str, Row]] = {}
    for row in chosen:
        by_view.setdefault((row["modality"], row["view"]), {})[row["threshold"]] = row
    lines = []
    for (sequence, view), by_threshold in by_view.items():
        fixed, free = by_threshold["0.5"], by_threshold.get("label_free", {})
        scores = _percent(fixed, "dice"), _percent(free, "dice")
        lines.append((sequence, view, *scores, _percent(fixed, "average_precision")))
    header = ("Sequence", "View", "Dice at 0.5", "Dice, label-free", "Average precision")
    return markdown_table(header, lines, text_columns=2) if lines else ""


def difference_table(compared: Sequence[Row]) -> str:
    """Return a Markdown table of paired differences, one line each; "" without."""
    header = (
        *("System", "View", "Threshold", "Compared with"),
        *("Difference of Dice", "Difference of average precision", "Patients"),
    )
    lines: list[tuple[str, ...]] = []
    for row in compared:
        reference = str(row.get("reference_title", row["reference"]))
        shown = (system_name(row), row["view"], _threshold(row), reference)
        differences = (_percent(row, f"{m}_difference") for m in ("dice", "average_precision"))
        lines.append((*shown, *differences, str(row["patients"])))
    return markdown_table(header, lines, text_columns=4) if lines else ""


def cost_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of what each system cost, one line each; a dash where unknown."""
    names = ("seconds", "peak_mib", "scoring_seconds", "scoring_peak_mib")
    header = (
        *("System", "Weights", "Training (s)", "Training peak (MiB)"),
        *("Scoring (s)", "Scoring peak (MiB)"),
    )
    lines = [
        (system_name(row), str(row["weights"]), *(_number(row.get(name), 1, 0) for name in names))
        for row in {row["system"]: row for row in rows}.values()
    ]
    return markdown_table(header, lines, text_columns=2)


def results_figure(rows: Sequence[Row], path: str | Path) -> Path:
    """Return `path` after drawing Dice and average precision of every system, with intervals.

    One line of panels per view, one bar per threshold; average precision needs no threshold and has
    one bar. matplotlib comes with the `train` extra.
    """
    from matplotlib.figure import Figure

    views = list(dict.fromkeys(row["view"] for row in rows))
    systems = list(dict.fromkeys(system_name(row) for row in rows))
    size = (11, len(views) * (1.2 + 0.42 * len(systems)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(views), len(FIGURE_MEASURES), squeeze=False, sharey=True)
    for view, line in zip(views, panels, strict=True):
        shown = [row for row in rows if row["view"] == view]
        for axes, (measure, label) in zip(line, FIGURE_MEASURES.items(), strict=True):
            _draw_bars(axes, shown, systems, measure)
            axes.set(title=f"{view} view", xlabel=label, xlim=(0, 100))
            axes.set_yticks(range(len(systems)), systems)
    panels[0][0].invert_yaxis()  # shared by all panels: the first system on top
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path = Path(path)
    figure.savefig(path, dpi=150)
    return path


def _threshold(row: Row) -> str:
    return THRESHOLD_NAMES.get(row["threshold"], str(row["threshold"]))


def _percent(row: Row, name: str) -> str:
    """Such as `71.2 [65.0, 77.3]`."""
    mean, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
    if mean is None or low is None or high is None:
        return _number(mean, 100, 1)
    return f"{_number(mean, 100, 1)} [{_number(low, 100, 1)}, {_number(high, 100, 1)}]"


def _number(value: float | None, factor: float, digits: int) -> str:
    return DASH if value is None else f"{value * factor:.{digits}f}"


def _draw_bars(axes: Any, rows: Sequence[Row], systems: list[str], measure: str) -> None:
    """Draw one bar per system and threshold; per system only for a ranking measure."""
    columns = list(dict.fromkeys(row["threshold"] for row in rows))
    columns = columns if measure == "dice" else columns[:1]
    width = 0.8 / len(columns)
    for position, column in enumerate(columns):
        drawn = [r for r in rows if r["threshold"] == column and r.get(measure) is not None]
        middles = [
            systems.index(system_name(row)) + (position + 0.5) * width - 0.4 for row in drawn
        ]
        means = np.array([100 * row[measure] for row in drawn])
        ends = [[row.get(f"{measure}_{end}") for end in ("low", "high")] for row in drawn]
        limits = np.array(ends, float).reshape(-1, 2).T * 100  # None becomes NaN: no line
        errors = np.abs(limits - means)
        colour = THRESHOLD_COLOURS.get(column, "#999999") if measure == "dice" else "#555555"
        label = f"threshold {THRESHOLD_NAMES.get(column, column)}"
        axes.barh(middles, means, width * 0.9, color=colour, label=label)
        axes.errorbar(means, middles, xerr=errors, fmt="none", ecolor="black", capsize=2, lw=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
