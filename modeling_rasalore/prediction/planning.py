"""Plan a run over many scans: what all its processes know, and what is left to do of each scan."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..brains.extractors import require_extractor
from ..files import sha256_of
from ..formats.endings import require_writer
from ..precision import Precision, choose_for_model
from ..provenance import JOURNALS, VIEWS, provenance
from ..reports.tables import clear_views
from ..scans.bids import output_stems
from ..scans.volume_writing import is_marked
from ..scans.volumes import Volume
from .journal import (
    WHOLE,
    Entry,
    Facts,
    Record,
    pack_journals,
    read_journals,
    same_list,
    same_origin,
    same_results,
)
from .loading import describe_model
from .options import FORMATS, PredictionOptions
from .outputs import FILES
from .volume import VolumePrediction


@dataclass(frozen=True)
class Run:
    """What all processes of a run know.

    Attributes:
        out: folder of the results.
        options: of the predictions.
        files: which are written per scan, of `outputs.FILES`.
        facts: what makes the results, for the journals.
    """

    out: Path
    options: PredictionOptions
    files: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True)
class Task:
    """One scan to segment.

    Attributes:
        key: its name in the results: where its files begin, below the run's folder.
        scan: file, or folder of a DICOM series.
        finished: what a journal says of it; None: nothing that still counts.
        listed: whether that was said by a run of the same scans.
        files: what an earlier run wrote for it, below the run's folder.
        otherwise: whether that was with another model or other settings.
    """

    key: str
    scan: Path
    finished: Entry | None = None
    listed: bool = False
    files: tuple[str, ...] = ()
    otherwise: bool = False


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan in memory.

    Attributes:
        task: whose scan.
        volume: its voxels.
        digest: SHA-256 of its file or files.
        seconds: that reading took.
    """

    task: Task
    volume: Volume
    digest: str
    seconds: float


@dataclass(frozen=True, eq=False)
class ScoredScan:
    """A scan in memory with what the model says of it.

    Attributes:
        loaded: the scan.
        prediction: of its volume.
        source: what `outputs.describe_input` says of it.
        seconds: that reading and scoring took.
    """

    loaded: LoadedScan
    prediction: VolumePrediction
    source: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a scan.

    Attributes:
        key: as of its task.
        entry: for the journal; None: one is there.
        lines: for people.
    """

    key: str
    entry: Entry | None
    lines: tuple[str, ...]


def plan_run(
    model: Any, scans: Sequence[Path], out: Path, options: PredictionOptions, files: Sequence[str]
) -> Run:
    """Return what all processes of a run know."""
    if unknown := [name for name in files if name not in FILES]:
        raise ValueError(f"files must be some of {', '.join(FILES)}, got {', '.join(unknown)}.")
    require_writer(FORMATS[options.format])
    if options.strip:
        require_extractor(options.strip)
    if options.brain_mask and len(scans) > 1:
        raise ValueError(
            f"--brain-mask is the mask of one scan, got {len(scans)} scans; put each one's beside "
            "it, such as p1_brainmask.nii.gz beside p1_t2.nii.gz."
        )
    if options.precision == "auto":
        options = settle_precision(options, model)
    settings = asdict(options) | {"files": list(files)}
    settings["volume"] = settings.pop("channel")  # as the command line calls it
    reason = settings.pop("precision_reason")  # two reasons for one precision change no result
    if options.brain_mask:  # its folder may name a person
        mask = options.brain_mask
        settings["brain_mask"] = {"name": mask.name, "sha256": sha256_of(mask)}
    keys = scan_keys(scans, out)
    facts = {
        "model": describe_model(model),
        "settings": settings,
        "device": str(next(model.parameters()).device),
        "precision_reason": reason,
        **provenance(),
        "scans": len(scans),
        "scan_list": sha256("\n".join(sorted(keys)).encode(errors="replace")).hexdigest(),
    }
    return Run(out, options, tuple(files), facts)


def settle_precision(
    options: PredictionOptions, model: Any, out: Path | None = None, shared: bool = False
) -> PredictionOptions:
    """Return the options with the float type to compute in, and why.

    Args:
        options: whose precision may be "auto".
        model: on the device that computes.
        out: folder of the run that goes on, whose precision "auto" keeps on the same kind of
            device, so that no scan is segmented again for it; None: a new run.
        shared: whether other processes write into that folder too. Their processors may differ, so
            on processors "auto" is float32.

    Raises:
        ValueError: a precision that does not exist.
    """
    chosen = choose_for_model(model, options.precision)
    if options.precision == "auto":
        device = next(model.parameters()).device.type
        facts = read_journals(out).facts if out else Facts()
        if str(facts.get("device")).split(":")[0] == device:
            earlier = facts["settings"]["precision"]
            if earlier != chosen.name:
                chosen = Precision(earlier, "as the results that are there")
        elif shared and device == "cpu":
            chosen = Precision("float32", "processes that share a folder compute alike")
    return replace(options, precision=chosen.name, precision_reason=chosen.reason)


def scan_keys(scans: Sequence[Path], out: Path) -> list[str]:
    """Return the name of each scan in the results; ValueError where two share one."""
    return [stem.relative_to(out).as_posix() for stem in output_stems(scans, out)]


def plan_tasks(run: Run, scans: Sequence[Path], shard: tuple[int, int], resume: bool) -> list[Task]:
    """Return one task per scan, with what the journals still have of it.

    Raises:
        ValueError: two scans would share their outputs, or a shard of a folder with results of
            other settings.
    """
    keys = scan_keys(scans, run.out)
    run.out.mkdir(parents=True, exist_ok=True)
    anew = shard == WHOLE and not resume
    _require_own_views(run.out)
    if anew:
        pack_journals(run.out)
        clear_views(run.out)
    journals = read_journals(run.out)
    if shard != WHOLE and (names := journals.differences(run.facts)):
        raise ValueError(
            f"{run.out} holds results made with other settings ({', '.join(names)}), which would "
            "be mixed with these; give --out another folder or delete it."
        )
    records = (journals.records.get(key) for key in keys)
    return [
        plan_task(run, key, scan, record, anew)
        for key, scan, record in zip(keys, scans, records, strict=True)
    ]


def plan_task(run: Run, key: str, scan: Path, record: Record | None, anew: bool) -> Task:
    """Return the task of one scan, of which the journals have this record."""
    if record is None:
        return Task(key, scan)
    files = tuple(record.entry.get("outputs", {}).values())
    done = record.entry["status"] == "done" and same_origin(record.facts, run.facts)
    finished = record.entry if done and not anew else None
    otherwise = not same_results(record.facts, run.facts)
    return Task(key, scan, finished, same_list(record.facts, run.facts), files, otherwise)


def _require_own_views(out: Path) -> None:
    """Refuse a folder with somebody else's file in the place of one that describes a run."""
    if (out / JOURNALS).is_dir() or is_marked(out / VIEWS[0]):
        return
    if others := [name for name in VIEWS if (out / name).exists()]:
        raise ValueError(
            f"{out} holds {', '.join(others)}, not written by this software, which would be "
            "overwritten; give --out another folder."
        )
