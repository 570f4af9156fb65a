"""Write the files of one scan: mask, scores, spread, overlay and a summary."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

from ..files import replace_file, write_json
from ..formats.dicom_segmentation import Algorithm
from ..formats.stored_voxels import OWN_MARK
from ..provenance import DISCLAIMER, versions
from ..reports.findings import LARGE_ML, MOST_FINDINGS, count_large, locate_main_finding
from ..reports.page import FINDINGS_SHOWN
from ..reports.pictures import count_scores, draw_planes
from ..scans.background import BrainSlices
from ..scans.bids import BIDS_ENDINGS, bids_stem
from ..scans.overlays import overlay_montage
from ..scans.reading import hash_scan
from ..scans.volume_writing import is_marked, write_segmentation, write_volume
from ..scans.volumes import Unfit, Volume
from .options import FORMATS
from .volume import VolumePrediction

# Share of the voxels of a scan. Around an extracted brain it is 0.5 to 0.9, with skull and noise
# near 0.
SMALLEST_BACKGROUND = 0.2
THICKEST_SLICES_MM = 7.5  # half as much again as between a slice and the neighbours models see
ENDINGS = {
    **{"mask": "_mask.nii.gz", "scores": "_scores.nii.gz", "spread": "_spread.nii.gz"},
    **{"overlay": "_overlay.png", "planes": "_planes.png", "summary": ".json"},
}
FILES = tuple(ENDINGS)


def write_prediction(
    prediction: VolumePrediction,
    volume: Volume,
    out_dir: str | Path,
    name: str,
    endings: Mapping[str, str] = ENDINGS,
    source: dict[str, Any] | None = None,
    files: Collection[str] = FILES,
    mask_format: str = "nifti",
) -> dict[str, Path]:
    """Return the paths of the files written for one scan, each complete or absent.

    `mask`: uint8, `scores` and, where noise was drawn, `spread`: float32, all on the scan's own
    grid, as NIfTI or in the format that is asked for; `overlay`: PNG of the most telling slices;
    `planes`: PNG of three planes through the first finding, where there is one; `summary`: JSON
    with volume, threshold, model and input, written last.

    Args:
        prediction: of `volume`.
        volume: the scan it was made from.
        out_dir: made where it does not exist.
        name: start of the file names.
        endings: end of the file name of each.
        source: what `describe_input` says; None: asked here, which reads the scan's file again.
        files: which of them to write.
        mask_format: of mask and maps, one of FORMATS; a DICOM segmentation holds the mask only.
    """
    out_dir = Path(out_dir)
    paths = name_files(out_dir / name, endings, files, mask_format)
    if prediction.spread is None:
        paths.pop("spread", None)
    if not prediction.findings[0]:
        paths.pop("planes", None)
    if paths:
        out_dir.mkdir(parents=True, exist_ok=True)
    if "mask" in paths and mask_format == "dicom-seg":
        write_segmentation(paths["mask"], prediction.mask, volume, algorithm_of(prediction))
    elif "mask" in paths:
        write_volume(paths["mask"], prediction.mask, volume, np.uint8)
    if "scores" in paths:
        write_volume(paths["scores"], prediction.scores, volume, np.float32)
    if prediction.spread is not None and "spread" in paths:
        write_volume(paths["spread"], prediction.spread, volume, np.float32)
    if source is None and paths.keys() & {"overlay", "planes", "summary"}:
        source = describe_input(volume, trained_on=prediction.model.get("modality"))
    if source and paths.keys() & {"overlay", "planes"}:
        images = BrainSlices(volume.slices)
        if "overlay" in paths:
            title, warnings = f"{volume.path.name}: {describe(prediction)}", source["warnings"]
            _save_picture(_draw_overlay(prediction, images, title, warnings), paths["overlay"])
        if "planes" in paths:
            _save_picture(_draw_planes(prediction, images), paths["planes"])
    if source and "summary" in paths:
        write_json(paths["summary"], compose_summary(prediction, source))
    return paths


def endings_of(scan: Path) -> dict[str, str]:
    """Return the end of the file name of each result of a scan, by its role."""
    return ENDINGS | (BIDS_ENDINGS if bids_stem(scan) else {})


def name_files(
    stem: Path, endings: Mapping[str, str], files: Collection[str], mask_format: str
) -> dict[str, Path]:
    """Return role -> path of the files that are asked for of one scan.

    Args:
        stem: folder and start of their names.
        endings, files, mask_format: as for `write_prediction`.
    """
    names = {role: _ending(role, end, mask_format) for role, end in endings.items()}
    return {role: stem.parent / f"{stem.name}{names[role]}" for role in names if role in files}


def refuse_to_overwrite(scan: Path, paths: Iterable[Path], own: Collection[Path]) -> None:
    """Raise ValueError where a result of `scan` would take the place of somebody else's file.

    Args:
        own: files that an earlier run lists.
    """
    others = [path for path in paths if path.exists() and path not in own and not is_marked(path)]
    if others:
        raise ValueError(
            f"{scan}: {', '.join(path.name for path in others)} in --out was not written by this "
            "software and is not overwritten; give --out another folder."
        )


def require_format(volume: Volume, mask_format: str) -> None:
    """Refuse a scan that cannot have its mask in this format, before it is segmented."""
    if mask_format == "dicom-seg" and not volume.slice_files:
        raise ValueError(
            f"{volume.path}: --format dicom-seg needs a scan that came as DICOM, which its mask "
            "refers to; give the series, or choose nifti, nrrd or mha."
        )


def _ending(role: str, ending: str, mask_format: str) -> str:
    """Return how a file's name ends in a format other than NIfTI."""
    if not ending.endswith(".nii.gz") or (mask_format == "dicom-seg" and role != "mask"):
        return ending
    return ending.removesuffix(".nii.gz") + FORMATS[mask_format]


