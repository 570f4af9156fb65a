"""Read the brain of a scan: tell it from the rest of a head, and recognise its sequence."""

from dataclasses import replace
from pathlib import Path

from ..scans.header_guard import VolumeError
from ..scans.naming import MODALITIES
from ..scans.reading import read_scan
from ..scans.volumes import Volume
from .anatomy import measure_anatomy
from .extractors import EXTRACTORS, NO_STRIP, extract_brain
from .masks import find_brain_mask, keep_brain, read_brain_mask
from .sequences import look_at_sequence


def read_brain(
    path: Path,
    channel: int | None = None,
    modality: str | None = None,
    assume: bool = False,
    series: str | None = None,
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
        VolumeError: as `read_scan`, a mask that does not fit, a program that failed, or a scan that
            shows more than a brain, or none, where nothing tells the brain from the rest.
    """
    volume = read_scan(path, channel, modality, assume, series, trained_on)
    volume = take_brain(volume, brain_mask, strip)
    return tell_sequence(volume, trained_on)


def take_brain(volume: Volume, brain_mask: Path | None = None, strip: str | None = None) -> Volume:
    """Return a scan with nothing but its brain in it; arguments and errors as of `read_brain`."""
    if brain_mask is not None:
        brain = read_brain_mask(brain_mask, volume)
        return keep_brain(volume, brain, f"the brain mask {brain_mask.name}")
    if strip == NO_STRIP:
        return replace(volume, brain_source="--strip none: the scan is taken for a brain alone")
    if strip is not None:
        return keep_brain(volume, *extract_brain(volume, strip))
    anatomy = measure_anatomy(volume.slices, volume.spacing)
    if anatomy is None or anatomy.problem is None:
        return volume
    beside = find_brain_mask(volume.path)
    if beside is None:
        raise VolumeError(
            f"{volume.path}: a scan must show the brain alone, but {anatomy.problem}; give the "
            f"brain's mask with --brain-mask, or --strip {', '.join(EXTRACTORS)} to have it "
            f"extracted, or --strip {NO_STRIP} if it is the brain alone."
        )
    source = f"the brain mask {beside.name} beside the scan"
    return keep_brain(volume, read_brain_mask(beside, volume), source)


def tell_sequence(volume: Volume, trained_on: str | None = None) -> Volume:
    """Return a brain with the sequence of its image where nothing else tells it.

    A warning says where the image contradicts what else tells it, and where the sequence that a
    model was trained on is left to be assumed.

    Args:
        trained_on: the sequence that a model knows; None: unknown.
    """
    looks = look_at_sequence(volume)
    if volume.sequence is None and looks and len(looks.fits) == 1:
        (sequence,) = looks.fits
        return replace(volume, sequence=sequence, sequence_source=looks.words)
    expected, reason = volume.sequence, volume.sequence_source
    if expected is None:
        expected, reason = trained_on, f"the model was trained on {trained_on}"
    if looks and expected in MODALITIES and expected not in looks.fits:
        warning = (
            f"{looks.words}, but {reason}; if the image is right, expect nothing of the result."
        )
    elif volume.sequence is None and looks is None and trained_on:
        warning = (
            "its sequence cannot be told from name, header or image, and what the model was "
            f"trained on, {trained_on}, is assumed; give --modality if you know it."
        )
    else:
        return volume
    return replace(volume, warnings=(*volume.warnings, warning))
