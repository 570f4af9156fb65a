"""Many scans, one after the other: each judged alone, what is done kept in a manifest."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import first_line, remove_drafts, sha256_of, write_json
from ..provenance import DISCLAIMER, peak_mib, provenance
from ..scans.bids import BIDS_ENDINGS, bids_stem, write_description
from ..scans.finding import output_stems
from ..scans.reading import read_scan
from ..scans.volumes import Volume
from .loading import computing_in
from .outputs import ENDINGS, describe, describe_input, measures, write_prediction
from .report import write_html, write_table
from .uncertainty import add_uncertainty
from .volume import VolumePrediction, describe_model, predict_volume

MANIFEST = "manifest.json"
SCAN_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class RunSettings:
    """What besides model and scan decides the outputs.

    Attributes:
        threshold: score above which a voxel is anomalous, in [0, 1].
        threshold_source: where it comes from, in words.
        volume: which volume of 4-D scans, counted from 0.
        modality: the scans' sequence; tells the volume of the 4-D scans of MSD Task01.
        batch_size: slices per forward pass; 8 of the full-sized model take 600 MiB.
        flips: average over mirror images of each slice.
        noise_samples: draws of the model's noise for spread and quality score; 0 for none.
        smooth_mm, smallest_ml: as for `predict_volume`.
        precision: float type the model computes in.
    """

    threshold: float = 0.5
    threshold_source: str = "default; the model was not calibrated"
    volume: int | None = None
    modality: str | None = None
    batch_size: int = 4
    flips: bool = False
    noise_samples: int = 0
    smooth_mm: float = 0.0
    smallest_ml: float = 0.0
    precision: str = "float32"


def predict_scans(
    model: Any,
    processor: Any,
    scans: Sequence[Path],
    out: Path,
    settings: RunSettings,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the manifest after segmenting every scan; a bad scan never stops the others.

    `out` gets the files of `write_prediction` per scan, `manifest.json` (rewritten after each
    scan), `results.csv` and `report.html`; for scans of a BIDS data set it is a BIDS derivative.

    Args:
        model, processor: as for `predict_volume`.
        scans: files and DICOM folders; `out` mirrors their folders.
        resume: skip scans that the manifest in `out` has with equal input, model and settings; an
            earlier run into `out` must have ended, or been killed.
        say: gets one line per scan.

    Raises:
        ValueError: two scans would share their outputs.
    """
    places = output_stems(scans, out)
    out.mkdir(parents=True, exist_ok=True)
    manifest = _new_manifest(model, settings)
    finished = _finished(out, manifest) if resume else {}
    if resume:
        remove_drafts(out)
    if any(bids_stem(scan) for scan in scans):
        write_description(out, manifest["versions"]["rasalore"])
    start = time.monotonic()
    for scan, place in zip(scans, places, strict=True):
        key = place.relative_to(out).as_posix()
        try:
            digest = sha256_of(scan) if scan.exists() else ""  # the reader says so
            entry = finished.get(key, {})
            if entry.get("input_sha256") == digest and _complete(out, entry):
                say(f"{scan}: finished before, skipped")
            else:
                entry, paths = _predict_one(
                    model, processor, scan, digest, place, settings, manifest["model"], say
                )
                entry["outputs"] = {
                    role: path.relative_to(out).as_posix() for role, path in paths.items()
                }
        except SCAN_ERRORS as error:
            reason = first_line(error)
            named = reason.replace(str(scan), scan.name)  # folders may name a person
            entry = {"input": scan.name, "status": "failed", "reason": named}
            say(f"error: {reason if str(scan) in reason else f'{scan}: {reason}'}")
        manifest["scans"][key] = entry
        manifest["seconds"] = round(time.monotonic() - start, 2)
        manifest["peak_memory_mib"] = peak_mib()
        write_json(out / MANIFEST, manifest)
    write_table(out / "results.csv", manifest["scans"])
    write_html(out / "report.html", manifest)
    return manifest


def _new_manifest(model: Any, settings: RunSettings) -> dict[str, Any]:
    weight = next(model.parameters())
    return {
        "disclaimer": DISCLAIMER,
        "model": describe_model(model),
        "settings": asdict(settings),
        "device": str(weight.device),
        **provenance(),
        "scans": {},
    }


def _predict_one(
    model: Any,
    processor: Any,
    scan: Path,
    digest: str,
    place: Path,
    settings: RunSettings,
    model_facts: dict[str, str | None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the manifest's entry of one scan, and the files written for it."""
    start = time.monotonic()
    volume = read_scan(scan, settings.volume, settings.modality)
    source = describe_input(volume, digest, model_facts["modality"])
    for warning in source["warnings"]:
        say(f"warning: {scan}: {warning}")
    prediction = predict_with(settings, model, processor, volume, model_facts)
    endings = ENDINGS | (BIDS_ENDINGS if bids_stem(scan) else {})
    paths = write_prediction(prediction, volume, place.parent, place.name, endings, source)
    seconds = round(time.monotonic() - start, 2)
    say(f"{scan}: {describe(prediction)}, {seconds:.1f} s")
    entry = {
        "input": scan.name,
        "status": "done",
        "modality": volume.sequence,
        **measures(prediction),
        "bounding_box_mm": prediction.bounding_box_mm,
        "seconds": seconds,
        "warnings": source["warnings"],
        "input_sha256": digest,
    }
    return entry, paths


def predict_with(
    settings: RunSettings,
    model: Any,
    processor: Any,
    volume: Volume,
    model_facts: dict[str, str | None],
) -> VolumePrediction:
    """Return what a model says about one scan under the settings of a run.

    Args:
        model_facts: what `describe_model` says, asked once for all scans.
    """
    with computing_in(settings.precision, model):
        prediction = predict_volume(
            model,
            processor,
            volume,
            batch_size=settings.batch_size,
            threshold=settings.threshold,
            flips=settings.flips,
            smooth_mm=settings.smooth_mm,
            smallest_ml=settings.smallest_ml,
            model_facts=model_facts,
        )
        if not settings.noise_samples:
            return prediction
        return add_uncertainty(
            prediction,
            model,
            processor,
            volume,
            samples=settings.noise_samples,
            flips=settings.flips,
        )


def _finished(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the finished scans of an earlier run of the same model with the same settings."""
    path = out / MANIFEST
    if not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = all(
        earlier.get(name) == manifest[name] for name in ("model", "settings", "versions", "device")
    )
    scans = earlier.get("scans", {}) if same else {}
    return {key: entry for key, entry in scans.items() if entry["status"] == "done"}


def _complete(out: Path, entry: dict[str, Any]) -> bool:
    return all((out / path).is_file() for path in entry["outputs"].values())
