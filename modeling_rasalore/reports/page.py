"""Write report.html: one file about a run, with its pictures in it, that needs no network."""

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import replace_file
from ..provenance import DISCLAIMER
from ..scans.finding import describe_counts
from .pictures import embed_picture, histogram_svg
from .wording import explain_interval, explain_threshold, headline

ODD_NAMES = "backslashreplace"  # for bytes of file names that are no UTF-8
MOST_BYTES = 2_700_000  # of scans told in full; the page stays below 3 MB
FINDINGS_SHOWN = 10
COLUMNS = (
    *("status", "millilitres", "interval_ml", "findings_above_1_ml", "largest_component_ml"),
    *("quality_score", "bounding_box_mm", "slices_with_anomaly", "slices", "seconds"),
)
TITLES = {
    **{"findings_above_1_ml": "findings of 1 mL or more", "interval_ml": "interval (mL)"},
    **{"largest_component_ml": "largest (mL)", "millilitres": "marked (mL)"},
    **{"bounding_box_mm": "bounding box (mm)", "seconds": "time (s)"},
}
PICTURES = {  # role -> what it shows, and how it is read
    "planes": (
        "Axial, coronal and sagittal plane through the first finding",
        "Ticks at the edges say where the planes cross.",
    ),
    "overlay": ("Slices that say most", "Colour: score; yellow line: mask."),
}
LIMITS = (
    DISCLAIMER,
    "Trained on brain tumours in adults or on synthetic brains; other findings may go unseen.",
    "Skull-stripped scans of the sequence that the model was trained on are expected.",
    "The left of a picture is the patient's right; slices are counted from below.",
)
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;max-width:68rem;margin:0 auto;"
    "padding:1rem}h1{margin:.2rem 0}h2{margin:2rem 0 .5rem;overflow-wrap:anywhere}"
    "table{border-collapse:collapse}td,th{padding:.25rem .8rem .25rem 0;text-align:left;"
    "border-bottom:1px solid #ccc;vertical-align:top}img,svg{max-width:100%;height:auto}"
    "svg{width:40rem}svg text{font-size:15px}svg line{stroke:#a40000;stroke-width:3}"
    ".plain{fill:#8a8a8a}.marked{fill:#d9541e}figure{margin:1rem 0}figcaption,.small{color:#444;"
    "font-size:.9rem}.big{font-size:1.35rem;font-weight:600;margin:.3rem 0}.wide{overflow-x:auto}"
    ".limits,.warnings{padding:.5rem 1rem;border-left:.4rem solid #c98a00;background:#fff5dc}"
    ".warnings h2{margin:.2rem 0}.failed{color:#a40000}li,p{overflow-wrap:anywhere}"
    "ul{padding-left:1.2rem}"
)


