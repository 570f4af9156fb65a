"""Makes systems of trained networks: stage 1's heatmap, and stage-2 networks of any sequences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from omegaconf import OmegaConf

from ..data.patient import ALL, See, stack_slices
from ..evaluation.tables import CONTAMINATED
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_ddpt import DdptModel
from ..models.modeling_rasalore import RasaloreModel
from ..prediction.free_map import finish_scores, free_map, fusion_offsets, polarity_of
from ..prediction.options import DEFAULT_OPTIONS, PredictionOptions
from ..prediction.saved_options import read_defaults
from ..prediction.volume import predict_slices
from ..pseudo_masks.rule import SCALING, PseudoMaskRule
from ..scans.naming import MODALITIES
from .systems import GivenSystem, Image, ScanSlices, SeenSlices

BATCH_SIZE = 16  # of slices: more take more time, for their attention leaves the cache


class Stage1Heatmap(GivenSystem):
    """DDPT alone: what its pseudo-masks are cut from at 0.5.

    Args:
        folder: of train/stage1.py.
        learner: of train/stage2.py; its run.json says how its pseudo-masks were cut. "" for the
            poster's rule, as where no heatmap made them.
    """

    weights = "trained"

    def __init__(self, folder: Path, learner: str = ""):
        self.model = DdptModel.from_pretrained(folder).eval()
        self.rule = PseudoMaskRule(SCALING[self.model.config.heatmap])
        if learner:
            made = summary_of(Path(learner))["pseudo_masks"] or {}
            if "scaling" in made:
                self.rule = PseudoMaskRule(made["scaling"], made["threshold"], made["filter_reach"])
        self.processor = RasaloreImageProcessor.from_pretrained(folder)
        self.see = self.processor.see
        self.seconds, self.peak_mib = training_cost(folder)

    def score(self, slices: SeenSlices) -> list[Image]:
        scores = [np.zeros(image.shape[-2:], np.float32) for image in slices]
        with_brain = [index for index, image in enumerate(slices) if image.any()]
        for start in range(0, len(with_brain), BATCH_SIZE):
            indices = with_brain[start : start + BATCH_SIZE]
            batch = [slices[index] for index in indices]
            seen = slices.views and [slices.views[index] for index in indices]
            heatmaps = self.model.heatmaps(**self.processor(batch, views=seen, return_tensors="pt"))
            maps = self.processor.post_process_maps(heatmaps, batch, views=seen)
            for index, heatmap, image in zip(indices, maps, batch, strict=True):
                scores[index] = self.rule.scores(heatmap, image)
        return scores


class HeatmapOfKind(Stage1Heatmap):
    """DDPT's heatmap of a given kind, scaled as this kind is, all else the same."""

    def __init__(self, folder: Path, learner: str, kind: str):
        super().__init__(folder, learner)
        self.model.config.heatmap = kind
        self.rule = replace(self.rule, scaling=SCALING[kind])


class Stage2Network(GivenSystem):
    """RASALoRE, or the same network trained on other masks.

    Its maps are smoothed and joined by the free map as its folder says, as `rasalore predict` does;
    not the maps of four sequences as channels.

    Args:
        folder: of train/stage2.py.
        flips: average over mirror images, as stage 1's heatmap is over its eight turns.
    """

    weights = "trained"

    def __init__(self, folder: Path, flips: bool = False):
        self.flips = flips
        self.weights = weights_of(folder)
        self.model = RasaloreModel.from_pretrained(folder).eval()
        self.processor = RasaloreImageProcessor.from_pretrained(folder)
        self.see = self.processor.see
        self.made = replace(DEFAULT_OPTIONS, **read_defaults(folder))
        self.whole_scans = bool(self.made.smooth_mm or self.made.free_map)
        self.seconds, self.peak_mib = training_cost(folder)

    def score(self, slices: ScanSlices) -> list[Image]:
        flips = self.flips or self.made.flips
        batch = BATCH_SIZE
        maps = predict_slices(self.model, self.processor, slices, batch, flips, slices.views)
        return finish_maps(maps, slices, self.made) if self.whole_scans else maps


def finish_maps(
    maps: Sequence[Image], slices: ScanSlices, options: PredictionOptions
) -> list[Image]:
    """Return score maps of one scan's slices, smoothed and joined by the free map."""
    scan, scores = slices.stack(), stack_slices(maps, slices.indices)
    brain, positions = scan > 0, [index - slices.indices[0] for index in slices.indices]
    if not brain.any():
        return list(maps)
    offsets = None
    if options.free_map:
        free = free_map(scan, brain, slices.spacing, polarity_of(slices.modality))
        offsets = fusion_offsets(free, brain, options.free_map)
    finish_scores(scores, brain, slices.spacing, options.smooth_mm, offsets)
    return [scores[position] for position in positions]


