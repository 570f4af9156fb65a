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
        ValueError: no model in the package, none for these scans, files of several sequences, or
            of a known and of an unknown one.
    """
    known = packaged_sequences()
    modality = reading[1]
    if modality or not known:
        return packaged_model(modality), find_scans(inputs, *reading[1:]), False
    told, found = find_told(inputs, reading)
    if told:
        return packaged_model(told), found, True
    looked = look_at_first(found.scans, reading, brain_mask, strip)
    return packaged_model(looked), found, False


def find_told(inputs: Sequence[Path], reading: Reading) -> tuple[str | None, FoundScans]:
    """Return the sequence that names and headers tell, None where none does, and its scans.

    Raises:
        ValueError: as `choose_package_model`.
    """
    known = packaged_sequences()
    try:
        found = find_scans(inputs, *reading[1:])
    except SeveralSequencesError as error:
        best = next((s for s in known if s in error.sequences), error.sequences[0])
        found = find_scans(inputs, *reading[1:], trained_on=best)
        tell_sequences(found.scans)
        return best, found
    told = tell_sequences(found.scans)
    if len(fitting := [sequence for sequence in known if sequence in told]) > 1:
        raise ValueError(
            f"the package has one model for each of {', '.join(fitting)}, and the scans are of "
            "several; choose those to segment with --modality."
        )
    return next(iter([*fitting, *told]), None), found


def tell_sequences(scans: Sequence[Path]) -> list[str]:
    """Return the sequences that names and headers of scans say, sorted.

    Raises:
        ValueError: they say those of some scans alone.
    """
    told, untold = set(), []
    for path in scans:
        try:
            with open_scan(path) as scan:
                said = scan.sequence
        except VolumeError:
            continue  # it fails when it is read, with its reason
        if said:
            told.add(said)
        else:
            untold.append(path.name)
    if told and untold:
        raise ValueError(
            f"neither name nor header of {some(untold)} tells its sequence, as those of other "
            "scans do; say it with --modality, or give scans of unknown sequence by themselves."
        )
    return sorted(told)


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
