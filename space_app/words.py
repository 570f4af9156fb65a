"""Say in HTML what was found in a scan: why not to rely on it, the numbers, the findings."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modeling_rasalore.provenance import DISCLAIMER
from modeling_rasalore.reports.findings import LARGE_ML, Finding
from modeling_rasalore.reports.wording import explain_threshold, headline

MOST_SMALL = 50  # of the findings below LARGE_ML that the page lists

Report = Mapping[str, Any]


def write_result(report: Report, told: str = "") -> str:
    """Return the head of a result, which takes the focus.

    Args:
        report: as `Analysis.report` returns it.
        told: what an example is; "" for an upload.
    """
    unfit, warnings = report["unfit_because"], report["warnings"]
    notes = [sentence for sentence in warnings if sentence not in unfit]
    sequence = report["modality"].upper() if report["modality"] else "sequence not told by the scan"
    told_by = f" ({report['modality_source']})" if report["modality_source"] else ""
    facts = (
        f"{report['input']} · {sequence}{told_by} · read by {report['model']['name']} · marked "
        f"above a score of {report['threshold']:.2f}"
    )
    why = " ".join([*explain_threshold(report), tell_brain(report["brain_source"])])
    return (
        f'<section id="result" tabindex="-1" aria-labelledby="headline">{write_unfit(unfit)}'
        f'<h2 id="headline">{escape(headline(report))}</h2>{write_example(report, told)}'
        f"<details><summary>{escape(facts)}</summary><p>{escape(why)}</p></details>"
        f"{write_items(notes, 'notes')}</section>"
    )


def tell_brain(source: str) -> str:
    """Return what told the brain from the rest of a head; "" where nothing had to."""
    return f"Nothing but the brain was read, told by {source}." if source else ""


def write_unfit(reasons: Sequence[str]) -> str:
    """Return the red block that stands above every number; "" where there is no reason for it."""
    if not reasons:
        return ""
    return (
        '<div class="unfit" role="alert"><strong>Do not rely on this result.</strong>'
        f"{write_items(reasons, '')}</div>"
    )


def write_items(sentences: Sequence[str], kind: str) -> str:
    """Return sentences as a list; "" without any."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def write_example(report: Report, told: str) -> str:
    """Return what an example is and how well its truth was met; "" for an upload."""
    if "dice" not in report:
        return ""
    truth = "Healthy: every marked voxel is a false alarm"
    if report["dice"] is not None:
        truth = (
            f"Dice with the truth {report['dice']:.2f}, truth {report['true_millilitres']:.1f} mL"
        )
    return f'<p class="example">{escape(told)} <strong>{truth}</strong>.</p>'


def write_findings(report: Report) -> str:
    """Return the table of findings, the smaller ones folded."""
    rows = report["findings"]
    if not rows:
        return f"<p>{escape(DISCLAIMER)}</p>"
    large = [row for row in rows if row["millilitres"] >= LARGE_ML]
    small = [row for row in rows if row["millilitres"] < LARGE_ML]
    others = report["smaller_findings"]
    table = write_table("Findings by volume times score", large) if large else ""
    count = len(small) + others["count"]
    if not count:
        return table
    millilitres = sum(row["millilitres"] for row in small) + others["millilitres"]
    more = "<p>All are in the JSON file.</p>" if count > MOST_SMALL else ""
    return (
        f"{table}<details{'' if large else ' open'}><summary>{count} small "
        f"one{'' if count == 1 else 's'}, under {LARGE_ML:g} mL each, {millilitres:.1f} mL "
        f"together</summary>{write_table('Small findings', small[:MOST_SMALL])}{more}</details>"
    )


def write_table(caption: str, rows: Sequence[Finding]) -> str:
    """Return findings as a table, each with a button that goes there."""
    lines = "".join(
        f'<tr data-point="{",".join(map(str, row["point_mm"]))}" data-slice="{row["slice"]}">'
        f'<td><button type="button">{escape(row["position"])}</button></td>'
        f"<td>{row['millilitres']:.1f}</td><td>{row['mean_score']:.2f}</td></tr>"
        for row in rows
    )
    return (
        f"<table><caption>{caption}</caption><thead><tr><th>Where</th><th>mL</th><th>Score</th>"
        f"</tr></thead><tbody>{lines}</tbody></table>"
    )
