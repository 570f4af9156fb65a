"""Write the page about a study, and the sentence that says whether learning from labels helped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from ..benchmark.finished import FinishedBenchmark
from ..benchmark.pictures import write_grid
from ..data.layouts import find_patients
from ..evaluation.rows import Row, compare_rows
from ..evaluation.tables import overview_table
from ..files import replace_file
from ..prediction.saved_options import ASSUMPTION, CALIBRATION_FILE
from ..recipes import recipe_text
from ..reports.page import LIMITS, STYLE
from .recipe import HEALTHY_SLICES, NOTHING, PSEUDO_MASKS, StudyRecipe
from .steps import Run

PAGE = "report.html"
OWN_STYLE = "pre{white-space:pre-wrap;overflow-wrap:anywhere}figure{margin:0}"
SLICES_SHOWN = 12  # of the picture of test slices, one of each patient
FEW_PATIENTS = 6
TOO_FEW = " (of so few an interval is about their range, and says little)"
SCORED_LESION = "a lesion of more than 200 mm2 in a slice"  # as the benchmark's views have it
MEASURES = {  # the threshold of their rows, and words
    "average_precision": ("0.5", "average precision"),  # the same at every threshold
    "dice": ("label_free", "Dice at the threshold of healthy slices"),
}
FREE_ROWS = {  # which learn nothing
    "smoothed_rank": "smoothed intensity",
    "mirror": "smoothed intensity and its mirror image",
}
FEW_LEARNED = (
    "There are fewer patients to learn from than fuse_from={}, so pseudo-masks are left alone. The "
    "network, Control of RASALoRE in the table, learned lesions painted into slices labelled "
    "healthy."
)
STARTS_IN_WORDS = {
    "phantoms": "the start on synthetic patients",
    "scans": "the start on painted lesions",
    "package": "the package's own weights",
}


@dataclass(frozen=True)
class Verdict:
    """Whether learning from labels helped, and what to use.

    Attributes:
        sentence: for people.
        model: folder to predict with; None for the package's own weights.
    """

    sentence: str
    model: Path | None


def start_row(study: StudyRecipe) -> str:
    """Return the row of the network that a study on real scans starts from."""
    return "package" if study.begins == "package" else "synthetic_only"


def network_row(run: Run) -> str:
    """Return the row of the network that a run makes."""
    rows = {PSEUDO_MASKS: "rasalore", HEALTHY_SLICES: "rasalore_control"}
    return rows.get(run.learns_from) or start_row(run.line.study)


def table_folder(study: StudyRecipe, runs: Sequence[Run]) -> Path:
    """Return where the scores of all runs of a study lie, and its criteria without masks."""
    return Path(study.out) / "pooled" if len(runs) > 1 else runs[0].out


def has_scores(runs: Sequence[Run]) -> bool:
    """Return whether every test patient of a study has a mask."""
    return not any(run.unscored for run in runs)


def require_rows(study: StudyRecipe, runs: Sequence[Run]) -> None:
    """Raise ValueError where a study leaves out a row that its report needs."""
    if study.systems in ("own", "all") or not has_scores(runs):
        return
    asked = {word.strip() for word in study.systems.split(",")}
    needed = (*FREE_ROWS, start_row(study), network_row(runs[0]))
    if missing := [row for row in dict.fromkeys(needed) if row not in asked]:
        raise ValueError(
            f"the report compares {', '.join(dict.fromkeys(needed))}, got systems={study.systems} "
            f"without {', '.join(missing)}; add that, or give systems=own."
        )


# --- The sentence ---------------------------------------------------------------------------------
def judge_learning(study: StudyRecipe, runs: Sequence[Run], model: Path) -> Verdict:
    """Return whether a study's network beat what it started from, by the scores of test patients.

    The measures are average precision over slices with a lesion, which needs no threshold, and
    Dice at the threshold of healthy slices. One must be better by its interval, and neither worse.

    Args:
        model: folder of the network.
    """
    start = STARTS_IN_WORDS[study.begins]
    begun = None if study.begins == "package" else runs[0].start
    if runs[0].learns_from == NOTHING:
        return Verdict(
            "No network learned from these labels: there are fewer patients to learn from than "
            f"fuse_from={study.fuse_from}, and labels of few have made networks worse. What there "
            f"is, is {start}: label more scans.",
            None if begun is None else model,
        )
    if not has_scores(runs):
        return Verdict(
            f"Whether learning from these labels beat {start} is not known: no test patient has a "
            "mask. choices.md has the criteria that need none.",
            model,
        )
    rows = read_rows(table_folder(study, runs))
    network, other = network_row(runs[0]), start_row(study)
    verdict = weigh(compare_systems(rows, network, other, study.seed), start, model, begun)
    chosen = paper_row(rows, network if verdict.model == model else other)
    free = weigh_free([compare_rows(chosen, paper_row(rows, n), study.seed) for n in FREE_ROWS])
    sentences = [verdict.sentence, free]
    if runs[0].learns_from == HEALTHY_SLICES:
        sentences.insert(0, FEW_LEARNED.format(study.fuse_from))
    return replace(verdict, sentence=" ".join(sentences))


def compare_systems(rows: Sequence[Row], system: str, reference: str, seed: int) -> dict[str, Row]:
    """Return measure -> paired differences; no Dice where healthy slices gave no threshold."""
    ours, theirs = paper_row(rows, system), paper_row(rows, reference)
    compared = {"average_precision": compare_rows(ours, theirs, seed)}
    pair = [find_row(rows, name, "label_free") for name in (system, reference)]
    if pair[0] and pair[1]:
        compared["dice"] = compare_rows(pair[0], pair[1], seed)
    return compared


def weigh(compared: Mapping[str, Row], start: str, model: Path, begun: Path | None) -> Verdict:
    """Return the verdict of paired differences between a network and its start.

    Args:
        compared: of `compare_systems`.
        start: what the start is, in words.
        model, begun: folders of the network and of its start, None for the package's own weights.
    """
    patients = next(iter(compared.values()))["patients"]
    differences = [difference_of(row, measure) for measure, row in compared.items()]
    known = [(low, high) for _, low, high in differences if low is not None]
    if not known:
        return Verdict(
            f"Whether learning from these labels beat {start} cannot be told: an interval needs "
            f"two test patients with {SCORED_LESION}, and there are {patients}.",
            model,
        )
    numbers = "; ".join(in_points(row, measure) for measure, row in compared.items())
    numbers += over_patients(patients) + TOO_FEW * (patients < FEW_PATIENTS)
    if any(low > 0 for low, _ in known) and not any(high < 0 for _, high in known):
        return Verdict(f"Learning from these labels beat {start}: {numbers}.", model)
    way = "without --model" if begun is None else f"with --model {begun}"
    return Verdict(
        f"Learning from these labels did not beat {start}: {numbers}. Use {start}: rasalore "
        f"predict {way}.",
        begun,
    )


def weigh_free(compared: Sequence[Row]) -> str:
    """Return whether what the verdict names is worth more than the maps that learn nothing.

    Args:
        compared: paired differences of it from each of these maps.
    """
    measure = "average_precision"
    if not compared[0]["patients"]:
        return f"Nor what it is worth: no test slice has {SCORED_LESION}."
    least = min(compared, key=lambda row: difference_of(row, measure)[0])
    _, low, _ = difference_of(least, measure)
    better = "It beats" if low is not None and low > 0 else "It does not beat"
    numbers = in_points(least, measure) + over_patients(least["patients"])
    return f"{better} {FREE_ROWS[least['reference']]}, which learns nothing: {numbers}."


def in_points(compared: Row, measure: str) -> str:
    """Return a paired difference in points of 100, with its interval."""
    mean, low, high = difference_of(compared, measure)
    interval = f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}" if low is not None else ""
    return f"{MEASURES[measure][1]} {100 * mean:+.1f} points{interval}"


def difference_of(compared: Row, measure: str) -> tuple[Any, Any, Any]:
    """Return a paired difference and the limits of its interval, as shares of 1; None: unknown."""
    mean, low, high = (compared[f"{measure}_difference{end}"] for end in ("", "_low", "_high"))
    return mean, low, high


def over_patients(patients: int) -> str:
    """Return over how many patients a difference is a mean."""
    return f" over {patients} test patient{'s' * (patients > 1)}"


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of a benchmark's results.json."""
    rows: list[Row] = json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    return rows


