"""`evaluate` metric: anomaly maps of whole scans against true masks, without voxels in Arrow.

A scan of 9 million voxels becomes a histogram of its scores and a few counts when it is added, so
memory does not grow with the scans. The formulas are those of the package `rasalore`, which copies
their files beside this one when it is published.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from .intervals import Estimate, bootstrap_interval, pooled_interval
from .lesion_metrics import lesion_scores
from .metrics import (
    BINS,
    dice,
    pooled_auroc,
    pooled_average_precision,
    score_histograms,
)

DESCRIPTION = """
Scores of anomaly maps of brain scans: Dice, lesion-wise Dice and HD95 (BraTS 2023 rules) averaged
over scans, average precision and AUROC over all voxels, each with a 95 % bootstrap interval over
scans.
"""
CITATION = """
@inproceedings{sharma2025rasalore,
  title={RASALoRE: Region-Aware Spatial Attention with Location-based Random Embeddings for
         Weakly Supervised Anomaly Detection in Brain MRI Scans},
  author={Sharma, Bheeshm and Jaganathan, Karthikeyan and Palaniappan, Balamurugan},
  booktitle={British Machine Vision Conference (BMVC)}, year={2025}}
"""
INPUTS = """
metric.add_scan(scores, truth, spacing, threshold) once per scan, then metric.compute().

Args of add_scan:
    scores: (S, H, W) in [0, 1], continuous.
    truth: (S, H, W), non-zero in the lesion; on the scores' own grid.
    spacing: mm between slices, rows and columns.
    threshold: of Dice and lesions; a voxel is predicted when its score is above it.
Args of compute: seed of the bootstrap.
"""
PER_SCAN = ("dice", "lesion_dice", "lesion_hd95", "missed_lesions", "invented_lesions")


class AnomalySegmentation(evaluate.Metric):
    """Scores of anomaly maps; see `metric.description`."""

    def _info(self) -> evaluate.MetricInfo:
        # A scan is one row: what its map got, and how its scores are spread in each class.
        counts = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": {name: datasets.Value("float64") for name in PER_SCAN},
                    "references": {"bins": counts, "healthy": counts, "lesion": counts},
                }
            ),
        )

    def add_scan(
        self,
        scores: Any,
        truth: Any,
        spacing: Any = (1.0, 1.0, 1.0),
        threshold: float = 0.5,
    ) -> None:
        """Count one scan; ValueError for scores beyond [0, 1] or arrays of different shapes."""
        scores, truth = np.asarray(scores, np.float32), np.asarray(truth) > 0
        if scores.ndim != 3 or not (scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1):
            raise ValueError(f"scores must be (S, H, W) in [0, 1], got shape {scores.shape}.")
        marked = scores > threshold
        lesions = lesion_scores(marked, truth, spacing)
        histogram = score_histograms(scores, truth).sum(0)  # (2, BINS)
        occupied = np.flatnonzero(histogram.any(axis=0))
        healthy, lesion = histogram[:, occupied].tolist()
        values = {
            # A healthy scan has no Dice: 1 or 0 would say how many of them there are.
            "dice": dice(marked, truth) if truth.any() else np.nan,
            "lesion_dice": lesions.dice,
            "lesion_hd95": lesions.hd95,
            "missed_lesions": lesions.missed,
            "invented_lesions": lesions.invented,
        }
        self.add(
            prediction=values,
            reference={"bins": occupied.tolist(), "healthy": healthy, "lesion": lesion},
        )

    def _compute(
        self,
        predictions: list[dict[str, float]],
        references: list[dict[str, list[int]]],
        seed: int = 0,
    ) -> dict[str, Any]:
        result: dict[str, Any] = {"scans": len(predictions)}
        for name in PER_SCAN:
            values = np.array([scan[name] for scan in predictions])
            values = values[~np.isnan(values)]
            mean = float(values.mean()) if len(values) else np.nan
            interval = bootstrap_interval([values[i : i + 1] for i in range(len(values))], seed)
            result |= Estimate(mean, *interval).columns(name)
        histograms = np.zeros((len(references), 2, BINS), np.int64)
        for histogram, scan in zip(histograms, references, strict=True):
            histogram[:, scan["bins"]] = [scan["healthy"], scan["lesion"]]
        histograms = histograms[..., histograms.any(axis=(0, 1))]  # empty bins only cost time
        for name, statistic in (
            ("average_precision", pooled_average_precision),
            ("auroc", pooled_auroc),
        ):
            value = float(statistic(histograms.sum(0)))
            interval = pooled_interval(histograms, statistic, seed)
            result |= Estimate(value, *interval).columns(name)
        return result
