"""Make pseudo-masks of fused maps: heatmaps, networks of painted lesions, the free map."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict

import numpy as np
from tqdm import tqdm

from ..data.labels import HEALTHY, UNHEALTHY
from ..data.patient import LabelledSlice, Patient, stack_slices
from ..prediction.free_map import free_map, polarity_of
from ..prediction.loading import load_model
from ..prediction.volume import predict_slices
from ..scans.background import brain_of
from .fusion import Fusion, SliceEvidence, collect_evidence, fit_fusion
from .recipe import PseudoMaskRecipe
from .sources import HeatmapMaker, Image, ScoreMaker
from .table import Mask

FREE_MAP, HEATMAP = "free_map", "heatmap"
LEAST_SCORE = 1e-6  # so that the logit of a score of 0 or 1 is finite


class FusedMaker(ScoreMaker):
    """Pseudo-masks of maps that slice labels of training patients scale, weight and cut.

    Args:
        recipe: names the networks; stage 1 is one of the maps, too.
        training: patients whose labelled slices say how the maps are fused.
    """

    def __init__(self, recipe: PseudoMaskRecipe, training: Sequence[Patient]):
        self.heatmaps = HeatmapMaker(recipe)
        super().__init__(recipe, self.heatmaps.model.device)
        self.networks = {f"network {n}": load_model(f) for n, f in enumerate(recipe.fuse, 1)}
        for network, _ in self.networks.values():
            network.config.temperature = 1.0  # where it sees a lesion counts, not how sure it is
        processors = [self.heatmaps.processor, *(p for _, p in self.networks.values())]
        self.see = next((processor.see for processor in processors if processor.see), None)
        self.polarity = polarity_of(recipe.data.modality)
        self.names = (HEATMAP, *self.networks, FREE_MAP)
        evidence = self.collect(training)
        self.fusion: Fusion = fit_fusion(self.names, evidence, recipe.equal_weights)
        self.facts = {"networks": list(recipe.fuse), **asdict(self.fusion)} | {
            key: self.heatmaps.facts[key] for key in ("heatmap", "segmenter", "stand_in")
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
        for start in range(0, len(scan), self.recipe.batch_size):
            batch = scan[start : start + self.recipe.batch_size]
            batch = [example for example in batch if example.label in labels]
            columns = self.map_batch(batch) if batch else []
            for example, maps in zip(batch, columns, strict=True):
                maps[FREE_MAP] = free[example.slice_index - scan[0].slice_index]
                yield example, maps

    def map_batch(self, batch: Sequence[LabelledSlice]) -> list[dict[str, Image]]:
        """Return the maps of slices that trained networks make."""
        scores, probabilities = self.heatmaps.score(batch)
        columns = [
            {HEATMAP: np.float32(p) * plane} for plane, p in zip(scores, probabilities, strict=True)
        ]
        images, views = [e.image for e in batch], [e.seen for e in batch]
        for name, network in self.networks.items():
            planes = predict_slices(*network, images, self.recipe.batch_size, True, views)
            for maps, plane in zip(columns, planes, strict=True):
                maps[name] = to_logits(plane)
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
