"""Read and write what is saved with a model: its thresholds, and how its masks are made."""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from ..evaluation.scan_thresholds import UNITS
from ..files import write_json
from ..remote_files import is_repo_id, without_waiting_for_hub
from .loading import describe_model
from .options import SAVED_NAMES, PredictionOptions

CALIBRATION_FILE = "calibration.json"
DEFAULTS_FILE = "prediction.json"
DEFAULT_RATE = 0.01  # of healthy voxels, where a model has a threshold for it
INTERVAL_RATES = (0.01, 0.05)  # of healthy voxels, whose thresholds bound a volume
UNCALIBRATED = "default; the model is calibrated for other flips, smoothing or free map"
ASSUMPTION = (
    "this holds for new scans like the healthy ones: same scanner, protocol and kind of people"
)


def complete_options(
    options: PredictionOptions,
    given: Collection[str],
    model: Any,
    source: str | Path | None = None,
    revision: str | None = None,
) -> PredictionOptions:
    """Return the options with what is saved with a model in the place of all that was not given.

    The threshold is the calibrated one for 1 % of healthy voxels, else the nearest to it, else 0.5;
    `threshold_source` says which.

    Args:
        given: names of the options that the user chose; `threshold` among them is left alone.
        model: whose weights the thresholds must belong to.
        source: folder or repo id that the model was loaded from; None: what the model says.
        revision: of a repo id; None: what the model says.

    Raises:
        ValueError: a saved file is damaged, or holds an option or a value that does not exist.
    """
    source = str(source or getattr(model, "name_or_path", "") or "")
    revision = revision or getattr(getattr(model, "config", None), "_commit_hash", None) or "main"
    try:
        saved = read_defaults(source, revision)
        stored = _read(_find(source, CALIBRATION_FILE, revision))
    except LocalEntryNotFoundError:  # the Hub does not answer, and they were not downloaded
        saved, stored = {}, {}
    new = {name: value for name, value in saved.items() if name not in given}
    options = replace(options, **new)
    if stored and not _belongs(stored, model):
        words = f"default; {CALIBRATION_FILE} was made for other weights, calibrate this model anew"
        return options if "threshold" in given else replace(options, threshold_source=words)
    entries = [e for e in stored.get("thresholds", []) if _key(e)[2:] == _made_with(options)]
    rates = {e["rate"]: float(e["threshold"]) for e in entries if e["unit"] == "voxels"}
    bounds = {f"{rate:g}": rates[rate] for rate in INTERVAL_RATES if rate in rates}
    options = replace(options, thresholds_at_rates=bounds)
    if "threshold" in given:
        return options
    if entries:
        return _at(options, _default_entry(entries), "the model's default, calibrated")
    if stored:
        return replace(options, threshold_source=UNCALIBRATED)
    return options


def carry_defaults(source: str | Path, folder: Path) -> None:
    """Copy what is saved with a model on how its masks are made, where there is any.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    try:
        path = _find(source, DEFAULTS_FILE, "main") if read_defaults(source) else None
    except LocalEntryNotFoundError:  # the Hub does not answer, and they were not downloaded
        path = None
    if path is not None:
        shutil.copy(path, folder / DEFAULTS_FILE)


def read_defaults(source: str | Path, revision: str = "main") -> dict[str, Any]:
    """Return the options that are saved with a model, {} where there are none.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    path = _find(source, DEFAULTS_FILE, revision)
    content = {name: value for name, value in _read(path).items() if name != "chosen_on"}
    if unknown := content.keys() - set(SAVED_NAMES):
        raise ValueError(
            f"{DEFAULTS_FILE} of a model may hold {', '.join(SAVED_NAMES)}, got "
            f"{', '.join(sorted(unknown))}; correct or delete it."
        )
    return content


def save_calibration(folder: Path, calibration: dict[str, Any]) -> Path:
    """Return the file beside the model; thresholds for other rates of the same weights stay."""
    path = folder / CALIBRATION_FILE
    stored = _read(path)
    if stored.get("weights_sha256") == calibration["weights_sha256"]:
        new = [_key(entry) for entry in calibration["thresholds"]]
        old = [entry for entry in stored["thresholds"] if _key(entry) not in new]
        calibration = {**calibration, "thresholds": [*old, *calibration["thresholds"]]}
    return write_json(path, calibration)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    made = entry.get("flips", False), entry.get("smooth_mm", 0.0), entry.get("free_map", 0.0)
    return entry["rate"], entry["unit"], *made


