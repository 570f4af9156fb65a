"""Make the files that people take away, in memory: mask, scores, numbers, report, DICOM mask."""

import base64
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from analysis import Analysis

from modeling_rasalore.prediction.outputs import (
    algorithm_of,
    details,
    measures,
    write_prediction,
)
from modeling_rasalore.provenance import peak_mib
from modeling_rasalore.reports.page import write_page
from modeling_rasalore.scans.volume_writing import write_segmentation, write_volume
from modeling_rasalore.scans.volumes import Volume

PICTURES = ("planes", "overlay")  # of a report

Packed = dict[str, str]  # name and content in base64
Pack = Callable[[Analysis, float, str], Packed]


def pack_mask(analysis: Analysis, threshold: float, _: str) -> Packed:
    """Return the mask, uint8 NIfTI on the scan's own grid."""
    return pack_file(lambda folder: write_mask(analysis, threshold, folder))


def write_mask(analysis: Analysis, threshold: float, folder: Path) -> Path:
    """Return the path of the mask in a folder."""
    path = folder / f"{analysis.stem}_mask.nii.gz"
    return write_volume(path, analysis.at(threshold).mask, analysis.scan.volume, np.uint8)


def pack_scores(analysis: Analysis, threshold: float, _: str) -> Packed:
    """Return the score map, float32 NIfTI on the scan's own grid."""
    scores, volume = analysis.prediction.scores, analysis.scan.volume
    name = f"{analysis.stem}_scores.nii.gz"
    return pack_file(lambda folder: write_volume(folder / name, scores, volume, np.float32))


def pack_numbers(analysis: Analysis, threshold: float, source: str) -> Packed:
    """Return the report for programs."""
    report = analysis.report(threshold, source)
    return pack(f"{analysis.stem}.json", json.dumps(report, indent=2).encode())


def pack_page(analysis: Analysis, threshold: float, source: str) -> Packed:
    """Return the report of the command line as one file, with its pictures inside."""
    prediction, scan = analysis.at(threshold), analysis.scan

    def write(folder: Path) -> Path:
        pictures = write_prediction(
            prediction, scan.volume, folder, analysis.stem, source=scan.source, files=PICTURES
        )
        entry = {
            **{"status": "done", "modality": scan.volume.sequence},
            **measures(prediction),
            **details(prediction),
            **{"warnings": scan.source["warnings"]},
            "outputs": {role: path.name for role, path in pictures.items()},
        }
        settings = asdict(analysis.analyst.options) | {
            "threshold": threshold,
            "threshold_source": source,
        }
        manifest = {
            **{"model": prediction.model, "settings": settings, "device": "the web page's server"},
            **{"seconds": analysis.seconds, "peak_memory_mib": peak_mib()},
            **describe_files(scan.volume),
        }
        page = folder / f"{analysis.stem}_report.html"
        return write_page(page, manifest, {analysis.stem: entry})

    return pack_file(write)


def describe_files(volume: Volume) -> dict[str, Any]:
    """Return what a report says of the files that a scan came in."""
    used = len({name for name, _ in volume.slice_files}) or 1
    left_out = sum(item.files for item in volume.left_out)
    counts = {"files": used + left_out, "used": used, "left_out": left_out}
    return {
        "file_counts": counts | {"hidden": 0, "own_results": 0},
        "left_out": [{"path": item.path.name, "reason": item.reason} for item in volume.left_out],
    }


def pack_segmentation(analysis: Analysis, threshold: float, _: str) -> Packed:
    """Return the mask as a DICOM segmentation of the uploaded series; it names its patient.

    Raises:
        ValueError: the scan did not come as DICOM.
    """
    scan, prediction = analysis.scan, analysis.at(threshold)
    if not scan.slice_headers:
        raise ValueError(
            f"{scan.volume.path.name}: a DICOM mask needs a scan that came as DICOM; download the "
            "mask as NIfTI."
        )

    def write(folder: Path) -> Path:
        path = folder / f"{analysis.stem}_mask.dcm"
        made_by = algorithm_of(prediction)
        return write_segmentation(path, prediction.mask, scan.volume, made_by, scan.slice_headers)

    return pack_file(write)


def pack_file(write: Callable[[Path], Path]) -> Packed:
    """Return a file as the page saves it; it is gone from the disk when this returns."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        return pack(path.name, path.read_bytes())


def pack(name: str, content: bytes) -> Packed:
    """Return a file as the page's script turns it into a download."""
    return {"name": name, "content": base64.b64encode(content).decode()}


KINDS: dict[str, Pack] = {
    "Report (HTML)": pack_page,
    "Mask (NIfTI)": pack_mask,
    "Scores (NIfTI)": pack_scores,
    "Numbers (JSON)": pack_numbers,
    "Mask (DICOM)": pack_segmentation,
}
