"""One scan through the model, and what can be asked about the result afterwards."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from findings import Box, locate_findings
from gpu import move_to_accelerator, on_gpu
from scan_reading import Report, Scan
from thresholds import Preset, settle_threshold, usual_preset

from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.prediction.loading import describe_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS, PredictionOptions
from modeling_rasalore.prediction.outputs import compose_summary
from modeling_rasalore.prediction.scoring import MIRRORED
from modeling_rasalore.prediction.uncertainty import has_value_noise, predict_uncertainty
from modeling_rasalore.prediction.volume import (
    FloatImage,
    VolumePrediction,
    free_map_offsets,
    mask_above,
    predict_volume,
)
from modeling_rasalore.scans.background import BrainSlices, index_box
from modeling_rasalore.scans.naming import scan_stem
from modeling_rasalore.scans.overlays import SliceView
from modeling_rasalore.scans.volumes import Volume

WIDTH = 512  # of a slice's picture in pixels
NOISE_SAMPLES = 8
TELL_SECONDS = 0.5  # between two sentences on progress: for each, a browser draws its page anew

Tell = Callable[..., Any]  # as gr.Progress: (done, total) and a sentence


def say_nothing(*_: Any, **__: Any) -> None:
    """Take a progress that nobody looks at."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """What one browser session holds: a scan and its scores.

    Attributes:
        scan: as read.
        view: how its slices are drawn.
        brain: the box that holds all of it, in the slice frame.
        prediction: at the threshold that was asked for first.
        analyst: whose model made the scores, and says how small the parts of a mask may be.
        seconds: that scoring took; 0 where the scores were stored.
        truth: (S, H, W) uint8, where the lesion is known to be; None where it is not.
        told: what an example is, in a sentence.
    """

    scan: Scan
    view: SliceView
    brain: Box
    prediction: VolumePrediction
    analyst: "Analyst"
    seconds: float = 0.0
    truth: np.ndarray | None = None
    told: str = ""

    @classmethod
    def of(
        cls,
        scan: Scan,
        prediction: VolumePrediction,
        analyst: "Analyst",
        seconds: float = 0.0,
    ) -> "Analysis":
        """Return the analysis of a scan whose scores are known."""
        view = SliceView.of(scan.images, scan.volume.spacing[1:], WIDTH)
        brain = index_box((scan.images > 0).view(np.uint8))
        assert brain is not None  # a scan without one was refused
        return cls(scan, view, brain, prediction, analyst, seconds)

    @property
    def images(self) -> FloatImage:
        """(S, H, W) float32, the scan's slices with background 0."""
        return self.scan.images

    def at(self, threshold: float) -> VolumePrediction:
        """Return the prediction with its mask at another threshold in [0, 1]."""
        smallest = self.analyst.options.smallest_ml * 1000 / self.prediction.voxel_mm3
        mask = mask_above(self.prediction.scores, threshold, smallest)
        return replace(self.prediction, mask=mask, threshold=threshold)

    def report(self, threshold: float, source: str) -> Report:
        """Return everything about the result that is not an image, its findings included.

        Args:
            threshold: in [0, 1].
            source: where it comes from.
        """
        prediction = self.at(threshold)
        report = compose_summary(prediction, self.scan.source)
        report |= {"threshold_source": source}
        report |= {"findings": locate_findings(prediction, self.brain)}
        if self.truth is not None:
            report["true_millilitres"] = int(self.truth.sum()) * prediction.voxel_mm3 / 1000
            report["dice"] = dice(prediction.mask, self.truth) if self.truth.any() else None
        return report

    @property
    def stem(self) -> str:
        """The scan's file name without its ending."""
        return scan_stem(self.scan.volume.path)


