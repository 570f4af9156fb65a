"""Predict the anomaly map, the mask and the volume of one scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..precision import choose_for_model, computing_in
from ..reports.findings import Finding, measure_findings, part_sizes, remove_small_parts
from ..scans.background import BrainSlices, brain_of, index_box
from ..scans.slice_frame import box_corners
from ..scans.volumes import Volume
from .free_map import finish_scores, free_map, fusion_offsets, polarity_of
from .loading import describe_model
from .options import PredictionOptions
from .saved_options import complete_options
from .scoring import FloatImage, fill_maps
from .uncertainty import Doubt, draw_doubt

SMALLEST_BRAIN_ML = 0.1  # a mouse has 0.4
MOSAIC_PARTS = 6  # low slices of one brain show up to 5: brain stem, cerebellum, lobes


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """What a model says about one scan, on the scan's own voxels in the slice frame.

    Attributes:
        scores: (S, H, W) float32 in [0, 1], 0 outside the brain.
        mask: (S, H, W) uint8, 1 where the score is strictly above `threshold`.
        threshold: in [0, 1].
        spacing: mm between slices, rows and columns.
        model: what `describe_model` says of it.
        slice_affine: (4, 4), slice, row and column -> world coordinates in mm.
        spread: (S, H, W) float32 in [0, 0.5], standard deviation of the scores under the model's
            noise; None where no noise was drawn.
        quality_score: how well the masks of the noise draws agree, in [0, 1].
        millilitres_at_rates: volume of the masks of `PredictionOptions.thresholds_at_rates`, in mL.
        volume_ratios: volume of each noise draw's mask over that of the draws' mean.
    """

    scores: FloatImage
    mask: NDArray[np.uint8]
    threshold: float
    spacing: tuple[float, float, float]
    model: dict[str, str | None]
    slice_affine: NDArray[np.float64] | None = None
    spread: FloatImage | None = None
    quality_score: float | None = None
    millilitres_at_rates: Mapping[str, float] = field(default_factory=dict)
    volume_ratios: Sequence[float] = ()

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel in mm3."""
        return float(np.prod(self.spacing))

    @property
    def millilitres(self) -> float:
        """Volume of the mask in mL."""
        return int(np.count_nonzero(self.mask)) * self.voxel_mm3 / 1000

    @property
    def interval_ml(self) -> list[float] | None:
        """Least and greatest volume in mL, of the masks at other rates of false alarms and of the
        noise draws, relative to their mean; None where there are none of them."""
        others = [*self.millilitres_at_rates.values()]
        others += [ratio * self.millilitres for ratio in self.volume_ratios]
        return [f(self.millilitres, *others) for f in (min, max)] if others else None

    @property
    def slices_with_anomaly(self) -> list[int]:
        """Indices of the slices that the mask touches, ascending."""
        return np.flatnonzero(self.mask.any((1, 2))).tolist()

    @property
    def largest_slice(self) -> int | None:
        """Index of the slice with the largest mask, the lowest one of equals; None without."""
        areas = [np.count_nonzero(plane) for plane in self.mask]  # along axes, it copies the mask
        return int(np.argmax(areas)) if any(areas) else None

    @property
    def largest_component_ml(self) -> float:
        """Volume of the mask's largest connected part (26 neighbours) in mL, 0 without."""
        return int(part_sizes(self.mask).max(initial=0)) * self.voxel_mm3 / 1000

    @cached_property
    def findings(self) -> tuple[list[Finding], Finding]:
        """What `measure_findings` says of the mask: findings in their order, and all others."""
        return measure_findings(self.mask, self.scores, self.voxel_mm3, self.slice_affine)

    @property
    def bounding_box_mm(self) -> list[list[float]] | None:
        """Least and greatest x, y and z of the mask's voxels in the scan's world; None without."""
        box = index_box(self.mask)
        if box is None or self.slice_affine is None:
            return None
        low = np.array([side.start for side in box]) - 0.5  # a voxel's index is its centre
        high = np.array([side.stop for side in box]) - 0.5
        points = box_corners(self.slice_affine, low, high)
        return [points.min(0).round(3).tolist(), points.max(0).round(3).tolist()]


def predict_volume(
    model: Any,
    processor: Any,
    volume: Volume,
    options: PredictionOptions | None = None,
    model_facts: dict[str, str | None] | None = None,
) -> VolumePrediction:
    """Return scores and mask of a scan; nothing of the scan or the model is changed.

    Args:
        model: `RasaloreModel`, on any device, in any float type, in training mode or not.
        processor: the model's `RasaloreImageProcessor`.
        volume: from `read_volume`.
        options: threshold, mirror images, smoothing, free map, noise draws and the like; None:
            what is saved with the model.
        model_facts: what `describe_model` says; None: asked here, which reads all the weights.

    Raises:
        ValueError: no brain in the scan, a model of several sequences, noise draws of a model
            without noise, or a free map of an unknown sequence.
    """
    _refuse_several_sequences(model, processor)
    options = complete_options(PredictionOptions(), (), model) if options is None else options
    images = require_brain(volume)
    views = processor.see(images, volume.spacing) if processor.see else None
    offsets = None
    if options.free_map:
        offsets = free_map_offsets(images, volume, options.free_map, model)
    scores = np.zeros(volume.slices.shape, np.float32)
    with computing_in(choose_for_model(model, options.precision).name, model):
        fill_maps(list(scores), model, processor, images, options.batch_size, options.flips, views)
        if options.smooth_mm or offsets is not None:
            brain = images.foreground()
            finish_scores(scores, brain, volume.spacing, options.smooth_mm, offsets)
        doubt = None
        if options.noise_samples:
            doubt = draw_doubt(model, processor, volume, options, offsets=offsets)
    return predict_from_scores(scores, volume, options, model_facts or describe_model(model), doubt)


