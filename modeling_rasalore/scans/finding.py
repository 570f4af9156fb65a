"""Find the scans that a command line means, and say what was left out."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..files import LeftOut, some, walk
from ..formats.endings import COMPANIONS, other_ending, tell_content
from .bids import is_bids_dataset, told_by_name, why_no_magnitude, why_not_anatomy
from .dicom import why_no_image
from .header_guard import VolumeError
from .naming import (
    MODALITIES,
    OTHER_FORMATS,
    SCAN_ENDINGS,
    ending_of,
    file_stem,
    is_doubtful,
    read_channels,
    role_by_words,
    sequence_of,
)
from .reading import WrongSequenceError, open_scan, read_role
from .series_files import NoSuchSeriesError, dicom_files
from .slice_frame import Geometry
from .volume_writing import find_own_results, is_marked

NO_IMAGE = "no scan by its ending and its first bytes"
UNTOLD_CHANNEL = (
    "one of several channels, and no dataset.json beside it tells which sequence it is; add that "
    "file, or name the files of one channel on the command line"
)


class SeveralSequencesError(ValueError):
    """A folder with scans of several sequences, of which none was chosen.

    Attributes:
        sequences: those of its scans, sorted.
    """

    def __init__(self, folder: Path, sequences: Sequence[str]) -> None:
        super().__init__(
            f"{folder} holds {', '.join(sequences)}; a model fits one of them, so choose it with "
            "--modality."
        )
        self.sequences = sequences


@dataclass(frozen=True)
class FoundScans:
    """Scans to segment, and what becomes of every other file.

    Attributes:
        scans: files, folders and archives, sorted within each input.
        left_out: everything else that could be meant.
        used: files that the scans consist of.
        hidden: files and folders whose names begin with a dot.
        own_results: files that an earlier run wrote.
    """

    scans: list[Path]
    left_out: list[LeftOut] = field(default_factory=list)
    used: int = 0
    hidden: int = 0
    own_results: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many files there are, and what becomes of them; the others add up to `files`."""
        parts = {
            "used": self.used,
            "left_out": sum(entry.files for entry in self.left_out),
            "hidden": self.hidden,
            "own_results": self.own_results,
        }
        return {"files": sum(parts.values()), **parts}


def find_scans(
    inputs: Sequence[Path],
    modality: str | None = None,
    assume: bool = False,
    series: str | None = None,
    *,
    trained_on: str | None = None,
) -> FoundScans:
    """Return the scans that files and folders stand for, folders searched through, sorted.

    Args:
        inputs: files, taken whatever they are called, and folders. Of a BIDS data set, raw
            anatomical scans are taken; of other folders scans without masks, and DICOM series in
            folders and zips.
        modality: which scans of folders to take, such as "t2": those that say so, and those that
            say nothing of themselves; None takes all.
        assume: take all for `modality`, whatever they say of themselves.
        series: which series of DICOM folders and zips; those without it are left out.
        trained_on: what a model knows: taken of folders that hold several sequences where
            `modality` is None.

    Raises:
        ValueError: an unknown modality, no such scan in any input, or a folder with several
            sequences and none chosen.
    """
    if modality not in (None, *MODALITIES):
        raise ValueError(f"--modality must be one of {', '.join(MODALITIES)}, got {modality}.")
    parts = [
        _scans_in(path, modality, assume, series, trained_on)
        if path.is_dir()
        else FoundScans([path], used=1)
        for path in inputs
    ]
    empty = [number for number, part in enumerate(parts) if not part.scans]
    if empty and len(empty) == len(parts):
        raise ValueError(_nothing_found(inputs[0], parts[0], modality))
    for number in empty:  # reading it fails with a sentence, and the others go on
        parts[number].scans.append(inputs[number])
    return FoundScans(
        [scan for part in parts for scan in part.scans],
        [entry for part in parts for entry in part.left_out],
        sum(part.used for part in parts),
        sum(part.hidden for part in parts),
        sum(part.own_results for part in parts),
    )


def _nothing_found(folder: Path, found: FoundScans, modality: str | None) -> str:
    wanted = f"{modality} scan" if modality else "scan"
    names: dict[str, list[str]] = {}
    for entry in found.left_out:
        inside = entry.path.relative_to(folder).as_posix()
        names.setdefault(entry.reason, []).append(inside if inside != "." else folder.name)
    reasons = [f"{some(paths)}: {reason}" for reason, paths in names.items()]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"{folder} holds no {wanted} as {', '.join(SCAN_ENDINGS)} or DICOM; found "
        f"{found.counts['files']} files{why}."
    )


