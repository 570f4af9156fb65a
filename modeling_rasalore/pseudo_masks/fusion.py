"""Fuse maps that know different things: one scale for all, weights from slice labels alone.

A map of attention knows what made a slice unhealthy, a network of painted lesions what a lesion
looks like, and a map that learns nothing where the two hemispheres differ. Healthy slices give
their scale and the two levels between which nobody knows; no pixel label is used.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm import tqdm

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.patient import LabelledSlice, Patient, stack_slices
from ..prediction.free_map import free_map, polarity_of, smooth_scores
from ..prediction.loading import load_model
from ..prediction.saved_options import read_defaults
from ..prediction.volume import predict_slices
from ..scans.background import brain_of
from .recipe import PseudoMaskRecipe
from .sources import HeatmapMaker, Image, ScoreMaker, segmenter_facts
from .table import Mask

FREE_MAP, HEATMAP = "free_map", "heatmap"
POOLED_SHARE = 0.02  # of a slice's brain: its hottest pixels stand for the slice
SAMPLED_PIXELS = 2000  # of a healthy slice: their quantiles differ by 0.1 % from those of all
SCALE_QUANTILE = 0.99  # of healthy brain, which becomes 1; its median becomes 0
NEGATIVE_QUANTILE, POSITIVE_QUANTILE = 0.95, 0.99  # of the fused map in healthy brain
LEAST_SCORE = 1e-6  # so that the logit of a score of 0 or 1 is finite
RIDGE = 1e-3  # keeps weights finite where the labels are told apart without an error


@dataclass(frozen=True)
class Fusion:
    """How maps are added up and cut.

    Attributes:
        names: of the maps.
        middle, spread: of each map in healthy brain: median, and from there to the 99th percentile.
        weights: of each map, 0 or more, together 1.
        negative, positive: fused values; what is above `positive` is lesion, what is below
            `negative` is none, and of all between nobody knows.
    """

    names: tuple[str, ...]
    middle: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    negative: float
    positive: float

    def fuse(self, maps: Mapping[str, Image]) -> Image:
        """Return the weighted sum of maps (H, W) on one scale."""
        parts = zip(self.names, self.middle, self.spread, self.weights, strict=True)
        return sum(  # type: ignore[return-value]
            np.float32(weight / spread) * (maps[name] - np.float32(middle))
            for name, middle, spread, weight in parts
        )

    def cut(self, fused: Image, brain: NDArray[np.bool_]) -> tuple[Mask, Mask]:
        """Return the pseudo-mask of a fused map, and the pixels to ignore, both (H, W) uint8."""
        lesion = brain & (fused > self.positive)
        unknown = brain & (fused > self.negative) & ~lesion
        return lesion.astype(np.uint8), unknown.astype(np.uint8)


@dataclass(frozen=True)
class SliceEvidence:
    """What is kept of the maps of one labelled slice.

    Attributes:
        label: 1 where the slice is unhealthy.
        pooled: mean of each map's hottest pixels, (K,).
        sample: values of some pixels of its brain, (n, K); none of an unhealthy slice.
    """

    label: int
    pooled: Image
    sample: Image


def collect_evidence(
    maps: Mapping[str, Image],
    brain: NDArray[np.bool_],
    label: int,
    generator: np.random.Generator,
) -> SliceEvidence:
    """Return what is kept of the maps (H, W) of a slice with brain (H, W)."""
    values = np.stack([np.asarray(plane)[brain] for plane in maps.values()], axis=1)
    count = max(round(POOLED_SHARE * len(values)), 1)
    hottest = np.partition(values, len(values) - count, axis=0)[-count:]
    chosen = generator.permutation(len(values))[: 0 if label else SAMPLED_PIXELS]
    return SliceEvidence(label, hottest.mean(0), values[chosen])


def fit_fusion(
    names: Sequence[str], evidence: Iterable[SliceEvidence], equal_weights: bool = False
) -> Fusion:
    """Return the fusion that healthy slices scale and slice labels weight.

    Args:
        names: of the maps, in the order of the evidence.
        evidence: of labelled slices of training patients.
        equal_weights: do not ask the labels.

    Raises:
        ValueError: no healthy slice, or none that is unhealthy where labels give the weights.
    """
    slices = list(evidence)
    labels = np.array([part.label for part in slices])
    if not (labels == 0).any() or not (equal_weights or labels.any()):
        raise ValueError(
            "maps are fused by healthy and unhealthy slices of training patients, got "
            f"{np.count_nonzero(labels == 0)} and {np.count_nonzero(labels)}; label some of either."
        )
    healthy = np.concatenate([part.sample for part in slices]).astype(np.float64)
    middle = np.median(healthy, axis=0)
    spread = np.quantile(healthy, SCALE_QUANTILE, axis=0) - middle
    if (spread <= 0).any():
        flat = ", ".join(name for name, width in zip(names, spread, strict=True) if width <= 0)
        raise ValueError(
            f"a map must vary in healthy brain, but {flat} has one value; leave it out."
        )
    weights = np.full(len(names), 1 / len(names))
    if not equal_weights:
        pooled = np.stack([part.pooled for part in slices])
        weights = fit_weights((pooled - middle) / spread, labels)
    fused = ((healthy - middle) / spread) @ weights
    negative, positive = np.quantile(fused, (NEGATIVE_QUANTILE, POSITIVE_QUANTILE))
    return Fusion(
        tuple(names),
        middle=tuple(map(float, middle)),
        spread=tuple(map(float, spread)),
        weights=tuple(map(float, weights)),
        negative=float(negative),
        positive=float(positive),
    )


def fit_weights(pooled: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights of 0 or more, together 1, by logistic regression of labels on pooled maps.

    Equal weights where no map is hotter in unhealthy slices.

    Args:
        pooled: (n, K), one row per slice.
        labels: (n,), 1 for unhealthy.
    """
    count, maps = pooled.shape
    centred = pooled - pooled.mean(0)
    signs = 2.0 * labels - 1

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (centred @ weights + bias)
        errors = -signs / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.append(centred.T @ errors, errors.sum()) / count
        gradient[:-1] += 2 * RIDGE * weights
        return np.logaddexp(0, -margins).mean() + RIDGE * weights @ weights, gradient

    start = np.append(np.full(maps, 1 / maps), 0.0)
    bounds = [(0, None)] * maps + [(None, None)]
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]
    total = weights.sum()
    return weights / total if total > 0 else np.full(maps, 1 / maps)


