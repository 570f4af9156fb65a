"""One scan through the model, and what can be asked about the result afterwards."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.outputs import compose_summary, describe_input
from modeling_rasalore.prediction.uncertainty import has_value_noise, predict_uncertainty
from modeling_rasalore.prediction.volume import (
    FloatImage,
    VolumePrediction,
    predict_volume,
    require_brain,
)
from modeling_rasalore.scans import reading
from modeling_rasalore.scans.background import BrainSlices
from modeling_rasalore.scans.naming import scan_stem
from modeling_rasalore.scans.overlays import SliceView
from modeling_rasalore.scans.volume_writing import write_volume
from modeling_rasalore.scans.volumes import ScanFacts, Volume

MAX_VOXELS = 30_000_000  # a BraTS scan has 9 million; each takes 8 bytes in a session
WIDTH = 512  # of a slice's picture in pixels
NOISE_SAMPLES = 8
MOST_FINDINGS = 1000  # listed in a report
NEIGHBOURS_26 = np.ones((3, 3, 3))

Report = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan in memory, whose file may be gone.

    Attributes:
        volume: as read.
        source: what a report says about the file.
    """

    volume: Volume
    source: Report


@dataclass(frozen=True, eq=False)
class Analysis:
    """What one browser session holds: a scan and its scores.

    Attributes:
        scan: as read.
        images: (S, H, W) float32, background 0.
        view: how its slices are drawn.
        prediction: at the threshold that was asked for first.
    """

    scan: Scan
    images: FloatImage
    view: SliceView
    prediction: VolumePrediction

    def at(self, threshold: float) -> VolumePrediction:
        """Return the prediction with its mask at another threshold in [0, 1]."""
        mask = (self.prediction.scores > threshold).astype(np.uint8)
        return replace(self.prediction, mask=mask, threshold=threshold)

    def report(self, threshold: float) -> Report:
        """Return everything about the result that is not an image, its findings included."""
        prediction = self.at(threshold)
        findings, smaller = measure_findings(prediction)
        return compose_summary(prediction, self.scan.source) | {
            "findings": findings,
            "smaller_findings": smaller,
        }

    def write_mask(self, threshold: float, folder: str | Path) -> Path:
        """Return the path of the mask, uint8 NIfTI on the scan's own grid."""
        path = Path(folder) / f"{self.stem}_mask.nii.gz"
        return write_volume(path, self.at(threshold).mask, self.scan.volume, np.uint8)

    def write_picture(self, folder: str | Path) -> Path:
        """Return the path of the scan in 256 greys, NIfTI on its own grid, for the 3-D view."""
        greys = np.clip(self.images / self.view.white * 255, 0, 255).round()
        return write_volume(Path(folder) / "scan.nii.gz", greys, self.scan.volume, np.uint8)

    @property
    def stem(self) -> str:
        """The scan's file name without its ending."""
        return scan_stem(self.scan.volume.path)


class Analyst:
    """The model and its processor, used by one request at a time."""

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor
        self.draws_noise = has_value_noise(model)
        self.trained_on: str | None = getattr(model.config, "modality", None)
        self._lock = threading.Lock()

    def analyse(
        self, scan: Scan, threshold: float, progress: Callable[[float, str], Any]
    ) -> Analysis:
        """Return the scores of a scan; `progress` is told a share in [0, 1] and a sentence."""
        volume, options = scan.volume, PredictionOptions(threshold=threshold)
        progress(0.1, "Waiting for the model")
        with self._lock:
            progress(0.2, f"Scoring {len(volume.slices)} slices")
            prediction = predict_volume(self.model, self.processor, volume, options)
        progress(0.9, "Drawing")
        images = BrainSlices(volume.slices).whole()
        view = SliceView.of(images, volume.spacing[1:], WIDTH)
        return Analysis(scan=scan, images=images, view=view, prediction=prediction)

    def uncertainty(self, analysis: Analysis, index: int) -> FloatImage:
        """Return the spread of one slice's scores under the model's noise, (H, W) in [0, 0.5]."""
        with self._lock:
            images, see = analysis.images, self.processor.see
            view = see(images, analysis.scan.volume.spacing)[index] if see else None
            return predict_uncertainty(
                self.model, self.processor, images[index], samples=NOISE_SAMPLES, view=view
            )


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
        require_brain(volume)
    except ValueError as error:
        sentence = str(error).splitlines()[0].replace(f"{path.parent}/", "")
        if " --" in sentence or "(--" in sentence:
            sentence += " Options are of the command line: here, upload a file with one scan."
        raise ValueError(sentence) from error
    return Scan(volume, describe_input(volume, trained_on=trained_on))


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


def measure_findings(prediction: VolumePrediction) -> tuple[list[Report], Report]:
    """Return one row per connected part of the mask (26 neighbours), the largest first.

    Noise may have a hundred thousand parts: `MOST_FINDINGS` have a row, and the second result says
    how many others there are, and their volume together.
    """
    parts, count = ndimage.label(prediction.mask, NEIGHBOURS_26)
    voxels = np.bincount(parts.ravel(), minlength=1)
    largest = np.argsort(-voxels[1:], kind="stable")[:MOST_FINDINGS] + 1
    rank = np.zeros(count + 1, parts.dtype)
    rank[largest] = np.arange(1, len(largest) + 1)
    parts = rank[parts]  # 1 is the largest part, 0 what has no row
    numbers, boxes = np.arange(1, len(largest) + 1), ndimage.find_objects(parts)
    means = ndimage.mean(prediction.scores, parts, numbers) if len(largest) else []
    voxel_ml = prediction.voxel_mm3 / 1000
    rows = [
        {
            "millilitres": float(voxels[part]) * voxel_ml,
            "lowest_slice": box[0].start,
            "highest_slice": box[0].stop - 1,
            "mean_score": float(mean),
        }
        for part, box, mean in zip(largest, boxes, means, strict=True)
    ]
    others = int(voxels[1:].sum() - voxels[largest].sum())
    return rows, {"count": count - len(rows), "millilitres": others * voxel_ml}