def algorithm_of(prediction: VolumePrediction) -> Algorithm:
    """Return what a DICOM segmentation says of its origin."""
    model, version = prediction.model, versions()["rasalore"]
    return Algorithm(
        str(version), str(model["name"]), str(model["weights_sha256"]), prediction.threshold
    )


def _draw_overlay(
    prediction: VolumePrediction, images: BrainSlices, title: str, warnings: Sequence[str]
) -> Image:
    scores, mask, in_plane = prediction.scores, prediction.mask, prediction.spacing[1:]
    return overlay_montage(images, scores, mask, spacing=in_plane, title=title, warnings=warnings)


def _draw_planes(prediction: VolumePrediction, images: BrainSlices) -> Image:
    scores, mask = prediction.scores, prediction.mask
    centre = locate_main_finding(mask, scores)
    assert centre is not None  # without a finding, it is not asked for
    return draw_planes(images, scores, mask, prediction.spacing, centre)


def _save_picture(picture: Image, path: Path) -> None:
    """Write a PNG that says whose it is."""
    marked = PngInfo()
    marked.add_text("Software", OWN_MARK.decode())
    replace_file(path, partial(picture.save, pnginfo=marked))


def describe(prediction: VolumePrediction) -> str:
    """Return one line for people.

    Such as `43.1 mL of anomaly in 57 of 155 slices, 2 findings of 1 mL or more`.
    """
    count, marked = len(prediction.mask), len(prediction.slices_with_anomaly)
    if not marked:
        return f"no anomaly found in {count} slices"
    large = count_large(prediction.findings[0])
    findings = f"{large or 'no'} finding{'s' * (large != 1)} of {LARGE_ML:g} mL or more"
    return f"{prediction.millilitres:.1f} mL of anomaly in {marked} of {count} slices, {findings}"


