"""Read the brain of a scan: tell it from the rest of a head, and recognise its sequence."""

from dataclasses import replace
from pathlib import Path

from ..scans.background import BrainSlices, skull_contrast
from ..scans.header_guard import VolumeError
from ..scans.naming import MODALITIES
from ..scans.reading import read_scan
from ..scans.volumes import Unfit, Volume
from .anatomy import JUDGED_ML, SURE_SKULL, Anatomy, measure_anatomy
from .extractors import EXTRACTORS, NO_STRIP, extract_brain
from .masks import find_brain_mask, keep_brain, read_brain_mask
from .sequences import CERTAIN, SURE, recognise_sequence

MUST_BE_ALONE = "a scan must show the brain alone"
WAYS_OUT = (
    "give the brain's mask with --brain-mask or beside the scan, as NAME_brainmask.nii.gz, have it "
    f"extracted with --strip {', '.join(EXTRACTORS)}, or say --strip {NO_STRIP} if it is the brain "
    "alone."
)


class NotBrainAloneError(VolumeError):
    """A scan that shows more than a brain, or none, where nothing tells the brain from the rest.

    Attributes:
        problem: what is wrong with it, in words that do not name the file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {MUST_BE_ALONE}, but {problem}; {WAYS_OUT}")
        self.problem = problem


def read_brain(
    path: Path,
    channel: int | None = None,
    modality: str | None = None,
    assume: bool = False,
    series: str | None = None,
    *,
    trained_on: str | None = None,
    brain_mask: Path | None = None,
    strip: str | None = None,
) -> Volume:
    """Return the scan at `path` in the slice frame, with nothing but its brain in it.

    Args:
        path, channel, modality, assume, series, trained_on: as for `read_scan`.
        brain_mask: file of the brain's mask, on the scan's grid; None: one beside the scan is
            used where the scan shows more than a brain.
        strip: program that extracts the brain, one of `EXTRACTORS`; "none": the scan shows the
            brain alone, whatever it looks like.

    Raises:
        NotBrainAloneError: the scan shows more than a brain, or none, and nothing tells the brain
            from the rest.
        VolumeError: as `read_scan`, a mask that does not fit, or a program that failed.
    """
    volume = read_scan(path, channel, modality, assume, series, trained_on)
    volume = take_brain(volume, brain_mask, strip)
    return tell_sequence(volume, trained_on)


def take_brain(volume: Volume, brain_mask: Path | None = None, strip: str | None = None) -> Volume:
    """Return a scan with nothing but its brain in it; arguments and errors as of `read_brain`."""
    if brain_mask is not None:
        brain = read_brain_mask(brain_mask, volume)
        return keep_brain(volume, brain, f"the mask {brain_mask.name}")
    if strip not in (None, NO_STRIP):
        return keep_brain(volume, *extract_brain(volume, str(strip)))
    anatomy = measure_anatomy(volume.slices, volume.spacing)
    problem = anatomy.problem if anatomy else None
    if problem is None:
        return _look_for_small_skull(volume, anatomy)
    if strip == NO_STRIP:
        sentence = f"taken for a brain alone by --strip {NO_STRIP}, although {problem}."
        return _warn(volume, Unfit(sentence))
    beside = find_brain_mask(volume.path)
    if beside is None:
        raise NotBrainAloneError(volume.path, problem)
    source = f"the mask {beside.name} beside the scan"
    return keep_brain(volume, read_brain_mask(beside, volume), source)


def _look_for_small_skull(volume: Volume, anatomy: Anatomy | None) -> Volume:
    """Return the scan, with a warning where it is too small to be judged and shows bone."""
    if anatomy is None or anatomy.millilitres >= JUDGED_ML:
        return volume
    if skull_contrast(BrainSlices(volume.slices), volume.spacing) >= SURE_SKULL:
        return volume
    sentence = (
        "a dark shell lies around the brain, as bone does; models expect scans with everything "
        "but the brain removed."
    )
    return _warn(volume, Unfit(sentence))


def tell_sequence(volume: Volume, trained_on: str | None = None) -> Volume:
    """Return a brain with the sequence of its image where nothing else tells it.

    A warning says where the image contradicts what else tells it or the model, where nothing but
    the image tells a model's sequence, and where what the model was trained on is assumed.

    Args:
        trained_on: the sequence that a model knows; None: several, or unknown.
    """
    image = recognise_sequence(volume, CERTAIN if volume.sequence else SURE)
    if volume.sequence is not None:
        if image is None or volume.sequence not in MODALITIES or volume.sequence in image.fits:
            return volume
        sentence = f"{image.words}, but {volume.sequence_source}; check which of them is right."
        return _warn(volume, Unfit(sentence))
    if image is None and trained_on is None:
        return volume
    if image is None:
        return _warn(
            volume,
            "neither name nor header nor image tells the scan's sequence; what the model was "
            f"trained on, {trained_on}, is assumed; give --modality if you know it.",
        )
    sequence = next(iter(image.fits)) if len(image.fits) == 1 else None
    volume = replace(volume, sequence=sequence, sequence_source=image.words)
    if trained_on is None:
        return volume
    if trained_on in image.fits:
        sentence = f"{image.words}, wrong for 1 in 10, and nothing else tells; give --modality."
        return _warn(volume, sentence) if sequence else volume
    sentence = (
        f"the model was trained on {trained_on}, but {image.words}; expect nothing of the result, "
        f"and give a {trained_on} scan."
    )
    return _warn(volume, Unfit(sentence))


def _warn(volume: Volume, sentence: str) -> Volume:
    return replace(volume, warnings=(*volume.warnings, sentence))