def predict_from_scores(
    scores: FloatImage,
    volume: Volume,
    options: PredictionOptions,
    model_facts: dict[str, str | None],
    doubt: Doubt | None = None,
) -> VolumePrediction:
    """Return the prediction of a scan whose scores are known.

    Args:
        scores: (S, H, W), as the options made them.
        volume: the scan.
        options: threshold, thresholds at rates and smallest part.
        model_facts: what `describe_model` says.
        doubt: of noise draws; None without any.
    """
    voxel_ml = volume.geometry.voxel_mm3 / 1000
    smallest = options.smallest_ml / voxel_ml
    return VolumePrediction(
        scores,
        mask_above(scores, options.threshold, smallest),
        options.threshold,
        volume.spacing,
        model_facts,
        volume.geometry.slice_affine,
        doubt.spread if doubt else None,
        doubt.quality_score if doubt else None,
        {
            rate: np.count_nonzero(mask_above(scores, threshold, smallest)) * voxel_ml
            for rate, threshold in options.thresholds_at_rates.items()
        },
        doubt.volume_ratios if doubt else (),
    )


def mask_above(scores: FloatImage, threshold: float, smallest: float) -> NDArray[np.uint8]:
    """Return where scores (S, H, W) are above a threshold, without parts of fewer voxels."""
    mask = (scores > threshold).view(np.uint8)
    if smallest:
        remove_small_parts(mask, smallest)
    return mask


def free_map_offsets(images: BrainSlices, volume: Volume, weight: float, model: Any) -> FloatImage:
    """Return what the free map adds to the logits of a scan's scores, (S, H, W).

    The scan's own sequence says how lesions look, else the one that the model learned from.

    Raises:
        ValueError: neither is known.
    """
    learned = getattr(getattr(model, "config", None), "modality", None)
    polarity = polarity_of(volume.sequence or learned)
    brain = images.foreground()
    return fusion_offsets(free_map(images, brain, volume.spacing, polarity), brain, weight)


def require_brain(volume: Volume) -> BrainSlices:
    """Return the slices of a scan with background 0, which a model can look at.

    Raises:
        ValueError: nothing to look at: blank, constant, a speck, or many slices side by side in
            one, so that an empty mask would say nothing.
    """
    images = BrainSlices(volume.slices)
    millilitres = images.brain_voxels * float(np.prod(volume.spacing)) / 1000
    if volume.replaced_voxels == volume.slices.size:
        problem = "all its voxels are NaN or infinite"
    elif not images.brain_voxels:
        problem = f"no voxel differs from its background, {images.scale.background:g}"
    elif millilitres < SMALLEST_BRAIN_ML:
        problem = f"only {images.brain_voxels} voxels ({millilitres:.2g} mL) are not background"
    elif len(images) == 1 and (parts := _count_large_parts(images[0])) >= MOSAIC_PARTS:
        problem = f"its one slice shows {parts} pieces of like size, as a mosaic of slices does"
    else:
        return images
    raise ValueError(
        f"{volume.path}: a scan must show one brain, but {problem}; give the scan as a volume, "
        "with its brain in it."
    )


def _count_large_parts(image: FloatImage) -> int:
    """Return how many parts of a slice have at least a fifth of the largest one's size."""
    sizes = part_sizes(brain_of(image)[None].view(np.uint8))
    return int(np.count_nonzero(sizes >= sizes.max() / 5))


def _refuse_several_sequences(model: Any, processor: Any) -> None:
    channels = getattr(getattr(model, "config", None), "num_channels", 1)
    if channels > 1 and processor.see is None:  # else they are one scan's slice and neighbours
        raise ValueError(
            f"this model takes {channels} sequences as channels, and one scan is one of them; give "
            f"slices ({channels}, H, W) to predict_slices."
        )


def predict_slices(
    model: Any,
    processor: Any,
    images: Sequence[FloatImage],
    batch_size: int = 4,
    flips: bool = False,
    views: Sequence[Any] | None = None,
) -> list[FloatImage]:
    """Return one score map (H, W) float32 in [0, 1] per slice, in the slice's own frame.

    Slices without brain are not sent through the model: their maps are 0, as is the background of
    all others.

    Args:
        model, processor: as for `predict_volume`.
        images: (H, W) each, or (C, H, W) for a model of several sequences, where one that is
            missing is 0; 0 in the background and above 0 in the brain.
        batch_size: slices per forward pass.
        flips: average the scores of each slice and its three mirror images: four times the work,
            and a score that does not depend on which side is which.
        views: what `processor.see(scan, spacing)` says of each slice, for a model that sees them as
            part of their scan; others need none.

    Raises:
        ValueError: a batch size below 1, or a slice without the view that the model needs.
    """
    maps = [np.zeros(image.shape[-2:], np.float32) for image in images]
    fill_maps(maps, model, processor, images, batch_size, flips, views)
    return maps