def find_row(rows: Sequence[Row], system: str, threshold: str) -> Row | None:
    """Return a system's row of slices with a lesion; None where there is none."""
    for row in rows:
        shown = (row["system"], row["view"], row["threshold"])
        if shown == (system, "paper", threshold) and "failure" not in row:
            return row
    return None


def paper_row(rows: Sequence[Row], system: str) -> Row:
    """Return a system's row of slices with a lesion, at 0.5; ValueError where it has no scores."""
    if row := find_row(rows, system, "0.5"):
        return row
    raise ValueError(f"{system} has no scores; results.md says why, and the same command goes on.")


# --- The page -------------------------------------------------------------------------------------
def draw_test_slices(runs: Sequence[Run], path: Path) -> list[str]:
    """Draw test slices with truth and maps, and return whose they are; no id is in the picture."""
    benchmarks = [FinishedBenchmark(run.out) for run in runs]
    folders = {i: b.folder for b in reversed(benchmarks) for i in b.patients}
    patients = [p for p in find_patients(runs[0].line.root) if p.patient_id in folders]
    chosen = (*FREE_ROWS, start_row(runs[0].line.study), network_row(runs[0]))
    rows = [row for row in benchmarks[0].content["rows"] if row["system"] in chosen]
    return write_grid(path, patients, benchmarks[0].data, rows, folders, SLICES_SHOWN, named=False)