def _scans_in(
    folder: Path, modality: str | None, assume: bool, series: str | None, trained_on: str | None
) -> FoundScans:
    tree = walk(folder)
    own = find_own_results(tree.files)
    files = [path for path in tree.files if path not in own]
    candidates, left_out = _candidates(files)
    left_out += tree.left_out
    channels = read_channels(path for path in candidates if ending_of(path))
    scans: dict[Path, _Look] = {}
    for path, size in candidates.items():
        said = channels.get(path) or _said(path, folder)
        reason = _why_no_scan(path, folder)
        if reason is None and not assume and path in channels and said is None:
            reason = UNTOLD_CHANNEL
        if reason is None:
            look = _look_into(path, said, (modality, assume, series), trained_on)
            reason = look.reason
        if reason is None:
            scans[path] = look
        else:
            left_out.append(LeftOut(path, reason, size))
    for path, reason in _parts_of_series(scans).items():
        left_out.append(LeftOut(path, reason, candidates[path]))
        del scans[path]
    known = sorted({look.sequence for look in scans.values() if look.sequence is not None})
    if modality is None and len(known) > 1 and trained_on in known:
        return _scans_in(folder, trained_on, False, series, None)
    if modality is None and len(known) > 1:
        raise SeveralSequencesError(folder, known)
    inside = [entry for path, look in scans.items() for entry in look.left_out_of(path, own)]
    used = sum(candidates[path] for path in scans) - sum(entry.files for entry in inside)
    left_out += inside
    left_out.sort(key=lambda entry: entry.path)
    return FoundScans(list(scans), left_out, used, tree.hidden, len(own))


