"""One scan through the model, and what can be asked about the result afterwards."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from findings import Box, locate_findings
from thresholds import Preset, usual_preset

from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.prediction.loading import describe_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS, PredictionOptions
from modeling_rasalore.prediction.outputs import compose_summary, describe_input
from modeling_rasalore.prediction.scoring import MIRRORED
from modeling_rasalore.prediction.uncertainty import (
    draw_doubt,
    has_value_noise,
    predict_uncertainty,
)
from modeling_rasalore.prediction.volume import (
    FloatImage,
    VolumePrediction,
    mask_above,
    predict_volume,
    require_brain,
)
from modeling_rasalore.scans import reading
from modeling_rasalore.scans.background import index_box
from modeling_rasalore.scans.dicom import read_sources
from modeling_rasalore.scans.naming import scan_stem
from modeling_rasalore.scans.overlays import SliceView
from modeling_rasalore.scans.volumes import ScanFacts, Volume

MAX_VOXELS = 30_000_000  # a BraTS scan has 9 million; each takes 8 bytes in a session
WIDTH = 512  # of a slice's picture in pixels
NOISE_SAMPLES = 8

Report = dict[str, Any]
Tell = Callable[..., Any]  # as gr.Progress: (done, total) and a sentence


def say_nothing(*_: Any, **__: Any) -> None:
    """Take a progress that nobody looks at."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan in memory, whose file may be gone.

    Attributes:
        volume: as read.
        images: (S, H, W) float32, its slices with background 0.
        source: what a report says about the file.
        slice_headers: of a DICOM series, which a segmentation of it refers to.
    """

    volume: Volume
    images: FloatImage
    source: Report
    slice_headers: Sequence[Any] = ()


@dataclass(frozen=True, eq=False)
class Analysis:
    """What one browser session holds: a scan and its scores.

    Attributes:
        scan: as read.
        view: how its slices are drawn.
        brain: the box that holds all of it, in the slice frame.
        prediction: at the threshold that was asked for first.
        options: what made the scores; small parts are removed of every mask.
        seconds: that scoring took; 0 where the scores were stored.
        truth: (S, H, W) uint8, where the lesion is known to be; None where it is not.
        told: what an example is, in a sentence.
    """

    scan: Scan
    view: SliceView
    brain: Box
    prediction: VolumePrediction
    options: PredictionOptions = DEFAULT_OPTIONS
    seconds: float = 0.0
    truth: np.ndarray | None = None
    told: str = ""

    @classmethod
    def of(
        cls,
        scan: Scan,
        prediction: VolumePrediction,
        options: PredictionOptions,
        seconds: float = 0.0,
    ) -> "Analysis":
        """Return the analysis of a scan whose scores are known."""
        view = SliceView.of(scan.images, scan.volume.spacing[1:], WIDTH)
        brain = index_box((scan.images > 0).view(np.uint8))
        assert brain is not None  # a scan without one was refused
        return cls(scan, view, brain, prediction, options, seconds)

    @property
    def images(self) -> FloatImage:
        """(S, H, W) float32, the scan's slices with background 0."""
        return self.scan.images

    def at(self, threshold: float) -> VolumePrediction:
        """Return the prediction with its mask at another threshold in [0, 1]."""
        smallest = self.options.smallest_ml * 1000 / self.prediction.voxel_mm3
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

    def analyse(self, scan: Scan, threshold: float, tell: Tell) -> Analysis:
        """Return the scores of a scan; `tell` learns how far it is."""
        options = replace(self.options, threshold=threshold)
        tell(0, "waiting for the model")
        count = int(scan.images.any(axis=(1, 2)).sum())
        passes = len(MIRRORED) if options.flips else 1
        with self._lock, counting_slices(self.model, count, passes, tell):
            start = time.monotonic()
            prediction = predict_volume(
                self.model, self.processor, scan.volume, options, self.facts
            )
            seconds = round(time.monotonic() - start, 2)
        return Analysis.of(scan, prediction, options, seconds)

    def uncertainty(self, analysis: Analysis, index: int) -> FloatImage:
        """Return the spread of one slice's scores under the model's noise, (H, W) in [0, 0.5]."""
        with self._lock:
            images, see = analysis.images, self.processor.see
            view = see(images, analysis.scan.volume.spacing)[index] if see else None
            return predict_uncertainty(
                self.model, self.processor, images[index], samples=NOISE_SAMPLES, view=view
            )

    def whole_uncertainty(self, analysis: Analysis) -> FloatImage:
        """Return the spread of all scores under the model's noise, (S, H, W) in [0, 0.5]."""
        options = replace(self.options, noise_samples=NOISE_SAMPLES)
        with self._lock:
            return draw_doubt(self.model, self.processor, analysis.scan.volume, options).spread


@contextmanager
def counting_slices(model: Any, total: int, passes: int, tell: Tell) -> Iterator[None]:
    """Tell how many of the slices with brain the model has scored, and the seconds left.

    Args:
        total: slices with brain.
        passes: how often the model sees each.
        tell: learns it.
    """
    seen, start = 0, time.monotonic()

    def count(_: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
        nonlocal seen
        seen += len(given["pixel_values"])
        left = (time.monotonic() - start) * (total * passes / seen - 1)
        tell((seen // passes, total), f"scoring, {left:.0f} s left", unit="slices")

    hook = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def read_scan(path: Path, trained_on: str | None = None) -> Scan:
    """Return the scan at `path`, one file or a zipped DICOM series; nothing is unpacked to disk.

    Args:
        trained_on: what the model knows, taken of a zip with several series.

    Raises:
        ValueError: with one sentence that names no folder.
    """
    try:
        facts = reading.read_scan_facts(path, trained_on=trained_on)
        refuse_unfit(path, facts)
        volume = reading.read_scan(path, trained_on=trained_on)
        images = require_brain(volume).whole()
        names = list(dict.fromkeys(name for name, _ in volume.slice_files))
        headers = read_sources(path, names) if names else ()
    except ValueError as error:
        sentence = str(error).splitlines()[0].replace(f"{path.parent}/", "")
        if " --" in sentence or "(--" in sentence:
            sentence += " Options are of the command line: here, upload a file with one scan."
        raise ValueError(sentence) from error
    return Scan(volume, images, describe_input(volume, trained_on=trained_on), headers)


def refuse_unfit(path: Path, facts: ScanFacts) -> None:
    """Raise ValueError for a scan that this page cannot show, before a voxel is decoded."""
    if facts.channels > 1:
        raise ValueError(
            f"{path.name}: this page takes one 3-D scan, got a 4-D one with {facts.channels} "
            "volumes; save the volume to be segmented as a file of its own and upload that."
        )
    if (voxels := prod(facts.geometry.shape)) > MAX_VOXELS:
        raise ValueError(
            f"{path.name}: a scan may have {MAX_VOXELS / 1e6:.0f} million voxels here, got "
            f"{voxels / 1e6:.0f} million; resample it or use the command line."
        )