def write_report(
    study: StudyRecipe, runs: Sequence[Run], verdict: Verdict, said: Sequence[str], command: str
) -> Path:
    """Return the page about a study, report.html.

    Args:
        said: what was found and left out, one sentence each.
        command: how to use what the verdict names.
    """
    out = Path(study.out)
    parts = [f"<p><strong>{escape(verdict.sentence)}</strong></p>", f"<pre>{escape(command)}</pre>"]
    if has_scores(runs):
        rows = read_rows(table_folder(study, runs))
        parts += ["<h2>Scores of test patients (%)</h2>", html_table(overview_table(rows))]
        shown = draw_test_slices(runs, out / "test_slices.png")
        caption = f"From top to bottom: {', '.join(shown)}."
        parts += [picture("test_slices.png", caption)] * bool(shown)
    if (out / "curve.png").is_file():
        parts += ["<h2>Would more labels help?</h2>", picture("curve.png", "Learning curve")]
    parts += ["<h2>Thresholds</h2>", *threshold_lines(out / "model")]
    parts += ["<h2>Scans and labels</h2>", *(f"<p>{escape(line)}</p>" for line in said)]
    parts += ["<h2>Recipe</h2>", f"<pre>{escape(recipe_text(study))}</pre>"]
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in LIMITS)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>rasalore train</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{OWN_STYLE}</style>'
        f"<h1>A network that learned from {escape(Path(study.data.root).name)}</h1>"
        f'<ul class="limits">{limits}</ul>{"".join(parts)}</html>\n'
    )
    return replace_file(out / PAGE, lambda draft: draft.write_text(page, encoding="utf-8"))


def threshold_lines(model: Path) -> list[str]:
    """Return what the thresholds of a model folder promise, one paragraph each."""
    path = model / CALIBRATION_FILE
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    entries = stored.get("thresholds", [])
    if not entries:
        return ["<p>None was calibrated: 0.5 is taken, and its false alarms are not known.</p>"]
    return [
        f"<p>{entry['threshold']:.4g}, which --false-alarms {entry['rate']:g} takes: "
        f"{escape(entry['promise'])}, from {entry['scans']} patients it did not learn from; "
        f"{ASSUMPTION}.</p>"
        for entry in entries
    ]


def picture(name: str, caption: str) -> str:
    """Return a picture beside the page, and its caption."""
    words = escape(caption)
    return f'<figure><img src="{name}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def html_table(markdown: str) -> str:
    """Return a table of Markdown as HTML."""
    header, _, *lines = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
