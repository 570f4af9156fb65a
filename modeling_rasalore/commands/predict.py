"""Segment scans: `rasalore predict`."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import printable
from ..prediction.options import PredictionOptions, takes_options
from .importing import quick_imports
from .places import make_results_folder
from .saying import describe_computing, one_line_errors, say_errors, say_left_out, say_line
from .words import (
    SCORING,
    Device,
    Json,
    Model,
    Per,
    Precision,
    Quiet,
    Revision,
    Scans,
    require_unit,
)


@takes_options(*SCORING, "brain_mask", "noise_samples", "smallest_ml", "format")
def predict(
    scans: Scans,
    options: PredictionOptions,
    given: frozenset[str],
    model: Model = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the results; a new one beside the scans if not given"),
    ] = None,
    revision: Revision = "main",
    threshold: Annotated[
        float | None, typer.Option(help="score; the model's calibrated one, else 0.5, if not given")
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="share of healthy voxels or slices, or ml per scan; needs calibrate"),
    ] = None,
    per: Per = "voxels",
    device: Device = "auto",
    precision: Precision = "auto",
    files: Annotated[
        str, typer.Option(help="which to write per scan; '' for none, only the tables")
    ] = "mask,scores,spread,overlay,planes,summary",
    parquet: Annotated[
        bool, typer.Option("--parquet", help="write results.parquet too; needs the extra [train]")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="skip scans finished before")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="part of the scans, such as 0/4, for processes that share OUT, with or without "
            "accelerate launch -m modeling_rasalore.cli; they always resume"
        ),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(min=0, help="processes of a Ray cluster that hold the model; [ray]")
    ] = 0,
    ray_gpus: Annotated[float, typer.Option(min=0, help="of each of them, such as 0.5")] = 0.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Segment scans: mask, score map, overlay and numbers of each, and a report of all.

    Without --out, results of scan.nii.gz are in scan_rasalore/ beside it, in scan_rasalore_2/ where
    there are some; --resume goes on in the last of them. `rasalore inspect OUT` says how far all
    shards are.
    """
    with one_line_errors("the same command with --resume goes on"):
        with quick_imports():
            from ..files import require_writable
            from ..prediction.journal import pick_shard
            from ..remote_files import read_model_config
            from ..scans.finding import find_scans

        refuse_contradictions(model, revision, threshold, false_alarms, per)
        part = pick_shard(shard)
        if out is None and part != (0, 1):
            raise ValueError(
                "processes that share the scans need one folder; give all the same --out."
            )
        say = say_errors if quiet or as_json else say_line
        if model is None:
            model, found, options = take_package_model(scans, options, say)
        else:
            trained_on = read_model_config(model, revision).get("modality")
            found = find_scans(scans, *options.reading[1:], trained_on=trained_on)
        say_left_out(found, quiet, as_json)
        out = require_writable(out) if out else make_results_folder(scans, resume)
        with quick_imports():
            from ..prediction.loading import load_network, pick_device
            from ..prediction.planning import settle_precision
            from ..prediction.run import predict_scans
            from ..prediction.saved_options import UNCALIBRATED

        open_model = partial(load_network, model, revision, pick_device(device))
        network, processor = open_model()
        goes_on, shared = resume or shard is not None, part != (0, 1) or ray_workers > 0
        options = replace(options, precision=precision)
        options = settle_precision(options, network, out if goes_on else None, shared)
        opened = {"model": network, "source": model, "revision": revision}
        options = settle_threshold(options, given, threshold, false_alarms, per, opened)
        if options.threshold_source == UNCALIBRATED:
            say(f"warning: threshold {options.threshold:g} is a {UNCALIBRATED}")
        say(describe_computing(network, options))
        manifest = predict_scans(
            network,
            processor,
            found,
            out,
            options,
            files=[name.strip() for name in files.split(",") if name.strip()],
            shard=part,
            resume=goes_on,
            parquet=parquet,
            say=say,
            segment_tasks=ray_cluster(open_model, ray_workers, ray_gpus),
        )
    failed = [e["input"] for e in manifest["scans"].values() if e["status"] == "failed"]
    if as_json:
        print(json.dumps(manifest, indent=2))
    elif not quiet:
        conclude(manifest, failed, len(found.scans), out)
    # A launch ends all its processes when one fails, so the last one tells.
    others_work = "WORLD_SIZE" in os.environ and len(manifest["scans"]) < len(found.scans)
    raise typer.Exit(int(bool(failed) and not others_work))


def refuse_contradictions(
    model: str | None,
    revision: str,
    threshold: float | None,
    false_alarms: float | None,
    per: str,
) -> None:
    """Raise ValueError for options of the command that exclude each other, or change nothing."""
    if threshold is not None and false_alarms is not None:
        raise ValueError("--threshold and --false-alarms exclude each other; give one of them.")
    require_unit(per)
    if per != "voxels" and false_alarms is None:
        raise ValueError(f"--per is the unit of --false-alarms; give both, got --per {per}.")
    if model is None and revision != "main":
        raise ValueError(f"--revision is that of a --model on the Hub, got {revision} alone.")


def take_package_model(
    scans: list[Path], options: PredictionOptions, say: Callable[[str], None]
) -> tuple[str, Any, PredictionOptions]:
    """Return the package's model for these scans, the scans, and the options, with a sequence.

    Where names tell the sequence, scans whose names tell another are refused.
    """
    from ..brains.choice import choose_package_model

    folder, found, told = choose_package_model(
        scans, options.reading, options.brain_mask, options.strip
    )
    say(f"model: {folder.parent.name}, {folder.name}, which comes with the package")
    return str(folder), found, replace(options, modality=folder.name) if told else options


def settle_threshold(
    options: PredictionOptions,
    given: frozenset[str],
    threshold: float | None,
    false_alarms: float | None,
    per: str,
    opened: dict[str, Any],
) -> PredictionOptions:
    """Return the options with those of the model's folder, and the threshold that was asked for.

    Args:
        given: names of the options that the user gave.
        threshold, false_alarms, per: as of the command.
        opened: model, source and revision, as for `complete_options`.
    """
    from ..prediction.saved_options import at_false_alarms, complete_options

    if threshold is not None:
        options = replace(options, threshold=threshold, threshold_source="given")
    own = {"threshold"} if threshold is not None or false_alarms is not None else set()
    options = complete_options(options, {*given, *own}, **opened)
    if false_alarms is None:
        return options
    return at_false_alarms(options, false_alarms, per, **opened)


def ray_cluster(open_model: Callable[[], Any], workers: int, gpus: float) -> Any:
    """Return what segments scans on a cluster; None without workers."""
    if not workers:
        return None
    from ..prediction.run import segment_on_ray

    return partial(segment_on_ray, open_model, workers, gpus)


def conclude(manifest: dict[str, Any], failed: list[str], count: int, out: Path) -> None:
    """Say how many scans of all shards are done, and what to think of the results."""
    from ..reports.tables import PAGE

    settings, known = manifest["settings"], len(manifest["scans"])
    left = f", {count - known} left to other shards" if known < count else ""
    print(f"threshold {settings['threshold']:g}: {settings['threshold_source']}")
    print(f"{known - len(failed)} of {count} scans segmented{left}; results are in {out}")
    for name in failed:
        print(f"failed: {printable(name)}")
    if earlier := manifest["earlier"]:
        others = sum("made_with" in entry for entry in earlier.values())
        words = f" ({others} with other settings)" * bool(others)
        print(f"results of earlier runs that stay in table and report: {len(earlier)}{words}")
    print(manifest["disclaimer"])
    if (page := out / PAGE).is_file() and known == count:
        print(f"report: {page}")