def nifti_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files with a scan's ending that match, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.glob(pattern))
        if ending_of(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def _candidates(files: Sequence[Path]) -> tuple[dict[Path, int], list[LeftOut]]:
    """Return what may be scans -> how many files each consists of, and what else there is."""
    slices = {path for folder in {file.parent for file in files} for path in dicom_files(folder)}
    parts = Counter(path.parent for path in files if path in slices and not ending_of(path))
    sizes = {path: 1 for path in files if ending_of(path)}
    sizes |= dict(sorted(parts.items()))
    sizes |= {path: 1 for path in files if path.suffix.lower() == ".zip"}
    belonging = _companions(files, sizes)
    left_out = []
    for path in [path for path in sizes if not ending_of(path)]:
        if (reason := _why_no_series(path)) is not None:
            left_out.append(LeftOut(path, reason, sizes.pop(path)))
    sizes.update(Counter(belonging.values()) + Counter(sizes))
    others = (path for path in files if path not in sizes.keys() | slices | belonging.keys())
    archives = {entry.path for entry in left_out}
    left_out += [LeftOut(path, _why_unknown(path)) for path in others if path not in archives]
    return sizes, left_out


def _companions(files: Sequence[Path], scans: Mapping[Path, int]) -> dict[Path, Path]:
    """Return files that hold a part of a scan, such as its header -> that scan."""
    by_name = {(path.parent, file_stem(path)): path for path in scans if other_ending(path)}
    parts = ((path, ending_of(path, COMPANIONS)) for path in files)
    named = {path: (path.parent, path.name[: -len(ending)]) for path, ending in parts if ending}
    return {path: by_name[name] for path, name in named.items() if name in by_name}


def _why_no_series(path: Path) -> str | None:
    """Return why a folder or zip holds no series; None where it does, or reading says more."""
    try:
        return why_no_image(path)
    except VolumeError:
        return None


def _why_unknown(path: Path) -> str:
    if not path.exists():
        return "a link to a file that is not there"
    if path.name.upper() == "DICOMDIR":
        return "a list of DICOM files, without an image"
    if ending := ending_of(path, COMPANIONS):
        return f"a {ending} file without the other file of its scan"
    if ending := ending_of(path, OTHER_FORMATS):
        return f"a {ending} file, which is not read; convert it to NIfTI"
    try:
        with path.open("rb") as file:
            told = tell_content(file.read(2**12), path.name)
    except OSError:
        told = None
    return told if told and "NIfTI" in told else NO_IMAGE


def _why_no_scan(path: Path, folder: Path) -> str | None:
    """Return why a file that may be a scan is none; None where it is one."""
    if is_bids_dataset(folder) and (reason := why_not_anatomy(path, folder)):
        return reason
    if not ending_of(path):
        return None
    if is_marked(path):
        return "a result of this software"
    role, source = role_by_words(path), "name"
    if is_doubtful(path):
        content, source = read_role(path) or role, "name and its voxels"
        role = role if (content, role) == ("mask", "brain_mask") else content
    if role in ("mask", "brain_mask"):
        return f"a {role.replace('_', ' ')} by its {source}"
    return why_no_magnitude(path)


def _said(path: Path, folder: Path) -> str | None:
    """Return the sequence that a scan's name tells, else that of a folder it lies in."""
    folders = reversed(path.relative_to(folder).parts[:-1])
    return told_by_name(path) or next(filter(None, map(sequence_of, folders)), None)


@dataclass(frozen=True)
class _Look:
    """What a look into the headers of a scan that may be segmented told.

    Attributes:
        reason: why it is not the one that was chosen; None: it may be.
        sequence: what it shows, None if that is not told.
        left_out: files of its folder or zip that are not used.
        series: identifier of its DICOM series, "" for any other scan.
        geometry: where its voxels lie; None where that was not looked at.
    """

    reason: str | None = None
    sequence: str | None = None
    left_out: Sequence[LeftOut] = ()
    series: str = ""
    geometry: Geometry | None = None

    def left_out_of(self, path: Path, own: Collection[Path]) -> list[LeftOut]:
        """Return one entry per reason, without own results; files of a zip count as one with it."""
        names: dict[str, list[str]] = {}
        for entry in self.left_out:
            if entry.path not in own:
                names.setdefault(entry.reason, []).append(entry.path.name)
        return [
            LeftOut(path, f"{some(inside)} in it: {reason}", len(inside) * path.is_dir())
            for reason, inside in names.items()
        ]


def _look_into(
    path: Path,
    said: str | None,
    wanted: tuple[str | None, bool, str | None],
    trained_on: str | None,
) -> _Look:
    """Return what a scan tells by its name, and by its headers where that is not enough.

    Args:
        said: the sequence that names tell.
        wanted: modality, whether it is assumed, and series, as of `find_scans`.
    """
    modality, assume, series = wanted
    if ending_of(path) and (assume or (said and modality is None)):
        return _Look(sequence=said)
    if ending_of(path) and modality and said not in (None, modality):
        return _Look(f"its name says {said}, not {modality}")
    try:
        with open_scan(path, modality, assume, series, said, trained_on) as scan:
            geometry = scan.facts.geometry
            return _Look(None, scan.sequence or said, scan.left_out, scan.series_uid, geometry)
    except WrongSequenceError as error:
        return _Look(error.reason)
    except VolumeError as error:  # any other fails when it is read, with its reason
        if modality is None and trained_on:  # a localizer fails, and says what it is
            return _look_into(path, said, (trained_on, assume, series), None)
        cause = error.__cause__
        return _Look(str(cause) if isinstance(cause, NoSuchSeriesError) else None, said)


def _parts_of_series(scans: Mapping[Path, _Look]) -> dict[Path, str]:
    """Return folders that hold different slices of one DICOM series -> why they are no scans."""
    folders: dict[str, list[Path]] = {}
    for path, look in scans.items():
        if look.series:
            folders.setdefault(look.series, []).append(path)
    parts: dict[Path, str] = {}
    for paths in folders.values():
        geometries = [scans[path].geometry for path in paths]
        corners = {tuple(np.ravel(g.corners).round(2)) for g in geometries if g is not None}
        if len(corners) <= 1:  # one scan, or copies of it
            continue
        for path in paths:
            others = some([str(other) for other in paths if other != path])
            parts[path] = f"a part of one series, as is {others}; put its files into one folder"
    return parts


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return one line for people, such as `2 of 5 files used, 2 left out, 1 hidden`."""
    words = {"left_out": "left out", "hidden": "hidden", "own_results": "results of earlier runs"}
    parts = [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
    return ", ".join([f"{counts['used']} of {counts['files']} files used", *parts])


def describe_left_out(entries: Sequence[LeftOut]) -> list[str]:
    """Return a line per reason why files are not used, the plainest last."""
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(str(entry.path))
    if NO_IMAGE in by_reason:
        by_reason[NO_IMAGE] = by_reason.pop(NO_IMAGE)
    return [f"{some(paths)}: {reason}" for reason, paths in by_reason.items()]
