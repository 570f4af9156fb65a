"""Hold the options of a prediction, the same for the command, calibration and Python."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictionOptions:
    """What besides model and scan decides a prediction.

    Attributes:
        threshold: in [0, 1]; a voxel is anomalous when its score is above it.
        threshold_source: where the threshold comes from, in words.
        channel: which volume of 4-D scans, counted from 0.
        modality: the scans' sequence; tells the volume of the 4-D scans of MSD Task01.
        batch_size: slices per forward pass; 8 of the full-sized model take 600 MiB.
        flips: average the scores of each slice and its three mirror images: four times the work,
            and a score that does not depend on which side is which.
        noise_samples: draws of the model's noise for spread and quality score; 0 for none.
        smooth_mm: standard deviation of a 3-D Gaussian that blurs the scores; 0 leaves them.
        smallest_ml: connected parts of the mask with less volume are removed; 0 keeps all.
        precision: float type the model computes in: float32, bfloat16, or auto for what suits the
            model's device.

    Raises:
        ValueError: a threshold outside [0, 1], a batch size below 1, or a negative size.
    """

    threshold: float = 0.5
    threshold_source: str = "default; the model was not calibrated"
    channel: int | None = None
    modality: str | None = None
    batch_size: int = 4
    flips: bool = False
    noise_samples: int = 0
    smooth_mm: float = 0.0
    smallest_ml: float = 0.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold must lie in [0, 1], got {self.threshold}; 0.5 is the usual choice."
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        infinity = float("inf")
        if not (0 <= self.smooth_mm < infinity and 0 <= self.smallest_ml < infinity):
            raise ValueError(
                f"smoothing and the smallest part must be 0 or more, got {self.smooth_mm} mm and "
                f"{self.smallest_ml} mL."
            )


DEFAULT_OPTIONS = PredictionOptions()
