"""Make the files that people take away, in memory: mask, scores, numbers, report, DICOM mask."""

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
from analysis import Analysis

from modeling_rasalore.prediction.outputs import algorithm_of, measures, write_prediction
from modeling_rasalore.prediction.report import PAGE, write_html
from modeling_rasalore.provenance import provenance
from modeling_rasalore.scans.volume_writing import write_segmentation, write_volume

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
    report = analysis.report(threshold) | {"threshold_source": source}
    return pack(f"{analysis.stem}.json", json.dumps(report, indent=2).encode())


def pack_page(analysis: Analysis, threshold: float, source: str) -> Packed:
    """Return the report of the command line as one file, with its picture inside."""
    prediction, told = analysis.at(threshold), analysis.scan.source
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_prediction(
            prediction, analysis.scan.volume, folder, analysis.stem, source=told, files=("overlay",)
        )
        picture = paths["overlay"]
        entry = {
            **{"input": told["input"], "status": "done", "warnings": told["warnings"]},
            **measures(prediction),
            "bounding_box_mm": prediction.bounding_box_mm,
            "outputs": {"overlay": picture.name},
        }
        settings = {"precision": "float32", "threshold": threshold, "threshold_source": source}
        counts = dict.fromkeys(("files", "used", "left_out", "hidden", "own_results"), 0)
        manifest = {
            **{"model": prediction.model, "settings": settings, "device": "the Space"},
            **{"scans": {analysis.stem: entry}, "left_out": []},
            **{"file_counts": counts | {"files": 1, "used": 1}},
            **provenance(),
        }
        page = write_html(folder / PAGE, manifest).read_text("utf-8")
        address = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        page = page.replace(f'src="{quote(picture.name)}"', f'src="{address}"')
    return pack(f"{analysis.stem}_{PAGE}", page.encode())


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
