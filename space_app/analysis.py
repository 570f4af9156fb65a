"""One scan through the model, and what can be asked about the result afterwards."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.outputs import compose_summary, describe_input
from modeling_rasalore.prediction.uncertainty import has_value_noise, predict_uncertainty
from modeling_rasalore.prediction.volume import FloatImage, VolumePrediction, predict_volume
from modeling_rasalore.scans import reading
from modeling_rasalore.scans.background import BrainSlices
from modeling_rasalore.scans.naming import scan_stem
from modeling_rasalore.scans.volume_writing import write_volume
from modeling_rasalore.scans.volumes import Volume

MAX_VOXELS = 30_000_000  # a BraTS scan has 9 million; each takes 8 bytes in a session
NOISE_SAMPLES = 8
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
        white: the intensity shown as white.
        prediction: at the threshold that was asked for first.
    """

    scan: Scan
    images: FloatImage
    white: float
    prediction: VolumePrediction

    def at(self, threshold: float) -> VolumePrediction:
        """Return the prediction with its mask at another threshold in [0, 1]."""
        mask = (self.prediction.scores > threshold).astype(np.uint8)
        return replace(self.prediction, mask=mask, threshold=threshold)

    def report(self, threshold: float) -> Report:
        """Return everything about the result that is not an image, each finding included."""
        prediction = self.at(threshold)
        return compose_summary(prediction, self.scan.source) | {
            "findings": measure_findings(prediction)
        }

    def write_mask(self, threshold: float, folder: str | Path) -> Path:
        """Return the path of the mask, uint8 NIfTI on the scan's own grid."""
        path = Path(folder) / f"{self.stem}_mask.nii.gz"
        return write_volume(path, self.at(threshold).mask, self.scan.volume, np.uint8)

    def write_picture(self, folder: str | Path) -> Path:
        """Return the path of the scan in 256 greys, NIfTI on its own grid, for the 3-D view."""
        greys = np.clip(self.images / self.white * 255, 0, 255).round()
        return write_volume(Path(folder) / "scan.nii.gz", greys, self.scan.volume, np.uint8)

    @property
    def stem(self) -> str:
        """The scan's file name without .nii, .nii.gz or .zip."""
        return scan_stem(self.scan.volume.path)


class Analyst:
    """The model and its processor, used by one request at a time."""

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor
        self.draws_noise = has_value_noise(model)
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
        images = BrainSlices(volume.slices)
        brain = images.whole()[images.foreground()]
        return Analysis(
            scan=scan,
            images=images.whole(),
            white=float(np.percentile(brain, 99.5)) if brain.size else 1.0,
            prediction=prediction,
        )

    def uncertainty(self, analysis: Analysis, index: int) -> FloatImage:
        """Return the spread of one slice's scores under the model's noise, (H, W) in [0, 0.5]."""
        with self._lock:
            return predict_uncertainty(
                self.model, self.processor, analysis.images[index], samples=NOISE_SAMPLES
            )


def read_scan(path: Path) -> Scan:
    """Return the scan at `path`, NIfTI or a zipped DICOM series; nothing is unpacked to disk.

    Raises:
        ValueError: with one sentence that names no folder.
    """
    try:
        volume = reading.read_scan(path)
    except ValueError as error:
        sentence = str(error).splitlines()[0].replace(f"{path.parent}/", "")
        raise ValueError(sentence) from error
    if volume.slices.size > MAX_VOXELS:
        raise ValueError(
            f"{path.name}: a scan may have {MAX_VOXELS / 1e6:.0f} million voxels here, got "
            f"{volume.slices.size / 1e6:.0f} million; resample it or use the command line."
        )
    return Scan(volume, describe_input(volume))


def measure_findings(prediction: VolumePrediction) -> list[Report]:
    """Return one row per connected part of the mask (26 neighbours), the largest first."""
    parts, count = ndimage.label(prediction.mask, NEIGHBOURS_26)
    if not count:
        return []
    numbers = np.arange(1, count + 1)
    voxels = np.bincount(parts.ravel())[1:]
    means = ndimage.mean(prediction.scores, parts, numbers)
    boxes = ndimage.find_objects(parts)
    rows = [
        {
            "millilitres": float(voxels[number]) * prediction.voxel_mm3 / 1000,
            "lowest_slice": boxes[number][0].start,
            "highest_slice": boxes[number][0].stop - 1,
            "mean_score": float(means[number]),
        }
        for number in range(count)
    ]
    return sorted(rows, key=lambda row: -row["millilitres"])