def find_warnings(volume: Volume, trained_on: str | None = None) -> list[str]:
    """Return sentences about what may make the result of a scan worth less; some are `Unfit`.

    Args:
        trained_on: MRI sequence that the model knows; None: unknown.
    """
    warnings = list(volume.warnings)
    if volume.replaced_voxels:
        warnings.append(f"{volume.replaced_voxels} NaN or infinite voxels were set to 0.")
    images = BrainSlices(volume.slices)
    equal, below = images.count_background()
    if below:
        warnings.append(f"{below} voxels lie below the background and count as background.")
    if images.lowered_voxels:
        warnings.append(
            f"{images.lowered_voxels} voxels far brighter than all around them were lowered "
            "to their neighbours: each would set the scale of its slice."
        )
    background = equal / volume.slices.size
    if background < SMALLEST_BACKGROUND:
        warnings.append(
            Unfit(
                f"only {background:.0%} of the voxels have the background's value; models expect "
                "scans with everything but the brain removed."
            )
        )
    if volume.spacing[0] > THICKEST_SLICES_MM:
        warnings.append(
            Unfit(
                f"slices are {volume.spacing[0]:.3g} mm apart, and models expect "
                f"{THICKEST_SLICES_MM:g} mm at most; lesions between them stay unseen."
            )
        )
    if trained_on and volume.sequence and volume.sequence != trained_on:
        warnings.append(
            Unfit(
                f"the model was trained on {trained_on}, but the scan is {volume.sequence} "
                f"({volume.sequence_source or 'as is known'}); expect nothing of the result, and "
                f"give a {trained_on} scan."
            )
        )
    return warnings


def measures(prediction: VolumePrediction) -> dict[str, Any]:
    """Return the numbers that a table of scans shows of each."""
    return {
        "millilitres": prediction.millilitres,
        "interval_ml": prediction.interval_ml,
        "findings_above_1_ml": count_large(prediction.findings[0]),
        "largest_component_ml": prediction.largest_component_ml,
        "quality_score": prediction.quality_score,
        "slices": len(prediction.mask),
        "slices_with_anomaly": len(prediction.slices_with_anomaly),
        "threshold": prediction.threshold,
    }


def details(prediction: VolumePrediction, most: int = FINDINGS_SHOWN) -> dict[str, Any]:
    """Return what a report tells of a scan besides `measures`.

    Args:
        most: how many findings to list.
    """
    findings, others = prediction.findings
    return {
        "findings": findings[:most],
        "findings_in_all": len(findings) + others["count"],
        "millilitres_at_rates": dict(prediction.millilitres_at_rates),
        "noise_draws": len(prediction.volume_ratios),
        "score_histogram": count_scores(prediction.scores),
    }


def compose_summary(prediction: VolumePrediction, source: dict[str, Any]) -> dict[str, Any]:
    """Return everything about a prediction that is not an image, as JSON can hold it.

    Args:
        source: what `describe_input` said of the scan, which may be gone from the disk.
    """
    marked = prediction.slices_with_anomaly
    return {
        "disclaimer": DISCLAIMER,
        **source,
        "model": prediction.model,
        **measures(prediction),
        **details(prediction, MOST_FINDINGS),
        "smaller_findings": prediction.findings[1],
        "voxel_mm3": prediction.voxel_mm3,
        "bounding_box_mm": prediction.bounding_box_mm,
        "lowest_slice": min(marked, default=None),
        "highest_slice": max(marked, default=None),
        "largest_slice": prediction.largest_slice,
        "versions": versions(),
    }


def describe_input(
    volume: Volume, digest: str | None = None, trained_on: str | None = None
) -> dict[str, Any]:
    """Return what a summary says about the scan.

    Args:
        digest: SHA-256 of its file; None: its file is read once more, for that.
        trained_on: as for `find_warnings`.
    """
    warnings = find_warnings(volume, trained_on)
    return {
        "input": volume.path.name,
        "input_sha256": digest or hash_scan(volume.path),
        "input_voxel_order": volume.geometry.axis_codes,
        "modality": volume.sequence,
        "modality_source": volume.sequence_source,
        "brain_source": volume.brain_source,
        "unfit_because": [sentence for sentence in warnings if isinstance(sentence, Unfit)],
        "warnings": warnings,
        "left_out": [
            {"input": item.path.relative_to(volume.path).as_posix(), "left_out": item.reason}
            for item in volume.left_out
        ],
    }
