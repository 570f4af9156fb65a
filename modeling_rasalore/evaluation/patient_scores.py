"""Count what one system's maps of one patient add to the scores of a test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from .lesion_metrics import lesion_scores
from .metrics import (
    auroc,
    average_precision,
    calibration_table,
    dice,
    dice_curve,
    score_histograms,
)

SMALLEST_PAPER_LESION = 200.0  # mm2 in a slice; the paper counts pixels of 1 mm2
VIEWS = ("paper", "volume")
HEALTHY_BRAIN = "healthy_brain_voxels"  # of healthy slices: marked, and all; counts, not values
Values = dict[str, np.ndarray]  # by name of a score: its values for one patient


@dataclass(frozen=True, eq=False)
class PatientScores:
    """One system's map of one patient, with the truth on the same native grid.

    Attributes:
        scores: (S, H, W) float32 in [0, 1], continuous.
        truth: (S, H, W) bool, never resized: an interpolated mask is not boolean and is refused.
        brain: (S, H, W) bool.
        spacing: mm between slices, rows and columns.

    Raises TypeError for other data types, ValueError for other shapes or scores.
    """

    scores: np.ndarray
    truth: np.ndarray
    brain: np.ndarray
    spacing: tuple[float, float, float]
    patient_id: str

    def __post_init__(self) -> None:
        for name, dtype in (("scores", np.float32), ("truth", np.bool_), ("brain", np.bool_)):
            array = getattr(self, name)
            if array.dtype != dtype:
                raise TypeError(
                    f"{name} must be {np.dtype(dtype)}, got {array.dtype} for {self.patient_id}; "
                    "compare label maps with 0, convert scores with astype."
                )
            if array.ndim != 3 or array.shape != self.truth.shape:
                raise ValueError(
                    f"{name} must have the truth's shape (S, H, W) = {self.truth.shape}, got "
                    f"{array.shape} for {self.patient_id}; bring it to the scan's own grid."
                )
        low, high = self.scores.min(initial=0), self.scores.max(initial=0)
        if not (low >= 0 and high <= 1):  # NaN ends here too
            raise ValueError(
                f"scores must lie in [0, 1], got {low} to {high} for {self.patient_id}; divide "
                "them by a constant chosen on training data and clip."
            )

    @cached_property
    def lesion_areas(self) -> np.ndarray:
        """Lesion area of each slice in mm2, (S,)."""
        areas = np.count_nonzero(self.truth, axis=(1, 2)) * (self.spacing[1] * self.spacing[2])
        return np.round(areas, 2)  # a float32 spacing makes 200 mm2 slightly more or less

    @cached_property
    def in_paper_view(self) -> np.ndarray:
        """Slices with more lesion than `SMALLEST_PAPER_LESION`, (S,) bool."""
        return self.lesion_areas > SMALLEST_PAPER_LESION

    @cached_property
    def healthy(self) -> np.ndarray:
        """Slices that show brain and no lesion, (S,) bool."""
        return np.any(self.brain, axis=(1, 2)) & ~np.any(self.truth, axis=(1, 2))


@dataclass(frozen=True, eq=False)
class Tally:
    """What one patient adds to the test set: counts, never voxels.

    Attributes:
        slices: how many, by view.
        areas: lesion area in mm2 of the slices of the paper view, (P,).
        curves: by view, Dice curves summed over slices or patients, (BINS,).
        histograms: all voxels and voxels inside the brain, (2, 2, BINS); of several seeds,
            (seeds, 2, 2, BINS).
        calibration: table of the voxels inside the brain; of several seeds, with an axis for them.
        rankings: per slice of the paper view.
        outcomes: by view and name of the threshold.
    """

    patient_id: str
    slices: dict[str, int]
    areas: np.ndarray
    curves: dict[str, np.ndarray]
    histograms: np.ndarray
    calibration: np.ndarray
    rankings: Values
    outcomes: dict[tuple[str, str], Values]


def tally_patient(patient: PatientScores, thresholds: Mapping[str, float]) -> Tally:
    """Count a patient, at thresholds by name."""
    shown = patient.in_paper_view
    histograms = score_histograms(patient.scores, patient.truth)
    inside = patient.scores[patient.brain], patient.truth[patient.brain]
    maps = [(patient.scores[s], patient.truth[s], patient.brain[s]) for s in np.flatnonzero(shown)]
    in_brain = [average_precision(scores[brain], truth[brain]) for scores, truth, brain in maps]
    return Tally(
        patient_id=patient.patient_id,
        slices={"paper": int(shown.sum()), "volume": len(shown)},
        areas=patient.lesion_areas[shown],
        curves={
            "paper": dice_curve(histograms[shown]).sum(0),
            "volume": dice_curve(histograms.sum(0)) * patient.truth.any(),
        },
        histograms=np.stack([histograms.sum(0), *score_histograms(*(x[None] for x in inside))]),
        calibration=calibration_table(*inside),
        rankings={
            "average_precision": np.array([average_precision(*pair) for *pair, _ in maps]),
            "average_precision_brain": np.array(in_brain),
            "auroc": np.array([auroc(*pair) for *pair, _ in maps]),
        },
        outcomes={
            (v, name): outcome_of(patient, v, t) for name, t in thresholds.items() for v in VIEWS
        },
    )


def outcome_of(patient: PatientScores, view: str, threshold: float) -> Values:
    """Values of one patient in one view at one threshold, by name of the score."""
    if view == "paper":
        return _outcome_of_slices(patient, threshold)
    return _outcome_of_volume(patient, patient.scores > threshold)


def _outcome_of_slices(patient: PatientScores, threshold: float) -> Values:
    """Dice of each slice of the paper view, (P,)."""
    shown = np.flatnonzero(patient.in_paper_view)
    dices = [dice(patient.scores[s] > threshold, patient.truth[s]) for s in shown]
    return {"dice": np.array(dices)}


def _outcome_of_volume(patient: PatientScores, prediction: np.ndarray) -> Values:
    """One value each, or one per healthy slice, (K,); `HEALTHY_BRAIN` alone are two counts."""
    lesions = lesion_scores(prediction, patient.truth, patient.spacing)
    false, brain = prediction[patient.healthy], patient.brain[patient.healthy]
    false_ml = np.count_nonzero(false, axis=(1, 2)) * np.prod(patient.spacing) / 1000
    ill = patient.truth.any()
    return {
        # A healthy scan has no Dice (1 if nothing is marked, else 0: with enough of them, marking
        # nothing anywhere would be the oracle); what is marked in it counts as false alarms.
        "dice": np.array([dice(prediction, patient.truth)] if ill else []),
        "lesion_dice": np.array([lesions.dice]),
        "lesion_hd95": np.array([lesions.hd95]),
        "lesions_per_patient": np.array([lesions.lesions]),
        "missed_lesions_per_patient": np.array([lesions.missed]),
        "invented_lesions_per_patient": np.array([lesions.invented]),
        "false_alarms_per_healthy_slice": np.array(
            [ndimage.label(image, np.ones((3, 3)))[1] for image in false]
        ),
        "ml_per_healthy_slice": false_ml,
        "ml_per_healthy_scan": np.array([] if ill else [false_ml.sum()]),
        HEALTHY_BRAIN: np.array([np.count_nonzero(part) for part in (false & brain, brain)]),
    }


def mean_over_seeds(tallies: Sequence[Tally]) -> Tally:
    """One tally of the tallies of one patient, one per seed: every value is their mean.

    Tables of counts have an axis for the seeds instead, (seeds, ...): a ranking of pooled voxels is
    a ranking within one seed.

    Raises:
        ValueError: the seeds do not show the same slices.
    """
    first = tallies[0]
    if any(t.slices != first.slices or not np.array_equal(t.areas, first.areas) for t in tallies):
        raise ValueError(
            f"all seeds must show the same slices of {first.patient_id}, with one truth; score "
            "them again from one data set."
        )
    return replace(
        first,
        curves=mean_values([tally.curves for tally in tallies]),
        histograms=np.stack([tally.histograms for tally in tallies]),
        calibration=np.stack([tally.calibration for tally in tallies]),
        rankings=mean_values([tally.rankings for tally in tallies]),
        outcomes={
            key: mean_values([tally.outcomes[key] for tally in tallies]) for key in first.outcomes
        },
    )


def mean_values(values: Sequence[Values]) -> Values:
    """The mean of one patient's values over seeds, by name of the score."""
    return {name: np.mean([seed[name] for seed in values], axis=0) for name in values[0]}
