"""What people look at: overlays of one scan, and the table and the figure of a benchmark."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .brain_slices import BrainSlices

DISCLAIMER = (
    "Research software, not a medical device: do not diagnose with it. "
    "An empty mask does not exclude disease."
)

Colour = tuple[int, int, int]
Row = Mapping[str, Any]  # of results.json

CELL = 256  # width of one slice in the montage, pixels
GAP = 6
WHITE_VOXELS = 2**22  # what white is, larger scans are asked in some of their rows only
# Readable on grey, and with red-green colour blindness.
INK, PAPER = (235, 235, 235), (16, 16, 16)
SCORE_RAMP = ((120, 20, 140), (255, 120, 40))  # colours of the scores 0 and 1
SCORE_OPACITY = 0.45  # of score 1; lower scores are fainter, 0 is not drawn
MASK_COLOUR, TRUTH_COLOUR = (255, 230, 60), (70, 220, 255)

SYSTEM_NAMES = {
    "chance": "Chance",
    "threshold": "Intensity threshold",
    "ae": "AE",
    "dae": "DAE",
    "vqvae": "VQVAE",
    "ts_cam": "TS-CAM",
    "cae": "CAE",
    "la_gan": "LA-GAN",
    "ame_cam": "AME-CAM",
    "anofpdm": "AnoFPDM",
    "yoo_t2": "Yoo et al. (T2)",
    "yoo_all": "Yoo et al. (all)",
    "ddpt": "DDPT (stage 1)",
    "sam_box": "SAM + DDPT (box)",
    "sam_points": "SAM + DDPT (points)",
    "medsam_box": "MedSAM + DDPT (box)",
    "medsam_points": "MedSAM + DDPT (points)",
    "medsam2_box": "MedSAM2 + DDPT (box)",
    "medsam2_points": "MedSAM2 + DDPT (points)",
    "synthetic_only": "Painted lesions only",
    "rasalore_without_sam": "RASALoRE without SAM",
    "rasalore": "RASALoRE",
    "rasalore_warm": "RASALoRE, warm start",
    "rasalore_warm_selftrained": "RASALoRE, warm start, self-trained",
    "rasalore_t1": "RASALoRE on T1",
    "rasalore_t1ce": "RASALoRE on T1ce",
    "rasalore_t2": "RASALoRE on T2",
    "rasalore_flair": "RASALoRE on FLAIR",
    "rasalore_average": "RASALoRE, mean of sequences",
    "rasalore_all": "RASALoRE of all sequences",
    "rasalore_all_without_t1": "RASALoRE of all, T1 missing",
    "rasalore_all_without_t1ce": "RASALoRE of all, T1ce missing",
    "rasalore_all_without_t2": "RASALoRE of all, T2 missing",
    "rasalore_all_without_flair": "RASALoRE of all, FLAIR missing",
    "ceiling": "Ceiling (true masks)",
}
# Start of the names of systems that a table by sequence compares.
BY_SEQUENCE = ("rasalore_t", "rasalore_flair", "rasalore_average", "rasalore_all")
THRESHOLD_NAMES = {"0.5": "0.5", "label_free": "label-free", "oracle": "oracle (no claim)"}
THRESHOLD_COLOURS = {"0.5": "#0072b2", "label_free": "#e69f00", "oracle": "#bbbbbb"}
FIGURE_MEASURES = {"dice": "Dice (%)", "average_precision": "Average precision (%)"}


def overlay_montage(
    images: NDArray[np.floating] | BrainSlices,
    scores: NDArray[np.floating],
    mask: NDArray[np.integer],
    truth: NDArray[np.integer] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    count: int = 12,
    title: str = "",
) -> Image.Image:
    """Return a montage of the slices that say most about a prediction, with a legend.

    Args:
        images: (S, H, W) scan in the slice frame, background 0.
        scores: (S, H, W) in [0, 1], drawn as a translucent colour.
        mask: (S, H, W), non-zero where predicted; drawn as an outline.
        truth: true mask of the same shape, a second outline; None where unknown.
        spacing: mm between rows and between columns.
        count: how many slices to show.
        title: first line of the legend, such as the name of the scan.

    Raises:
        ValueError: the arrays differ in shape or are not (S, H, W).
    """
    arrays = {"images": images, "scores": scores, "mask": mask}
    if truth is not None:
        arrays["truth"] = truth
    if len(images.shape) != 3 or any(array.shape != images.shape for array in arrays.values()):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise ValueError(f"all arrays must have one shape (slices, rows, columns), got {shapes}.")
    marked = mask if truth is None else (mask > 0) | (truth > 0)
    rows, columns = _brain_window(images)
    height = round(CELL * (rows.stop - rows.start) * spacing[0])
    size = (CELL, max(round(height / ((columns.stop - columns.start) * spacing[1])), 1))
    step = max(prod(images.shape) // WHITE_VOXELS, 1)
    some = np.concatenate([image[::step][image[::step] > 0] for image in images])
    white = np.percentile(some, 99.5) if some.size else 1.0
    cells = []
    for index in choose_slices(images, marked, count):
        place = (index, rows, columns)
        image = images[index][rows, columns] / white
        outlines = [(mask[place], MASK_COLOUR, 2)]
        if truth is not None:
            outlines.insert(0, (truth[place], TRUTH_COLOUR, 3))
        cell = overlay_slice(image, scores[place], outlines, size)
        cells.append(_numbered(cell, index))
    return _assemble(cells, title, truth is not None)


def overlay_slice(
    unit_image: NDArray[np.floating],
    scores: NDArray[np.floating],
    outlines: Sequence[tuple[NDArray[Any], Colour, int]],
    size: tuple[int, int],
    opacity: float = SCORE_OPACITY,
    ramp: tuple[Colour, Colour] = SCORE_RAMP,
) -> Image.Image:
    """Return one slice in grey with its scores as a translucent colour and masks as outlines.

    Args:
        unit_image: (H, W), 0 black and 1 white; what lies outside is clipped.
        scores: (H, W) in [0, 1]; 0 is not drawn.
        outlines: mask (H, W), colour and line width in pixels, each drawn over those before it.
        size: (width, height) of the picture in pixels.
        opacity: of score 1, in [0, 1]; lower scores are fainter.
        ramp: colours of the scores 0 and 1.
    """
    cell = _tint(_grey(unit_image, size), _resize(scores, size), opacity, ramp)
    for mask, colour, width in outlines:
        cell[_outline(mask, size, width)] = colour
    return Image.fromarray(cell.round().astype(np.uint8))


def choose_slices(
    images: NDArray[np.floating] | BrainSlices, marked: NDArray[Any], count: int
) -> list[int]:
    """Return up to `count` slice indices in ascending order, for arrays (S, H, W).

    Evenly spaced over the slices where something is marked, the one with most among them; when
    these are too few, brain slices without a mark, evenly spaced too, fill up.
    """
    # Slice by slice: of a large scan, one more array of its shape is much.
    areas = np.array([np.count_nonzero(one) for one in marked])
    found = np.flatnonzero(areas)
    if len(found) > count:
        chosen = _evenly(found, count)
        chosen[np.abs(chosen - areas.argmax()).argmin()] = areas.argmax()
        return sorted(set(chosen.tolist()))
    brain = np.array([np.count_nonzero(one > 0) for one in images])
    others = np.flatnonzero((areas == 0) & (brain >= brain.max() / 4))
    return sorted([*found.tolist(), *_evenly(others, count - len(found)).tolist()])


def results_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of rows of results.json, one line each, in their order.

    Scores are percentages with their 95 % interval over patients; a dash stands for what a row
    does not have. Rows with stand-in weights say so, and rows of
    failed systems why they failed.
    """
    header = (
        *("System", "Sequence", "View", "Threshold", "Dice", "Average precision", "AUROC"),
        *("False alarms per healthy slice", "Patients", "Slices"),
    )
    lines = [header, (*["---"] * 4, *["---:"] * (len(header) - 4))]
    for row in rows:
        patients, slices = str(row["patients"]), str(row["slices"])
        if "failure" in row:
            reason = f"failed: {row['failure']}".replace("|", "/")
            lines.append((system_name(row), row["modality"], row["view"], "–", reason, *["–"] * 5))  # noqa: RUF001
            continue
        lines.append(
            (
                *(system_name(row), row["modality"], row["view"], _threshold(row)),
                *(_percent(row, name) for name in ("dice", "average_precision", "auroc")),
                *(_number(row.get("false_alarms_per_healthy_slice"), 1, 2), patients, slices),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def system_name(row: Row) -> str:
    """Return what people read of a row's system."""
    name = SYSTEM_NAMES.get(row["system"], str(row["system"]))
    return f"{name} (stand-in weights)" if row.get("weights") == "stand-in" else name


def sequence_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of RASALoRE by sequence, one line per system and view; "" without."""
    chosen = [row for row in rows if row["system"].startswith(BY_SEQUENCE) and "failure" not in row]
    lines = [("Sequence", "View", "Dice at 0.5", "Dice, label-free", "Average precision")]
    lines.append(("---", "---", "---:", "---:", "---:"))
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in chosen:
        found.setdefault((row["modality"], row["view"]), {})[row["threshold"]] = row
    for (sequence, view), by_threshold in found.items():
        fixed, free = by_threshold["0.5"], by_threshold.get("label_free", {})
        scores = _percent(fixed, "dice"), _percent(free, "dice")
        lines.append((sequence, view, *scores, _percent(fixed, "average_precision")))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if chosen else ""


def difference_table(compared: Sequence[Row]) -> str:
    """Return a Markdown table of paired Dice differences, one line each; "" without."""
    header = ("System", "View", "Threshold", "Compared with", "Difference of Dice", "Patients")
    lines: list[tuple[str, ...]] = [header, (*["---"] * 4, "---:", "---:")]
    for row in compared:
        reference = system_name({"system": row["reference"]})
        shown = (system_name(row), row["view"], _threshold(row), reference)
        lines.append((*shown, _percent(row, "dice_difference"), str(row["patients"])))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" if compared else ""


def cost_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of what each system cost, one line each; a dash where unknown."""
    names = ("seconds", "peak_mib", "scoring_seconds", "scoring_peak_mib")
    header = ("System", "Weights", "Training (s)", "Training peak (MiB)", "Scoring (s)")
    lines = [(*header, "Scoring peak (MiB)"), ("---", "---", *["---:"] * 4)]
    for row in {row["system"]: row for row in rows}.values():
        numbers = (_number(row.get(name), 1, 0) for name in names)
        lines.append((system_name(row), str(row["weights"]), *numbers))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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


def _brain_window(images: NDArray[np.floating] | BrainSlices) -> tuple[slice, slice]:
    """Rows and columns that hold the brain in any slice, with a margin of 4 pixels."""
    window = []
    for axis in (1, 2):
        filled = np.flatnonzero(np.any([(one > 0).any(2 - axis) for one in images], axis=0))
        low, high = (filled[0], filled[-1]) if len(filled) else (0, images.shape[axis])
        window.append(slice(max(low - 4, 0), min(high + 5, images.shape[axis])))
    return window[0], window[1]


def _evenly(values: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """Up to `count` of the values, evenly spaced, without the ends where there is a choice."""
    if len(values) <= count:
        return values
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)]


def _resize(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Array (H, W) at `size` (width, height), bilinear."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _grey(unit_image: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Slice (H, W) as grey (height, width, 3) in [0, 255]; above 1 is white."""
    grey = _resize(unit_image.clip(0, 1), size) * 255
    return np.repeat(grey[..., None], 3, axis=2)


def _tint(
    cell: NDArray[np.float32],
    scores: NDArray[np.float32],
    opacity: float = SCORE_OPACITY,
    ramp: tuple[Colour, Colour] = SCORE_RAMP,
) -> NDArray[np.float32]:
    low, high = (np.array(colour, np.float32) for colour in ramp)
    share = scores.clip(0, 1)[..., None]
    covered = opacity * share
    return cell * (1 - covered) + (low + (high - low) * share) * covered


def _outline(mask: NDArray[Any], size: tuple[int, int], width: int) -> NDArray[np.bool_]:
    """Pixels (height, width) along the inner edge of a mask (H, W), `width` pixels wide."""
    inside = _resize(mask > 0, size) > 0.5
    return inside & ~ndimage.binary_erosion(inside, iterations=width)


def _numbered(cell: Image.Image, index: int) -> Image.Image:
    ImageDraw.Draw(cell).text((6, 4), str(index), INK, _font(14))
    return cell


def _assemble(cells: list[Image.Image], title: str, with_truth: bool) -> Image.Image:
    """Cells in lines of four or six over the legend."""
    columns = min(len(cells), 4 if len(cells) <= 12 else 6)
    width, height = cells[0].size
    lines = -(-len(cells) // columns)
    total = (max(columns, 3) * (width + GAP) + GAP, lines * (height + GAP) + GAP + 70)
    montage = Image.new("RGB", total, PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        montage.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    _draw_legend(montage, total[1] - 66, title, with_truth)
    return montage


def _draw_legend(montage: Image.Image, top: int, title: str, with_truth: bool) -> None:
    draw = ImageDraw.Draw(montage)
    draw.text((GAP, top), title, INK, _font(15))
    ramp = np.linspace(0, 1, 80, dtype=np.float32)[None].repeat(14, axis=0)
    bar = _tint(np.full((14, 80, 3), 128, np.float32), ramp)
    montage.paste(Image.fromarray(bar.astype(np.uint8)), (GAP, top + 24))
    left = _write(draw, GAP + 88, top + 22, "score 0 to 1")
    entries = [("predicted mask", MASK_COLOUR), ("true mask", TRUTH_COLOUR)]
    for name, colour in entries[: 1 + with_truth]:
        draw.rectangle((left, top + 24, left + 18, top + 37), outline=colour, width=3)
        left = _write(draw, left + 26, top + 22, name)
    _write(draw, left, top + 22, "slices counted from below, patient's right on the left")
    draw.text((GAP, top + 44), DISCLAIMER, INK, _font(13))


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str) -> int:
    """Draw a legend entry; returns where the next one starts."""
    draw.text((left, top), text, INK, _font(14))
    return left + round(draw.textlength(text, _font(14))) + 24


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _threshold(row: Row) -> str:
    return THRESHOLD_NAMES.get(row["threshold"], str(row["threshold"]))


def _percent(row: Row, name: str) -> str:
    """Such as `71.2 [65.0, 77.3]`."""
    mean, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
    if mean is None or low is None or high is None:
        return _number(mean, 100, 1)
    return f"{_number(mean, 100, 1)} [{_number(low, 100, 1)}, {_number(high, 100, 1)}]"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"  # noqa: RUF001


def _draw_bars(axes: Any, rows: Sequence[Row], systems: list[str], measure: str) -> None:
    """Draw one bar per system and threshold; per system only for a ranking measure."""
    columns = list(dict.fromkeys(row["threshold"] for row in rows))
    columns = columns if measure == "dice" else columns[:1]
    width = 0.8 / len(columns)
    for place, column in enumerate(columns):
        drawn = [r for r in rows if r["threshold"] == column and r.get(measure) is not None]
        middles = [systems.index(system_name(row)) + (place + 0.5) * width - 0.4 for row in drawn]
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