class FusedMaker(ScoreMaker):
    """Pseudo-masks of maps that slice labels of training patients scale, weight and cut.

    Args:
        recipe: names the networks, and says whether stage 1 is one of the maps, too.
        training: patients whose labelled slices say how the maps are fused.
    """

    def __init__(self, recipe: PseudoMaskRecipe, training: Sequence[Patient]):
        self.heatmaps = HeatmapMaker(replace(recipe, segmenter="")) if recipe.fuse_heatmap else None
        self.networks = {f"network {n}": load_model(f) for n, f in enumerate(recipe.fuse, 1)}
        loaded: list[tuple[Any, Any]] = [*self.networks.values()]
        if self.heatmaps:
            loaded.insert(0, (self.heatmaps.model, self.heatmaps.processor))
        super().__init__(recipe, loaded[0][0].device if loaded else torch.device("cpu"))
        self.blurs_mm = {
            name: read_defaults(folder).get("smooth_mm", 0.0)
            for name, folder in zip(self.networks, recipe.fuse, strict=True)
        }
        self.see = next((processor.see for _, processor in loaded if processor.see), None)
        self.polarity = polarity_of(recipe.data.modality)
        self.names = (*([HEATMAP] if self.heatmaps else []), *self.networks, FREE_MAP)
        evidence = self.collect(training)
        self.fusion: Fusion = fit_fusion(self.names, evidence, recipe.equal_weights)
        self.facts = {
            "networks": list(recipe.fuse),
            **asdict(self.fusion),
            "heatmap": self.heatmaps and self.heatmaps.model.config.heatmap,
            **segmenter_facts(recipe, self.segmenter),
        }

    def collect(self, patients: Sequence[Patient]) -> Iterator[SliceEvidence]:
        """Yield what is kept of the labelled slices of patients."""
        generator = np.random.default_rng(self.recipe.seed)
        for patient in tqdm(patients, desc="fusing maps", unit="patient"):
            for example, maps in self.map_slices(patient, {HEALTHY, UNHEALTHY}):
                yield collect_evidence(maps, brain_of(example.image), example.label, generator)

    def map_slices(
        self, patient: Patient, labels: Collection[int]
    ) -> Iterator[tuple[LabelledSlice, dict[str, Image]]]:
        """Yield slices with these labels, each with all of its maps (H, W)."""
        scan = self.read(patient, None)  # the free map is one of the whole scan
        if not scan:
            return
        stack = stack_slices([e.image for e in scan], [e.slice_index for e in scan])
        free = free_map(stack, stack > 0, scan[0].spacing, self.polarity)
        # Blurred maps are of all slices, others of those that are asked for alone.
        seen = [e for e in scan if e.label in labels or any(self.blurs_mm.values())]
        columns = []
        for start in range(0, len(seen), self.recipe.batch_size):
            columns += self.map_batch(seen[start : start + self.recipe.batch_size])
        self.finish(columns, seen, stack > 0)
        for example, maps in zip(seen, columns, strict=True):
            if example.label in labels:
                maps[FREE_MAP] = free[example.slice_index - scan[0].slice_index]
                yield example, maps

    def finish(
        self,
        columns: Sequence[dict[str, Image]],
        scan: Sequence[LabelledSlice],
        brain: NDArray[np.bool_],
    ) -> None:
        """Turn the networks' scores in place into logits, smoothed as their folders say.

        Args:
            columns: maps of each slice.
            scan: the slices, all of them where anything is blurred.
            brain: (S, H, W), of the scan from its first slice on.
        """
        indices = [example.slice_index for example in scan]
        for name, sigma_mm in self.blurs_mm.items():
            if sigma_mm:
                scores = stack_slices([maps[name] for maps in columns], indices)
                smooth_scores(scores, brain, scan[0].spacing, sigma_mm)
                for maps, index in zip(columns, indices, strict=True):
                    maps[name] = scores[index - indices[0]]
            for maps in columns:
                maps[name] = to_logits(maps[name])

    def map_batch(self, batch: Sequence[LabelledSlice]) -> list[dict[str, Image]]:
        """Return the maps of slices that trained networks make; those of stage 2 are scores."""
        columns: list[dict[str, Image]] = [{} for _ in batch]
        if self.heatmaps:
            for maps, plane, p in zip(columns, *self.heatmaps.score(batch), strict=True):
                maps[HEATMAP] = np.float32(p) * plane
        images, views = [e.image for e in batch], [e.seen for e in batch]
        for name, network in self.networks.items():
            planes = predict_slices(*network, images, self.recipe.batch_size, True, views)
            for maps, plane in zip(columns, planes, strict=True):
                maps[name] = plane
        return columns

    def locate(self, patient: Patient) -> Iterator[tuple[LabelledSlice, Image]]:
        for example, maps in self.map_slices(patient, {UNHEALTHY}):
            brain = brain_of(example.image)
            yield example, np.where(brain, self.fusion.fuse(maps), -np.inf).astype(np.float32)

    def cut(self, scores: Image) -> tuple[Mask, Mask | None]:
        return self.fusion.cut(scores, np.isfinite(scores))


def to_logits(scores: Image) -> Image:
    """Return the logits of scores in [0, 1]."""
    inside = np.clip(scores, LEAST_SCORE, 1 - LEAST_SCORE)
    return np.log(inside / (1 - inside)).astype(np.float32)