class SequenceNetworks(GivenSystem):
    """Mean of the maps of networks of one sequence each; one network is that network alone.

    Args:
        folders: sequence -> folder of train/stage2.py with that data.modality.
        flips: as for `Stage2Network`.
    """

    ALL_SEQUENCES: ClassVar[bool] = True
    weights = "trained"

    def __init__(self, folders: Mapping[str, Path], flips: bool = False):
        self.networks = {name: Stage2Network(folder, flips) for name, folder in folders.items()}
        for name, folder in folders.items():
            check_sequence(folder, name)
        self.sequence = " + ".join(folders)
        self.whole_scans = any(network.whole_scans for network in self.networks.values())
        costs = [(network.seconds, network.peak_mib) for network in self.networks.values()]
        self.seconds = sum(seconds or 0 for seconds, _ in costs)
        self.peak_mib = max(peak or 0 for _, peak in costs)

    def score(self, slices: ScanSlices) -> list[Image]:
        """A sequence that is missing has no say in the mean."""
        totals = [np.zeros(image.shape[-2:], np.float32) for image in slices]
        voters = np.zeros(len(slices), int)
        for name, network in self.networks.items():
            planes = [image[MODALITIES.index(name)] for image in slices]
            voters += [bool(plane.any()) for plane in planes]
            scan = see_slices(replace(slices, images=planes, modality=name), network.see)
            for total, scores in zip(totals, network.score(scan), strict=True):
                total += scores
        return [
            (total / max(count, 1)).clip(0, 1)
            for total, count in zip(totals, voters.tolist(), strict=True)  # a NumPy count: float64
        ]


def see_slices(slices: ScanSlices, see: See | None) -> ScanSlices:
    """Return slices of one sequence with what `see` says of each, where there is one."""
    if see is None or not any(image.any() for image in slices):
        return slices
    scan = see(slices.stack(), slices.spacing)
    first = slices.indices[0]
    return replace(slices, views=[scan[index - first] for index in slices.indices])


class AllSequencesNetwork(Stage2Network):
    """One network of all sequences as channels, or how it does without one of them."""

    ALL_SEQUENCES: ClassVar[bool] = True

    def __init__(self, folder: Path, flips: bool = False, without: str = ""):
        super().__init__(folder, flips)
        self.made, self.whole_scans = DEFAULT_OPTIONS, False  # no one sequence to look at
        check_sequence(folder, ALL)
        self.without = without
        self.sequence = f"{ALL} but {without}" if without else ALL

    def score(self, slices: ScanSlices) -> list[Image]:
        if self.without:
            images = [image.copy() for image in slices]
            for image in images:
                image[MODALITIES.index(self.without)] = 0
            slices = replace(slices, images=images)
        return super().score(slices)


def summary_of(folder: Path) -> dict[str, Any]:
    """Return what the run that wrote a folder says of itself."""
    summary: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return summary


def training_of(folder: Path) -> dict[str, Any]:
    """Return what a run and its control have in common: start, steps, schedule, scans, painting.

    Raises:
        ValueError: its recipe is not there.
    """
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} holds no recipe.yaml, which says how its network was trained.")
    recipe: Any = OmegaConf.to_container(OmegaConf.load(folder / "recipe.yaml"))
    shared = ("model", "initial_weights", "data", "optimizer", "augmentation", "loop")
    painting = {key: v for key, v in recipe["synthetic_lesions"].items() if key != "share"}
    training = {key: recipe[key] for key in shared} | {"synthetic_lesions": painting}
    return training | {"steps": summary_of(folder).get("steps")}


def learns_from_painted_alone(folder: Path) -> bool:
    """Return whether all lesions of a run's training are painted."""
    return bool(OmegaConf.load(folder / "recipe.yaml").synthetic_lesions.share == 1)


def check_sequence(folder: Path, expected: str) -> None:
    """Raise ValueError where a stage-2 network learned from another sequence."""
    modality = summary_of(folder).get("modality")
    if modality != expected:
        raise ValueError(
            f"modalities.{expected} must be a run with data.modality={expected}, got {folder} "
            f"with {modality}."
        )


def weights_of(folder: Path) -> str:
    """Return "stand-in" where one took MedSAM's place in the pseudo-masks, else "trained".

    `CONTAMINATED` where the segmenter of the pseudo-masks is.
    """
    made = summary_of(folder).get("pseudo_masks") or {}
    if made.get("contaminated"):
        return CONTAMINATED
    return "stand-in" if made.get("stand_in") else "trained"


def training_cost(folder: Path) -> tuple[float | None, float | None]:
    """Return seconds and peak MiB of the run that wrote a folder, as its run.json states them."""
    summary = summary_of(folder)
    return summary.get("seconds"), summary.get("peak_mib")