def _made_with(options: PredictionOptions) -> tuple[Any, ...]:
    """Return what of the options the scores depend on, as the end of `_key`."""
    return options.flips, options.smooth_mm, options.free_map


def _default_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the threshold that serves where none is asked for: of voxels, nearest to 1 %."""
    return min(
        entries, key=lambda e: (UNITS.index(e["unit"]), abs(e["rate"] - DEFAULT_RATE), e["rate"])
    )


def _at(options: PredictionOptions, entry: Mapping[str, Any], words: str) -> PredictionOptions:
    """Return the options with a stored threshold, and where it is from."""
    source = f"{words}: {promise_of(entry)}"
    return replace(options, threshold=float(entry["threshold"]), threshold_source=source)


def find_calibration(source: str | Path, model: Any, revision: str = "main") -> dict[str, Any]:
    """Return what `rasalore calibrate` stored beside a model, {} where there is nothing.

    Args:
        source: folder or repo id that the model was loaded from.
        model: whose weights the thresholds must belong to.
        revision: of a repo id.

    Raises:
        ValueError: the file is damaged, or was made for other weights.
        OSError: the Hub cannot be asked, and the file is not in the cache.
    """
    path = _find(source, CALIBRATION_FILE, revision)
    stored = _read(path)
    if stored and not _belongs(stored, model):
        raise ValueError(f"{path} was made for other weights; calibrate this model anew.")
    return stored


def at_false_alarms(
    options: PredictionOptions,
    rate: float,
    unit: str,
    source: str | Path,
    model: Any,
    revision: str = "main",
) -> PredictionOptions:
    """Return the options with the threshold stored for a false-alarm rate of such scores.

    Args:
        source, model, revision: as for `find_calibration`.

    Raises:
        ValueError: not calibrated, for other weights, not for this rate, or for scores with other
            flips, smoothing or free map.
    """
    stored = find_calibration(source, model, revision)
    if not stored:
        raise ValueError(
            f"--false-alarms needs a calibrated model, but {source} has no "
            f"{CALIBRATION_FILE}; run `rasalore calibrate` on healthy scans first."
        )
    same = (unit, *_made_with(options))
    entries = {entry["rate"]: entry for entry in stored["thresholds"] if _key(entry)[1:] == same}
    if rate not in entries:
        words = " --flips" * options.flips
        words += f" --smooth-mm {options.smooth_mm:g}" * bool(options.smooth_mm)
        words += f" --free-map {options.free_map:g}" * bool(options.free_map)
        known = ", ".join(f"{share:g}" for share in sorted(entries))
        raise ValueError(
            f"with these options the model is calibrated for {known or 'no share'} of {unit}, not "
            f"{rate:g}; run `rasalore calibrate HEALTHY_SCANS --model {source} --false-alarms "
            f"{rate:g} --per {unit}{words}`, on a copy of a model of the package."
        )
    return _at(options, entries[rate], "calibrated")


def promise_of(entry: Mapping[str, Any]) -> str:
    """Return what a stored threshold promises, as a sentence without its full stop.

    Earlier versions stored a quantile of all scans' scores together, which can still be used.
    """
    if "promise" in entry:
        return f"{entry['promise']} ({ASSUMPTION})"
    pooled = f"{entry['rate']:g} of healthy {entry['unit']} of all scans together"
    return f"{pooled}, by an earlier version; calibrate anew for a promise about single scans"


def _find(source: str | Path, name: str, revision: str) -> Path | None:
    """Return the path of a file beside a model, downloaded where need be; None without one."""
    if Path(source).is_dir() or not is_repo_id(str(source)):
        return Path(source) / name
    try:
        with without_waiting_for_hub(str(source)):
            return Path(hf_hub_download(str(source), name, revision=revision))
    except RemoteEntryNotFoundError:
        return None


def _read(path: Path | None) -> dict[str, Any]:
    """Return the content of a saved file, {} where there is none."""
    if path is None or not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON; delete it, or save it anew.") from error
    return content


def _belongs(stored: Mapping[str, Any], model: Any) -> bool:
    """Whether thresholds were made for the weights of a model."""
    return stored["weights_sha256"] == describe_model(model)["weights_sha256"]
