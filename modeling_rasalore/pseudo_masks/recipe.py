"""Declare what pseudo-masks are made from."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ..recipes import DataRecipe
from .segmenter import MARGIN


@dataclass
class PseudoMaskRecipe:
    """What the masks are made from.

    Attributes:
        stage1: folder of train/stage1.py; its split.json decides who is in.
        out: folder of the masks.
        source: "ddpt"; "fused" for heatmaps, networks and the map that learns nothing together; or
            "truth" for the ceiling.
        threshold: of the scaled heatmap.
        filter_reach: of the guided filter that lets a heatmap follow the slice's edges, in shares
            of the square root of the brain's area; 0, the poster: no filter.
        minimum_probability: unhealthy slices that stage 1 itself gives less than this are left out:
            what it does not recognise it does not locate either. The poster keeps all: 0.
        appearance: folder of a stage-2 network that saw painted lesions only: what a lesion looks
            like, where the heatmap says what made the slice unhealthy. Their mean is cut. The
            poster: none.
        teacher: folder of a finished stage-2 run, whose weights may be a running mean (loop.ema):
            its scores, averaged over mirror images, are cut in place of heatmaps. The poster: none.
        uncertain_above: of a teacher: higher scores are lesion or uncertain, lower ones are not
            lesion. Uncertain pixels, where the next network had better not believe the teacher, are
            marked and left out of all that stage 2 computes.
        uncertain_up_to: of a teacher: higher scores are lesion.
        fuse: of source=fused: folders of stage-2 networks that saw painted lesions only.
        fuse_heatmap: of source=fused: whether stage 1's heatmap is one of the maps. It tells slices
            apart, so labels give it weight; where it shows no place, it spoils the masks.
        equal_weights: of source=fused: every map counts alike; else slice labels of training
            patients give the weights.
        segmenter: repo id or folder of a SAM, SAM 2 or LiteMedSAM; empty: no M_SAM.
        segmenter_revision: of the repo; empty: its newest.
        prompt: "box" or "points".
        margin: around the box, in shares of its longer side; null: chosen on training slices by the
            overlap that the segmenter itself expects, without any mask.
        seed: of the points.
        batch_size: slices scored at once.
    """

    stage1: str = MISSING
    out: str = MISSING
    data: DataRecipe = field(default_factory=DataRecipe)
    source: str = "ddpt"
    threshold: float = 0.5
    filter_reach: float = 0.0
    minimum_probability: float = 0.0
    appearance: str = ""
    teacher: str = ""
    uncertain_above: float = 0.3
    uncertain_up_to: float = 0.7
    fuse: list[str] = field(default_factory=list)
    fuse_heatmap: bool = False
    equal_weights: bool = False
    segmenter: str = ""
    segmenter_revision: str | None = None
    prompt: str = "box"
    margin: float | None = MARGIN
    seed: int = 0
    batch_size: int = 16


def check_sources(recipe: PseudoMaskRecipe) -> None:
    """Raise ValueError for sources that do not exist or exclude each other, and for bounds."""
    if recipe.source not in ("ddpt", "fused", "truth"):
        raise ValueError(f"source must be 'ddpt', 'fused' or 'truth', got {recipe.source!r}.")
    if recipe.fuse and recipe.source != "fused":
        raise ValueError(f"fuse names networks for source=fused, got source={recipe.source}.")
    others = ("source", "threshold", "filter_reach", "minimum_probability", "appearance")
    given = [name for name in others if getattr(recipe, name) != getattr(PseudoMaskRecipe, name)]
    if recipe.teacher and given:
        raise ValueError(
            f"a teacher's scores are cut alone; leave out {' and '.join(given)}, or teacher."
        )
    low, high = recipe.uncertain_above, recipe.uncertain_up_to
    if not 0 <= low <= high < 1:
        raise ValueError(
            "scores are uncertain from uncertain_above up to uncertain_up_to, with 0 <= first <= "
            f"second < 1, got {low:g} and {high:g}."
        )
