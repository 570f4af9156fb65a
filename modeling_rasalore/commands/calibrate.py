"""Store thresholds in a model folder: `rasalore calibrate`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..prediction.options import PredictionOptions, takes_options
from .saying import describe_computing, one_line_errors, say_left_out, say_line
from .words import SCORING, Device, Per, Precision, Quiet, require_unit

if TYPE_CHECKING:
    from ..scans.volumes import Volume


@takes_options(*SCORING)
def calibrate(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="healthy scans, held out")],
    model: Annotated[Path, typer.Option(help="folder of a RASALoRE model")],
    false_alarms: Annotated[
        list[float],
        typer.Option(
            help="most that may be marked in a scan: share of voxels or slices, or ml; may be "
            "repeated"
        ),
    ],
    options: PredictionOptions,
    given: frozenset[str],
    per: Per = "voxels",
    scans_above: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="share of new scans in which more may be marked, such as 0.05 from 19 healthy "
            "scans on; if not given, 0.1, or 1 of n + 1 for n < 9; 0: always 1 of n + 1",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Store in the model folder thresholds that keep false alarms down in most new scans.

    From n healthy scans that the model has not learned from: in at most 1 of n + 1 scans of the
    same scanner, protocol and kind of people is more marked than --false-alarms.
    """
    with one_line_errors():
        require_unit(per)
        if not model.is_dir():
            raise ValueError(
                f"--model needs an existing folder to store the result in, got {model}."
            )
        from ..files import require_writable
        from ..remote_files import read_model_config
        from ..scans.finding import find_scans

        trained_on = read_model_config(str(model)).get("modality")
        found = find_scans(scans, *options.reading[1:], trained_on=trained_on)
        say_left_out(found, quiet)
        require_writable(model, "--model")
        from ..brains.extractors import require_extractor
        from ..prediction.calibration import calibrate
        from ..prediction.loading import load_network
        from ..prediction.planning import settle_precision
        from ..prediction.saved_options import ASSUMPTION, complete_options, save_calibration

        network, processor = load_network(str(model), device=device)
        options = settle_precision(replace(options, precision=precision), network)
        if not quiet:
            print(describe_computing(network, options))
        options = complete_options(options, {*given, "threshold"}, network, model)
        if options.strip:
            require_extractor(options.strip)
        healthy = (read_healthy(path, options, trained_on, quiet) for path in found.scans)
        result = calibrate(network, processor, healthy, false_alarms, per, options, scans_above)
        path = save_calibration(model, result)
    if not quiet:
        for entry in result["thresholds"]:
            print(describe_threshold(entry))
        print(f"{ASSUMPTION}\nstored in {path}")


def describe_threshold(entry: dict[str, Any]) -> str:
    """Return a stored threshold, its promise and what it stems from, as a line."""
    return (
        f"{entry['rate']:g} of {entry['unit']}: threshold {entry['threshold']:.4g}: "
        f"{entry['promise']} (from {entry['scans']} scans, {entry['slices']} slices, "
        f"{entry['voxels']} voxels)"
    )


def read_healthy(
    path: Path, options: PredictionOptions, trained_on: str | None, quiet: bool
) -> "Volume":
    """Return a healthy scan, and say what is odd about it.

    Raises:
        ValueError: it is of another sequence than the model's; or as `read_brain`.
    """
    from ..brains.reading import read_brain

    volume = read_brain(path, *options.reading, trained_on=trained_on, strip=options.strip)
    if trained_on and volume.sequence not in (None, trained_on):
        raise ValueError(
            f"{path}: the model was trained on {trained_on}, but {volume.sequence_source}, so its "
            f"thresholds would serve no scan; give healthy {trained_on} scans, or say "
            f"--assume-modality {trained_on} if it is one."
        )
    for warning in [] if quiet else volume.warnings:
        say_line(f"warning: {path}: {warning}")
    return volume
