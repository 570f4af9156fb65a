"""Name the words that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Scans = Annotated[
    list[Path],
    typer.Argument(
        metavar="SCAN...",
        help="NIfTI files, folders or zips of a DICOM series, BIDS data sets, folders of these",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="folder or repo id of a RASALoRE model; that of the package if not given"),
]
Revision = Annotated[str, typer.Option(help="commit, tag or branch of a repo id")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[
    str, typer.Option(help="auto: what is faster on the device; float32; bfloat16")
]
Per = Annotated[str, typer.Option(help="voxels, slices or ml, for --false-alarms")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print errors only")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]

READING = ("channel", "modality", "assume_modality", "series")
SCORING = (*READING, "strip", "batch_size", "flips", "smooth_mm", "free_map")


def require_unit(per: str) -> None:
    """Raise ValueError for a unit of false alarms that is none."""
    from ..evaluation.scan_thresholds import UNITS

    if per not in UNITS:
        raise ValueError(f"--per must be {', '.join(UNITS)}, got {per}.")
