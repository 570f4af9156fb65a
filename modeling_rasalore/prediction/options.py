"""Declare the options of a prediction once, for Python, the engine and the command line."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from math import inf
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import BadParameter, Option

# What --format takes -> how the masks' names end.
FORMATS = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "dicom-seg": ".dcm"}
# What a model's folder may say for all its masks, unless the user says otherwise.
SAVED_NAMES = ("flips", "smooth_mm", "free_map", "smallest_ml")
Command = Callable[..., None]


@dataclass(frozen=True)
class PredictionOptions:
    """What besides model and scan decides a prediction.

    Attributes:
        threshold: in [0, 1]; a voxel is anomalous when its score is above it.
        threshold_source: where the threshold comes from, in words.
        channel: which volume of 4-D scans, counted from 0.
        modality: the scans' sequence; tells the volume of the 4-D scans of MSD Task01. A scan that
            says otherwise of itself is refused.
        assume_modality: the scans' sequence, whatever they say of themselves.
        series: which DICOM series of several, by its number or words of its description.
        brain_mask: file of the brain's mask, on the scan's grid; None: one beside the scan is used
            where the scan shows more than a brain.
        strip: program that extracts the brain of heads, one of `brains.extractors`; "none": the
            scans show brains alone.
        batch_size: slices per forward pass; 8 of the full-sized model take 600 MiB.
        flips: average the scores of each slice and its three mirror images: four times the work,
            and a score that does not depend on which side is which.
        noise_samples: draws of the model's noise for spread and quality score; 0 for none.
        smooth_mm: standard deviation of a 3-D Gaussian that blurs the scores; 0 leaves them.
        free_map: weight of the map that learns nothing in the logits of the scores, which it joins
            after the blur; 0 leaves them.
        smallest_ml: connected parts of the mask with less volume are removed; 0 keeps all.
        precision: float type the model computes in: float32, bfloat16, or auto for the one in
            which its device is faster.
        precision_reason: why that one, in words.
        format: of masks and maps, one of FORMATS; maps beside dicom-seg are NIfTI.
        thresholds_at_rates: share of healthy voxels, such as "0.05" -> the model's threshold for
            it; the volumes of their masks bound the reported one.

    Raises:
        ValueError: a threshold outside [0, 1], a batch size below 1, a negative size or weight, two
            sequences, or an unknown format.
    """

    threshold: float = 0.5
    threshold_source: str = "default; the model was not calibrated"
    channel: Annotated[
        int | None, Option("--volume", min=0, help="volume of 4-D scans, counted from 0")
    ] = None
    modality: Annotated[
        str | None,
        Option(
            help="t1, t1ce, t2 or flair: what the scans are, and which are taken of folders and MSD"
        ),
    ] = None
    assume_modality: Annotated[
        str | None,
        Option(help="as --modality, for scans whose names or headers say otherwise; is recorded"),
    ] = None
    series: Annotated[
        str | None,
        Option(help="DICOM series of several in one folder: its number, or words it describes"),
    ] = None
    brain_mask: Annotated[
        Path | None, Option(help="mask of the brain on the grid of the one scan that is given")
    ] = None
    strip: Annotated[
        str | None,
        Option(
            help="program that extracts brains, if installed: deepbet, hd-bet, synthstrip, "
            "brainchop; none: the scans show brains alone"
        ),
    ] = None
    batch_size: Annotated[int, Option(min=1, help="slices at once")] = 4
    flips: Annotated[
        bool, Option("--flips/--no-flips", help="average over mirror images, or do not")
    ] = False
    noise_samples: Annotated[
        int, Option(min=0, help="draws of noise for a spread map and a quality score")
    ] = 0
    smooth_mm: Annotated[
        float, Option(min=0, help="standard deviation of a 3-D blur of the scores, mm")
    ] = 0.0
    free_map: Annotated[
        float,
        Option(min=0, help="weight of smoothed, mirrored intensity, added to the scores' logits"),
    ] = 0.0
    smallest_ml: Annotated[float, Option(min=0, help="remove smaller parts of masks")] = 0.0
    precision: str = "float32"
    precision_reason: str = "the default"
    format: Annotated[str, Option(help=f"of masks and maps: {', '.join(FORMATS)} (masks only)")] = (
        "nifti"
    )
    thresholds_at_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold must lie in [0, 1], got {self.threshold}; 0.5 is the usual choice."
            )
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.assume_modality and self.modality not in (None, self.assume_modality):
            raise ValueError(
                f"--modality and --assume-modality must agree, got {self.modality} and "
                f"{self.assume_modality}; give one of them."
            )
        if self.brain_mask and self.strip:
            raise ValueError(
                f"--brain-mask and --strip exclude each other, got {self.brain_mask.name} and "
                f"{self.strip}; give one of them."
            )
        if not (0 <= self.smooth_mm < inf and 0 <= self.smallest_ml < inf):
            raise ValueError(
                f"smoothing and the smallest part must be 0 or more, got {self.smooth_mm} mm and "
                f"{self.smallest_ml} mL."
            )
        if not 0 <= self.free_map < inf:
            raise ValueError(
                f"the free map's weight must be 0 or more, got {self.free_map}; 1 lets it count."
            )

    @property
    def reading(self) -> tuple[int | None, str | None, bool, str | None]:
        """Which volume and sequence to read, whether the sequence is assumed, and which series."""
        assumed = self.assume_modality is not None
        return self.channel, self.assume_modality or self.modality, assumed, self.series


DEFAULT_OPTIONS = PredictionOptions()


def takes_options(*names: str) -> Callable[[Command], Command]:
    """Give a command line's command the named fields as options, passed whole as `options`.

    A command that takes `given` gets the names of those the user chose, besides. What a model's
    folder may decide has no default on the command line.
    """
    added = [_parameter(name) for name in names]

    def decorate(command: Command) -> Command:
        parameters = dict(signature(command).parameters)
        own = [p for name, p in parameters.items() if name not in ("options", "given")]

        @wraps(command)
        def run(**words: Any) -> None:
            chosen = {name: words.pop(name) for name in names}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            try:
                words["options"] = PredictionOptions(**chosen)
            except ValueError as error:
                raise BadParameter(str(error)) from error
            if "given" in parameters:
                words["given"] = frozenset(chosen)
            command(**words)

        run.__signature__ = Signature([*own, *added])  # type: ignore[attr-defined]
        return run

    return decorate


def _parameter(name: str) -> Parameter:
    """Return a field as the parameter of a command."""
    kind = get_type_hints(PredictionOptions, include_extras=True)[name]
    default = getattr(DEFAULT_OPTIONS, name)
    if name in SAVED_NAMES:  # None: the model's own
        option = copy(kind.__metadata__[0])
        option.help += "; the model's own if not given"
        kind, default = Annotated[kind.__origin__ | None, option], None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