def write_page(
    path: Path, manifest: Mapping[str, Any], scans: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Return `path`, one page about a run; pictures are put into it as far as 3 MB allow.

    Args:
        path: in the folder that the pictures lie in.
        manifest: of the run.
        scans: its scans, then those of earlier runs, by their names in the results.
    """
    articles = _articles(path.parent, manifest["settings"], scans)
    table = _table(scans) if len(scans) != 1 else ""
    title = next(iter(scans)) if len(scans) == 1 else f"{len(scans)} scans"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>rasalore: {escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>Anomaly report</h1><p class="limits"><strong>{escape(DISCLAIMER)}</strong>'
        f"</p></header><main>{_warnings(scans)}{table}{articles}{_threshold(manifest)}"
        f"{_model(manifest)}{_files(manifest)}</main></body></html>\n"
    )
    return replace_file(
        path, lambda draft: draft.write_text(page, encoding="utf-8", errors=ODD_NAMES)
    )


def _warnings(scans: Mapping[str, Mapping[str, Any]]) -> str:
    """Why scans failed, and what may make results worth less, one line each."""
    items = ""
    for name, entry in scans.items():
        reasons = [entry["reason"]] if "reason" in entry else []
        for reason in [*reasons, *entry.get("warnings", [])]:
            line = escape(f"{name}: {reason}")
            items += f'<li class="{escape(entry["status"])}">{line}</li>'
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>' * bool(items)


def _table(scans: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per scan."""
    rows = (
        (entry["status"], [name, *(_cell(entry.get(column)) for column in COLUMNS)])
        for name, entry in scans.items()
    )
    titles = ["scan", *(TITLES.get(column, column.replace("_", " ")) for column in COLUMNS)]
    return f"<h2>Scans</h2>{_html_table('all scans', titles, rows)}"


def _articles(
    folder: Path, settings: Mapping[str, Any], scans: Mapping[str, Mapping[str, Any]]
) -> str:
    """Each scan that was segmented, in full while there is room; of the others a link."""
    page, others = "", ""
    for name, entry in scans.items():
        if entry["status"] != "done":
            continue
        article = _article(folder, settings, name, entry)
        if len(page) + len(article) <= MOST_BYTES:
            page += article
        elif picture := entry.get("outputs", {}).get("overlay"):
            others += f'<li><a href="{quote(os.fsencode(picture))}">{escape(name)}</a></li>'
    note = "This page holds no more pictures; those of these scans are files beside it."
    return page + f"<h2>Further scans</h2><p>{note}</p><ul>{others}</ul>" * bool(others)


def _article(folder: Path, settings: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> str:
    """What was marked in one scan: headline, findings, pictures, histogram of scores."""
    facts = (
        f"Sequence: {entry.get('modality') or 'not told by the scan'}. "
        f"{entry['slices_with_anomaly']} of {entry['slices']} slices are marked. "
        f"{explain_interval(entry)}"
    )
    pictures = "".join(_figure(folder, name, role, entry) for role in PICTURES)
    return (
        f'<article><h2>{escape(name)}</h2><p class="big">{escape(headline(entry))}</p>'
        f'<p class="small">{escape(facts)}</p>{_findings(name, entry)}{pictures}'
        f"{_histogram(name, settings, entry)}</article>"
    )


def _findings(name: str, entry: Mapping[str, Any]) -> str:
    """The first findings of a scan, and how many others there are."""
    findings: Sequence[Mapping[str, Any]] = entry.get("findings", [])
    rows = []
    for number, row in enumerate(findings[:FINDINGS_SHOWN], start=1):
        centre = ", ".join(f"{value:g}" for value in row.get("centre_mm", []))
        slices = f"{row['lowest_slice']} to {row['highest_slice']}"
        score = f"{row['mean_score']:.2f}"
        rows.append(("done", [str(number), f"{row['millilitres']:.2f}", score, slices, centre]))
    if not rows:
        return ""
    titles = ["finding", "mL", "mean score", "slices", "centre x, y, z (mm)"]
    others = entry.get("findings_in_all", len(rows)) - len(rows)
    note = f"<p>{others} smaller or fainter findings are in {escape(name)}.json.</p>"
    return (
        "<p>Findings are ordered by volume times mean score.</p>"
        f"{_html_table(f'findings of {name}', titles, rows)}{note * bool(others)}"
    )


def _figure(folder: Path, name: str, role: str, entry: Mapping[str, Any]) -> str:
    """A picture of a scan with its caption; "" where none was written."""
    picture = entry.get("outputs", {}).get(role)
    address = picture and embed_picture(folder / picture)
    if not address:
        return ""
    shows, reading = PICTURES[role]
    return (
        f'<figure><img src="{address}" alt="{shows} of {escape(name)}">'
        f"<figcaption>{shows}. {reading}</figcaption></figure>"
    )


def _histogram(name: str, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    counts = entry.get("score_histogram")
    if not counts:
        return ""
    threshold = entry.get("threshold", settings["threshold"])
    label = f"histogram of the scores of {name}, threshold {threshold:.3g}"
    caption = (
        "Scores of all brain voxels, from 0 to 1; each bar is as high as the logarithm of its "
        "count. Red line: threshold."
    )
    chart = histogram_svg(counts, threshold, label)
    return f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"


def _threshold(manifest: Mapping[str, Any]) -> str:
    words = " ".join(explain_threshold(manifest["settings"]))
    return f"<h2>What the threshold means</h2><p>{escape(words)}</p>"


def _model(manifest: Mapping[str, Any]) -> str:
    """Which model made the results with which settings, and what it cannot do."""
    model, settings = manifest["model"], manifest["settings"]
    refined = (
        f"scores {'' if settings['flips'] else 'not '}averaged over flips, blurred by "
        f"{settings['smooth_mm']:g} mm, joined by smoothed intensity and its mirror image with "
        f"weight {settings['free_map']:g}, parts below {settings['smallest_ml']:g} mL removed"
    )
    facts = (
        f"Model {model['name']}, trained on {model['modality'] or 'a sequence it does not tell'}, "
        f"weights {str(model['weights_sha256'])[:12]}, on {manifest['device']} "
        f"({settings['precision']}); {refined}. {manifest.get('seconds', 0)} s, "
        f"{manifest.get('peak_memory_mib', 0)} MiB at most."
    )
    if earlier := len(manifest.get("earlier", {})):
        facts += f" The last {earlier} of the scans are of earlier runs into this folder."
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in LIMITS)
    return f"<h2>Model and limits</h2><p>{escape(facts)}</p><ul>{limits}</ul>"


def _files(manifest: Mapping[str, Any]) -> str:
    """How many files were used, and what was left out, one line each."""
    counts = describe_counts(manifest["file_counts"])
    items = (f"{entry['path']}: {entry['reason']}" for entry in manifest["left_out"])
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h2>Files</h2><p>{escape(counts)}.</p>" + f"<ul>{lines}</ul>" * bool(lines)


def _html_table(
    label: str, titles: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]
) -> str:
    """Return a table that scrolls on narrow screens; each row has its class and its cells."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = ""
    for kind, cells in rows:
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr class="{escape(kind)}">{line}</tr>'
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    """A table's cell for people: three decimals; a box as ranges of x, y and z."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ", ".join(f"{low:g} to {high:g}" for low, high in zip(*value, strict=True))
    if isinstance(value, list):
        return " to ".join(_cell(part) for part in value)
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return "" if value is None else str(value)
