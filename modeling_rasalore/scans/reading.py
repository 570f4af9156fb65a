"""Read a scan through one door: NIfTI, a DICOM series, or a file of another program."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..files import sha256_of, sha256_of_files
from ..formats.endings import files_of
from .background import FEWEST_VOXELS, BrainSlices
from .bids import told_by_name
from .dicom import Description, open_series
from .naming import (
    Statement,
    Times,
    channels_of,
    file_stem,
    say_sequence,
    say_times,
    sequence_of,
    times_in,
)
from .series_files import OTHER_SERIES, dicom_files, is_dicom
from .volume_writing import is_marked
from .volumes import (
    ScanFacts,
    ScanFile,
    Volume,
    VolumeError,
    open_file,
    scan_from_voxels,
)

SIDECAR_BYTES = 2**20  # of a converter's notes beside a scan
NOTED_TIMES = ("EchoTime", "RepetitionTime", "InversionTime")  # there, in seconds
MOST_LABELS = 10  # of a label map, with its background
OWN_SEQUENCE = "what the model was trained on"
COVERED_BRAIN = 0.8  # share of what a scan shows that no lesion covers


class WrongSequenceError(VolumeError):
    """A scan that says of itself that it is of another sequence than was asked for.

    Attributes:
        reason: what it says, in words that do not name the file.
    """

    def __init__(self, path: Path, reason: str, modality: str) -> None:
        super().__init__(
            f"{path}: {reason}; give a {modality} scan, or --assume-modality {modality} if you "
            "know that it is one."
        )
        self.reason = reason


def read_scan(
    path: Path,
    channel: int | None = None,
    modality: str | None = None,
    assume: bool = False,
    series: str | None = None,
    trained_on: str | None = None,
) -> Volume:
    """Return the scan at `path` in the slice frame.

    Args:
        path: a .nii or .nii.gz file, one of another format that `formats.endings` lists, or a
            folder, zip or file with a DICOM series.
        channel: which volume of a 4-D file, counted from 0.
        modality: the scan's sequence, where its name and header do not tell it; chooses the volume
            of MSD Task01, or the DICOM series whose description fits.
        assume: take the scan for `modality` whatever it says of itself; a warning tells.
        series: which DICOM series of several, by its number or text of its description.
        trained_on: what a model knows: taken of a scan that holds several sequences where nothing
            else chooses; a warning tells.

    Raises:
        WrongSequenceError: the scan says of itself that it is of another sequence.
        VolumeError: as `read_volume` and `open_series`, or the voxels of a mask.
    """
    with open_scan(path, modality, assume, series, trained_on=trained_on) as scan:
        chosen = pick_channel(scan, channel, modality)
        if chosen is None and (own := pick_channel(scan, None, trained_on)) is not None:
            chosen, sentence = own, f"volume {own} was taken, {trained_on}: {OWN_SEQUENCE}."
            scan = replace(
                scan,
                sequence=trained_on,
                sequence_source=f"volume {own} of the data set's layout is {trained_on}",
                warnings=(*scan.warnings, sentence),
            )
        volume = scan.read(chosen)
    low, high = volume.slices.min(), volume.slices.max()
    shown = np.count_nonzero(volume.slices) >= FEWEST_VOXELS  # fewer are refused for that
    if low < high and shown and few_whole_numbers(volume.slices):
        *values, last = (f"{value:g}" for value in np.unique(volume.slices))
        told = f"{', '.join(values)} or {last}"
        raise VolumeError(f"{path}: all voxels are {told}, as in a mask; give the scan instead.")
    return volume


def read_scan_facts(
    path: Path, modality: str | None = None, trained_on: str | None = None
) -> ScanFacts:
    """As `read_scan`, of what headers say; no voxel is decoded."""
    with open_scan(path, modality, trained_on=trained_on) as scan:
        return scan.facts


@contextmanager
def open_scan(
    path: Path,
    modality: str | None = None,
    assume: bool = False,
    series: str | None = None,
    named: str | None = None,
    trained_on: str | None = None,
) -> Iterator[ScanFile]:
    """Give the scan at `path`, opened once; its sequence is `modality` where that is given.

    Args:
        modality, assume, series, trained_on: as for `read_scan`.
        named: the sequence that names tell; None: what the scan's own name tells.
    """
    _require_target(path)
    said = say_sequence("its name", named or told_by_name(path))
    if is_dicom(path):
        wanted = modality or (None if series else trained_on)

        def accept(described: Description) -> None:
            _find_doubt(path, _say_described(described, said), modality, assume)

        with open_series(path, wanted, sequence_of, series, accept) as slices:
            told = list(slices.warnings)
            if wanted != modality and any(
                x.reason.startswith(OTHER_SERIES) for x in slices.left_out
            ):
                told.insert(0, f"the {wanted} series was taken: {OWN_SEQUENCE}.")
            scan = scan_from_voxels(slices, slices.affine, path, told)
            scan = replace(
                scan,
                slice_files=slices.slice_files,
                left_out=slices.left_out,
                series_uid=slices.uid,
            )
            yield _settle(scan, _say_described(slices.described, said), modality, assume)
    else:
        with open_file(path) as scan:
            description = scan.header["descrip"].item().decode("latin-1")
            said += _say_text("its header", description) + _read_sidecar(path)
            yield _settle(scan, said, modality, assume)


def _say_described(described: Description, named: list[Statement]) -> list[Statement]:
    """Return what a DICOM series says of its sequence; `named` counts where its texts do not."""
    kind = described.kind
    foreign = [] if kind == "MR" else [Statement(f"it is {kind}, not MR", frozenset({kind}))]
    texts = say_sequence("its description", described.sequence)  # a folder may hold several
    image = say_sequence("its image type", described.image)
    return image + (texts or named) + say_times(described.times) + foreign


def _find_doubt(
    path: Path, said: list[Statement], modality: str | None, assume: bool
) -> str | None:
    """Return what a scan says of itself that is not `modality`; refuse it unless that is assumed.

    Raises:
        WrongSequenceError: a contradiction.
    """
    if modality == "t1ce" and said and said[0].fits == {"t1ce"}:  # headers often leave it out
        said = [statement for statement in said if statement.fits != {"t1"}]
    doubt = next((s.words for s in said if modality and modality not in s.fits), None)
    if doubt and not assume:
        raise WrongSequenceError(path, f"{doubt}, not {modality}", str(modality))
    return doubt


def _settle(scan: ScanFile, said: list[Statement], modality: str | None, assume: bool) -> ScanFile:
    """Return the scan with the sequence that it is taken for; refuse one that says otherwise."""
    doubt = _find_doubt(scan.path, said, modality, assume)
    sure = next(filter(_is_sure, said), None)
    told = next(iter(sure.fits)) if sure else None
    source = f"--modality says {modality}" if modality else ""
    if sure and modality in (None, told):
        source = sure.words
    if doubt:
        sentence = f"taken as {modality} because of --assume-modality, although {doubt}."
        scan = replace(scan, warnings=(*scan.warnings, sentence))
    return replace(scan, sequence=modality or told, sequence_source=source)


def _is_sure(statement: Statement) -> bool:
    return len(statement.fits) == 1 and "time of" not in statement.words


def _say_text(source: str, text: str) -> list[Statement]:
    return say_sequence(source, sequence_of(text)) + say_times(times_in(text))


def _read_sidecar(path: Path) -> list[Statement]:
    """Return what the notes say that a converter left beside a scan (BIDS: times in seconds)."""
    notes = path.with_name(f"{file_stem(path)}.json")
    try:
        if not 0 < notes.stat().st_size < SIDECAR_BYTES:
            return []
        content = json.loads(notes.read_text(encoding="utf-8"))
        words = [str(content.get(name, "")) for name in ("SeriesDescription", "ProtocolName")]
        times = Times(*(1000 * float(content.get(name) or 0) for name in NOTED_TIMES))
    except (OSError, ValueError, TypeError, AttributeError):  # no notes of a converter
        return []
    sequence = next(filter(None, map(sequence_of, words)), None)
    return say_sequence("the .json file beside it", sequence) + say_times(times)


def _require_target(path: Path) -> None:
    """Refuse a link whose file was never fetched."""
    if path.is_symlink() and not path.exists():
        raise VolumeError(
            f"{path}: this link leads to a file that is not there; fetch it first (git-annex and "
            "DataLad: get)."
        )


def hash_scan(path: Path) -> str:
    """Return the SHA-256 of a scan's file, or of all files that it consists of.

    Of a DICOM series these are its folder's, without results of this software.
    """
    if path.is_dir():
        return sha256_of_files([file for file in dicom_files(path) if not is_marked(file)])
    files = files_of(path)
    return sha256_of(path) if len(files) == 1 else sha256_of_files(files)


def few_whole_numbers(slices: np.ndarray) -> bool:
    """Whether slices (S, H, W) hold few whole numbers from 0 to 255, or two values, as masks do."""
    values: set[float] = set()
    for plane in slices:
        values |= set(np.unique(plane).tolist())
        if len(values) > MOST_LABELS:
            return False
    return len(values) == 2 or all(0 <= value <= 255 and value == int(value) for value in values)


def covers_brain(mask: np.ndarray, brain: np.ndarray) -> bool:
    """Whether a mask covers about all that a scan shows, both (S, H, W) bool."""
    return bool(brain.any()) and np.count_nonzero(mask & brain) > COVERED_BRAIN * brain.sum()


def read_role(path: Path) -> str | None:
    """Return what the voxels of a file show, "scan" or "mask"; None where they cannot be read."""
    try:
        with open_scan(path) as scan:
            return role_by_content(scan.read(0 if scan.facts.channels > 1 else None))
    except VolumeError:
        return None


def role_by_content(volume: Volume, scan: Volume | None = None) -> str:
    """Return what voxels show: "scan", "mask", or "brain_mask" for one that covers the `scan`."""
    if not few_whole_numbers(volume.slices):
        return "scan"
    if scan is None or scan.slices.shape != volume.slices.shape:
        return "mask"
    brain = BrainSlices(scan.slices).foreground()
    return "brain_mask" if covers_brain(volume.slices > 0, brain) else "mask"


def pick_channel(scan: ScanFile, channel: int | None, modality: str | None) -> int | None:
    """Return which volume of a file to read, None for a 3-D file.

    `channel` decides where it is given. The 4-D scans of MSD Task01 hold one modality per volume,
    so `modality` is enough for them.
    """
    count = scan.facts.channels
    if channel is not None or modality is None or count == 1:
        return channel
    channels = channels_of(scan.path)
    return channels.get(modality) if len(channels) == count else None


# Arrays of one volume held at once at the peak: float32 slices, a copy with zero background and
# scores, the mask, what lies around them, and the slices of the next scan, which is read ahead.
PEAK_BYTES_PER_VOXEL = 19


def inspect_scan(
    path: Path,
    channel: int | None,
    modality: str | None,
    assume: bool = False,
    series: str | None = None,
) -> dict[str, Any]:
    """Return what is known of a scan, as JSON can hold it; `reason` says why it would fail."""
    try:
        with open_scan(path, modality, assume, series) as scan:
            facts, channel = scan.facts, pick_channel(scan, channel, modality)
            reason = scan.channel_problem(channel)
    except VolumeError as error:
        return {"input": str(path), "reason": str(error)}
    slices, rows, columns = facts.geometry.shape
    return {
        "input": str(path),
        "reason": reason,
        "slices": slices,
        "rows": rows,
        "columns": columns,
        "spacing_mm": list(facts.geometry.spacing),
        "voxel_order": facts.geometry.axis_codes,
        "volumes": facts.channels,
        "volume_used": channel,
        "dtype": facts.dtype,
        "memory_mib": round(prod(facts.geometry.shape) * PEAK_BYTES_PER_VOXEL / 2**20),
        "warnings": list(facts.warnings),
    }


def describe_facts(facts: dict[str, Any]) -> str:
    """Return one line for people about the result of `inspect_scan`."""
    spacing = " x ".join(f"{size:.3g}" for size in facts["spacing_mm"])
    line = (
        f"{facts['input']}: {facts['slices']} slices of {facts['rows']} x {facts['columns']}, "
        f"{spacing} mm, stored {facts['voxel_order']} as {facts['dtype']}; about "
        f"{facts['memory_mib']} MiB besides the model"
    )
    return "; ".join([line, *facts["warnings"]])
