"""What people see of an analysis: pictures of one slice, and sentences and a table about it all."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from analysis import Analysis, Report
from PIL import Image

from modeling_rasalore.evaluation.tables import markdown_table
from modeling_rasalore.prediction.outputs import describe
from modeling_rasalore.prediction.volume import FloatImage, VolumePrediction
from modeling_rasalore.scans.background import brain_of
from modeling_rasalore.scans.overlays import MASK_COLOUR, SCORE_RAMP

DOUBT_RAMP = ((20, 60, 160), (80, 240, 255))  # no or full doubt; far from the colours of scores
LEAST_SPREAD = 1e-3  # standard deviation of a score; a slice with less has no full colour
FINDINGS_SHOWN = 10


def draw_slice(
    analysis: Analysis,
    index: int,
    mask: np.ndarray,
    opacity: float,
    spread: FloatImage | None = None,
) -> tuple[Image.Image, Image.Image]:
    """Return the plain slice and the same with colours and the outline of the mask.

    Args:
        analysis: the scan and its scores.
        index: which slice, counted from 0.
        mask: (S, H, W) at the threshold to show.
        opacity: of the colours, in [0, 1].
        spread: (H, W) uncertainty to show in place of the scores.
    """
    image, view = analysis.images[index], analysis.view
    colours, ramp = analysis.prediction.scores[index], SCORE_RAMP
    if spread is not None:
        # Of the slice's most uncertain pixels, as a root: trained models doubt little, at edges.
        most = np.percentile(spread[brain_of(image)], 99) if spread.any() else 0
        share = (spread / max(float(most), LEAST_SPREAD)).clip(0, 1)
        colours, ramp = np.sqrt(share), DOUBT_RAMP
    plain = view.draw(image, np.zeros_like(image), [])
    outlines = [(mask[index], MASK_COLOUR, 2)]
    return plain, view.draw(image, colours, outlines, opacity, ramp)


def inline_picture(picture: Image.Image) -> dict[str, Any]:
    """Return a picture as an image component shows it without any file on the server."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode()
    return {"path": None, "url": f"data:image/png;base64,{content}", "mime_type": "image/png"}


def write_summary(name: str, prediction: VolumePrediction, warnings: Sequence[str]) -> str:
    """Return Markdown: what was findings in which scan, and what makes it worth less."""
    lines = [f"### {describe(prediction)}", f"`{name}`, score above {prediction.threshold:.2f}"]
    return "\n\n".join([*lines, *(f"⚠ {sentence}" for sentence in warnings)])


def write_table(report: Report) -> str:
    """Return a Markdown table: the whole mask, then its largest findings with their mean score."""
    findings = report["findings"]
    lines = [("all", f"{report['millilitres']:.1f}", str(report["slices_with_anomaly"]), "")]
    for number, row in enumerate(findings[:FINDINGS_SHOWN], start=1):
        span = f"{row['lowest_slice']} to {row['highest_slice']}"
        lines.append((str(number), f"{row['millilitres']:.1f}", span, f"{row['mean_score']:.2f}"))
    more = len(findings) + report["smaller_findings"]["count"] - FINDINGS_SHOWN
    if more > 0:
        lines.append((f"+{more}", "in the report", "", ""))
    return markdown_table(("#", "mL", "slices", "score"), lines)
