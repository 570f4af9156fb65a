"""Read the brain of an uploaded scan as the command line does, in words that fit the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from modeling_rasalore.brains.extractors import EXTRACTORS, NO_STRIP
from modeling_rasalore.brains.reading import MUST_BE_ALONE, NotBrainAloneError, read_brain
from modeling_rasalore.prediction.outputs import describe_input
from modeling_rasalore.prediction.volume import FloatImage, require_brain
from modeling_rasalore.scans.dicom import read_sources
from modeling_rasalore.scans.reading import read_scan_facts
from modeling_rasalore.scans.volumes import ScanFacts, Volume, VolumeError

MAX_VOXELS = 30_000_000  # a BraTS scan has 9 million; each takes 8 bytes in a session
# What to do with a scan that shows more than a brain, as people and programs choose it.
REFUSE, TAKE = "refuse it", "take it as a brain"
EXTRACT = "extract with "  # and the name of a program
# Options of the command line in its sentences, and what they are here.
HERE = {
    f"by --strip {NO_STRIP}": "as you chose",
    "--strip ": "",
    "--brain-mask": "a brain mask",
    "give --modality if you know it": "check that it is one",
}

Report = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan in memory, whose file may be gone.

    Attributes:
        volume: as read, with nothing but the brain in it.
        images: (S, H, W) float32, its slices with background 0.
        source: what a report says about the file.
        slice_headers: of a DICOM series, which a segmentation of it refers to.
    """

    volume: Volume
    images: FloatImage
    source: Report
    slice_headers: Sequence[Any] = ()


def offer_ways(sequences: Sequence[str]) -> list[str]:
    """Return what can be done with a scan that shows more than a brain.

    Args:
        sequences: that the models read; programs made for others are not offered.
    """
    programs = [
        f"{EXTRACT}{name}"
        for name, extractor in EXTRACTORS.items()
        if extractor.is_installed
        and (not extractor.sequences or extractor.sequences & set(sequences))
    ]
    return [REFUSE, TAKE, *programs]


def strip_of(way: str, ways: Sequence[str], brain_mask: Path | None) -> str | None:
    """Return the `strip` of `read_brain` that a way means.

    Raises:
        ValueError: an unknown way, or one beside a brain mask.
    """
    if way not in ways:
        raise ValueError(f"strip must be one of {', '.join(ways)}, got {way}.")
    if way == REFUSE:
        return None
    if brain_mask is not None:
        raise ValueError(f'a brain mask and "{way}" exclude each other; give one of them.')
    return NO_STRIP if way == TAKE else way.removeprefix(EXTRACT)


def read_scan(
    path: Path,
    trained_on: str | None = None,
    brain_mask: Path | None = None,
    strip: str | None = None,
    ways: Sequence[str] = (REFUSE, TAKE),
) -> Scan:
    """Return the scan at `path`, one file or a zipped DICOM series; nothing is unpacked to disk.

    Args:
        trained_on: what the model knows, taken of a zip with several series.
        brain_mask, strip: as for `read_brain`.
        ways: of `offer_ways`, which the sentence about a head names.

    Raises:
        ValueError: with one sentence that names no folder.
    """
    try:
        refuse_unfit(path, read_scan_facts(path, trained_on=trained_on))
        volume = read_brain(path, trained_on=trained_on, brain_mask=brain_mask, strip=strip)
        images = require_brain(volume).whole()
        names = list(dict.fromkeys(name for name, _ in volume.slice_files))
        headers = read_sources(path, names) if names else ()
    except NotBrainAloneError as error:
        raise ValueError(
            f"{path.name}: {MUST_BE_ALONE}, but {error.problem}; {tell_ways(ways)}."
        ) from error
    except ValueError as error:
        raise ValueError(say_here(error, path, brain_mask)) from error
    warnings = tuple(type(text)(translate(text)) for text in volume.warnings)
    volume = replace(volume, warnings=warnings)
    return Scan(volume, images, describe_input(volume, trained_on=trained_on), headers)


def tell_ways(ways: Sequence[str]) -> str:
    """Return the ways out for a scan that shows more than a brain."""
    programs = [f'"{way}"' for way in ways if way.startswith(EXTRACT)]
    choose = f"choose {' or '.join(programs)}, " if programs else ""
    return (
        f'give a mask of the brain with the scan, {choose}or choose "{TAKE}" if the scan shows the '
        "brain alone"
    )


def say_here(error: ValueError, path: Path, brain_mask: Path | None = None) -> str:
    """Return an error's sentence without folders and without options of the command line."""
    sentence = str(error).splitlines()[0]
    files = [file for file in (brain_mask, path) if file]
    for file in files:
        sentence = sentence.replace(str(file), file.name)
    for file in files:
        sentence = sentence.replace(f"{file.parent}/", "")
    sentence = translate(sentence)
    if " --" in sentence or "(--" in sentence:
        sentence += " Options are of the command line: here, upload a file with one scan."
    return sentence


def translate(sentence: str) -> str:
    """Return a sentence with what options of the command line are called here."""
    for option, words in HERE.items():
        sentence = sentence.replace(option, words)
    return sentence


def pick_series(path: Path, sequences: Sequence[str]) -> str | None:
    """Return the first sequence of which a zip of several series has one; None for one series.

    Raises:
        ValueError: as `read_scan`, from the headers alone.
    """
    try:
        read_scan_facts(path)
    except VolumeError as error:
        for sequence in sequences:
            if _has_series(path, sequence):
                return sequence
        raise ValueError(say_here(error, path)) from error
    return None


def _has_series(path: Path, sequence: str) -> bool:
    try:
        read_scan_facts(path, trained_on=sequence)
    except VolumeError:
        return False
    return True


def refuse_unfit(path: Path, facts: ScanFacts) -> None:
    """Raise ValueError for a scan that this page cannot show, before a voxel is decoded."""
    if facts.channels > 1:
        raise ValueError(
            f"{path.name}: this page takes one 3-D scan, got a 4-D one with {facts.channels} "
            "volumes; save the volume to be segmented as a file of its own and upload that."
        )
    if (voxels := prod(facts.geometry.shape)) > MAX_VOXELS:
        raise ValueError(
            f"{path.name}: a scan may have {MAX_VOXELS / 1e6:.0f} million voxels here, got "
            f"{voxels / 1e6:.0f} million; resample it or use the command line."
        )
