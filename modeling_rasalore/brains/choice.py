"""Choose which model of the package reads the scans that are given."""

from collections.abc import Sequence
from pathlib import Path

from ..files import some
from ..packaged import packaged_model, packaged_sequences
from ..scans.finding import FoundScans, SeveralSequencesError, find_scans
from ..scans.header_guard import VolumeError
from ..scans.reading import open_scan
from .reading import read_brain

Reading = tuple[int | None, str | None, bool, str | None]  # channel, modality, assume, series


def choose_package_model(
    inputs: Sequence[Path],
    reading: Reading,
    brain_mask: Path | None = None,
    strip: str | None = None,
) -> tuple[Path, FoundScans, bool]:
    """Return a model of the package, the scans that it reads, and whether names told that.

    The sequence is the one that was asked for, else what names and headers of the scans say, else
    what their images look like. Of a folder of several sequences the one with the clearest lesions
    is taken.

    Args:
        inputs: files and folders, as for `find_scans`.
        reading: volume, sequence, whether it is assumed, and series, as for `read_brain`.
        brain_mask, strip: as for `read_brain`.

    Raises:
        ValueError: no model in the package, none for these scans, or files of several sequences.
    """
    known = packaged_sequences()
    modality = reading[1]
    if modality or not known:
        return packaged_model(modality), find_scans(inputs, *reading[1:]), False
    try:
        found = find_scans(inputs, *reading[1:])
    except SeveralSequencesError as error:
        best = next((s for s in known if s in error.sequences), error.sequences[0])
        return packaged_model(best), find_scans(inputs, *reading[1:], trained_on=best), True
    told = sorted({said for path in found.scans if (said := tell_sequence_of(path))})
    if len(fitting := [sequence for sequence in known if sequence in told]) > 1:
        raise ValueError(
            f"the package has one model for each of {', '.join(fitting)}, and the scans are of "
            "several; choose those to segment with --modality."
        )
    if told:
        return packaged_model(fitting[0] if fitting else told[0]), found, True
    looked = look_at_first(found.scans, reading, brain_mask, strip)
    return packaged_model(looked), found, False


def tell_sequence_of(path: Path) -> str | None:
    """Return the sequence that the name and the header of a scan say; None where they do not."""
    try:
        with open_scan(path) as scan:
            return scan.sequence
    except VolumeError:
        return None  # it fails when it is read, with its reason


def look_at_first(
    scans: Sequence[Path],
    reading: Reading,
    brain_mask: Path | None = None,
    strip: str | None = None,
) -> str | None:
    """Return the sequence that the first readable scan looks like; None where none can be read.

    Raises:
        ValueError: it cannot be told.
    """
    for path in scans:
        try:
            volume = read_brain(path, *reading, brain_mask=brain_mask, strip=strip)
        except VolumeError:
            continue
        if volume.sequence is None:
            raise ValueError(
                f"neither name nor header nor image of {some([path.name])} tells its sequence, "
                f"which decides the model; say it with --modality "
                f"{' or '.join(packaged_sequences())}."
            )
        return volume.sequence
    return None
