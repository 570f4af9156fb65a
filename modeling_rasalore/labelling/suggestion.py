"""Ask a model what it thinks of a scan: a tint for the page, and how sure it is of each slice."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..data.patient import Patient
from ..data.slices import read_images
from ..files import SCAN_ERRORS, first_line
from ..scans.background import brain_of
from .pictures import ScanPictures, choose_sequence, draw_tint

if TYPE_CHECKING:
    from ..prediction.volume import VolumePrediction

DOUBTFUL = (0.25, 0.75)  # a score in between says little


class Adviser:
    """A model and what it says of scans, one scan at a time.

    Attributes:
        modality: sequence that the model learned; None: not known, and the labelled one is taken.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.modality: str | None = getattr(model.config, "modality", None)
        self._lock = threading.Lock()

    def predict(self, patient: Patient, labelled: str | None) -> tuple["VolumePrediction", Any]:
        """Return the model's prediction for a patient, and the slices (S, H, W) it is about.

        Raises:
            ValueError: the patient lacks the model's sequence, or it cannot be read.
        """
        from ..prediction.volume import predict_volume  # here: it loads torch

        modality = self.modality or choose_sequence(patient, labelled)
        if modality not in patient.images:
            raise ValueError(
                f"the model knows {modality}, and {patient.patient_id} has only "
                f"{', '.join(patient.images)}; choose another one with --model."
            )
        with self._lock:
            volume, images = read_images(patient, modality)
            if patient.brain_mask is not None:
                volume = replace(volume, slices=images)
            return predict_volume(self.model, self.processor, volume), images

    def tint(self, patient: Patient, pictures: ScanPictures) -> bytes:
        """Return the scores of a patient as a picture to be laid over the others, PNG.

        Raises:
            ValueError: as `predict`, or the model's sequence lies on another grid.
        """
        prediction, _ = self.predict(patient, pictures.labelled)
        used = self.modality or pictures.labelled
        if used not in pictures.sequences:
            raise ValueError(f"the model looks at {used}, which is on another grid here.")
        return draw_tint(prediction.scores, pictures)


# --- Which scans to label next --------------------------------------------------------------------
@dataclass(frozen=True)
class Doubt:
    """How unsure a model is of a scan.

    Attributes:
        patient: whose scan.
        entropy: mean over slices with brain, in [0, 1] bit.
        reason: the numbers behind it, in words.
    """

    patient: Patient
    entropy: float
    reason: str


def binary_entropy(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return -p log2 p - (1 - p) log2(1 - p) of each score p in [0, 1]; 0 at both ends."""
    p = np.clip(np.asarray(scores, np.float64), 1e-12, 1 - 1e-12)
    entropy: NDArray[np.float64] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return entropy


def measure_doubt(
    patient: Patient, scores: Sequence[NDArray[Any]] | NDArray[Any], images: Iterable[NDArray[Any]]
) -> Doubt:
    """Return how unsure score maps (H, W) of a scan's slices are, slices without brain left out.

    A slice's score is the mean of the highest hundredth of its brain pixels.
    """
    from ..pseudo_masks.criteria import slice_score  # here: it loads torch

    brains = [(index, brain_of(image)) for index, image in enumerate(images)]
    by_slice = {k: slice_score(scores[k], brain) for k, brain in brains if brain.any()}
    if not by_slice:
        raise ValueError(f"{patient.patient_id}: no slice shows brain; there is nothing to label.")
    values = np.array(list(by_slice.values()))
    entropies = binary_entropy(values)
    doubtful = int(np.count_nonzero((values >= DOUBTFUL[0]) & (values <= DOUBTFUL[1])))
    index = list(by_slice)[int(entropies.argmax())]
    entropy = float(entropies.mean())
    reason = (
        f"mean entropy {entropy:.2f} bit; {doubtful} of {len(values)} slices score between "
        f"{DOUBTFUL[0]:g} and {DOUBTFUL[1]:g}; least sure of slice {index}, score "
        f"{by_slice[index]:.2f}"
    )
    return Doubt(patient, entropy, reason)


def rank_by_doubt(
    adviser: Adviser, patients: Sequence[Patient], labelled: str | None
) -> tuple[list[Doubt], list[tuple[Patient, str]]]:
    """Return how unsure a model is of each patient, most unsure first, and whom it cannot look at.

    Args:
        labelled: sequence that is labelled, which a model of unknown sequence looks at.
    """
    doubts, unread = [], []
    for patient in tqdm(patients, desc="scans", unit="scan"):
        try:
            prediction, images = adviser.predict(patient, labelled)
            doubts.append(measure_doubt(patient, prediction.scores, images))
        except SCAN_ERRORS as error:
            unread.append((patient, first_line(error)))
    doubts.sort(key=lambda doubt: (-doubt.entropy, doubt.patient.patient_id))
    return doubts, unread