class Analyst:
    """The model and its processor, used by one request at a time."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        options: PredictionOptions = DEFAULT_OPTIONS,
        presets: Sequence[Preset] = (),
    ):
        self.model, self.processor, self.options = model, processor, options
        self.presets = presets or [usual_preset(options)]
        self.facts = describe_model(model)
        self.draws_noise = has_value_noise(model)
        self.trained_on: str | None = getattr(model.config, "modality", None)
        self._lock = threading.Lock()
        self._predict = on_gpu(self.predict_where_computed)
        self._draw = on_gpu(self.draw_where_computed)

    def settle_threshold(self, preset: str | None, number: float | None) -> float:
        """Return the threshold that a preset's words or a number mean, as `settle_threshold`."""
        return settle_threshold(self.options, self.presets, preset, number)

    def analyse(self, scan: Scan, threshold: float, tell: Tell) -> Analysis:
        """Return the scores of a scan; `tell` learns how far it is."""
        options = replace(self.options, threshold=threshold)
        tell(0, "waiting for the model")
        with self._lock:
            start = time.monotonic()
            prediction = self._predict(scan.volume, options, count_slices(scan), tell)
            seconds = round(time.monotonic() - start, 2)
        return Analysis.of(scan, prediction, self, seconds)

    def whole_uncertainty(self, analysis: Analysis) -> FloatImage:
        """Return the spread of all scores under the model's noise, (S, H, W) in [0, 0.5].

        It is that of `rasalore predict --noise-samples 8`.
        """
        options = replace(self.options, noise_samples=NOISE_SAMPLES)
        scan = analysis.scan
        with self._lock:
            prediction = self._predict(scan.volume, options, count_slices(scan), say_nothing)
        assert prediction.spread is not None  # noise was drawn
        return prediction.spread

    def uncertainty(self, analysis: Analysis, index: int) -> FloatImage:
        """Return the spread of one slice's scores under the model's noise, (H, W) in [0, 0.5]."""
        with self._lock:
            return self._draw(analysis.scan.volume, index)

    def predict_where_computed(
        self, volume: Volume, options: PredictionOptions, count: int, tell: Tell
    ) -> VolumePrediction:
        """Return the prediction of a scan, computed in the process that calls this.

        Args:
            volume: of the scan.
            options: as for `predict_volume`.
            count: slices with brain.
            tell: learns how many of them are scored.
        """
        move_to_accelerator(self.model)
        passes = len(MIRRORED) if options.flips else 1
        with counting_slices(self.model, count, passes, tell):
            return predict_volume(self.model, self.processor, volume, options, self.facts)

    def draw_where_computed(self, volume: Volume, index: int) -> FloatImage:
        """Return the spread of one slice's scores, computed in the process that calls this."""
        move_to_accelerator(self.model)
        images, see, weight = BrainSlices(volume.slices), self.processor.see, self.options.free_map
        offset = None
        if weight:
            offset = free_map_offsets(images, volume, weight, self.model)[index]
        return predict_uncertainty(
            self.model,
            self.processor,
            images[index],
            samples=NOISE_SAMPLES,
            view=see(images, volume.spacing)[index] if see else None,
            offset=offset,
        )


def count_slices(scan: Scan) -> int:
    """Return how many slices of a scan show brain."""
    return int(scan.images.any(axis=(1, 2)).sum())


@contextmanager
def counting_slices(model: Any, total: int, passes: int, tell: Tell) -> Iterator[None]:
    """Tell how many of the slices with brain the model has scored, and the seconds left.

    Args:
        total: slices with brain.
        passes: how often the model sees each.
        tell: learns it.
    """
    seen, told, start = 0, -TELL_SECONDS, time.monotonic()

    def count(_: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
        nonlocal seen, told
        seen += len(given["pixel_values"])
        taken = time.monotonic() - start
        if taken < told + TELL_SECONDS:
            return
        told, left = taken, taken * (total * passes / seen - 1)
        done = seen // passes
        tell((done, total), f"scored {done} of {total} slices, {left:.0f} s left")

    hook = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
