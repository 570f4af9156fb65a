"""Draw one slice with its overlay, for browsers that cannot draw volumes by themselves."""

import base64
import io

import numpy as np
from analysis import Analysis
from numpy.typing import NDArray
from PIL import Image

from modeling_rasalore.prediction.volume import FloatImage
from modeling_rasalore.scans.overlays import MASK_COLOUR, SCORE_RAMP, TRUTH_COLOUR, Outline

DOUBT_RAMP = ((20, 60, 160), (80, 240, 255))  # no or full doubt; far from the colours of scores
LEAST_SPREAD = 1e-3  # standard deviation of a score; where all have less, none has full colour


def draw_slice(
    analysis: Analysis,
    index: int,
    mask: np.ndarray,
    opacity: float,
    spread: FloatImage | None = None,
) -> Image.Image:
    """Return the slice with colours and the outlines of the mask and, where known, the truth.

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
        colours, ramp = scale_spread(spread, image > 0), DOUBT_RAMP
    outlines: list[Outline] = [(mask[index], MASK_COLOUR, 2)]
    if analysis.truth is not None:
        outlines.insert(0, (analysis.truth[index], TRUTH_COLOUR, 3))
    return view.draw(image, colours, outlines, opacity, ramp)


def scale_spread(spread: FloatImage, brain: NDArray[np.bool_]) -> FloatImage:
    """Return how uncertain scores are beside the most uncertain hundredth of them, in [0, 1].

    As a root: trained models doubt little, and that at edges.

    Args:
        spread: standard deviations of scores, of any shape.
        brain: of the same shape, which of them count.
    """
    most = np.percentile(spread[brain], 99) if spread.any() else 0
    share: FloatImage = (spread / max(float(most), LEAST_SPREAD)).clip(0, 1)
    return np.sqrt(share)


def inline_picture(picture: Image.Image, words: str) -> str:
    """Return a picture as HTML that holds it, so that no file of it is on the server.

    Args:
        words: what it shows, for those who do not see it.
    """
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{words}" src="data:image/png;base64,{content}">'
