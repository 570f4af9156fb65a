"""The command `rasalore`: scans in, masks out; heavy modules are imported where they are used.

Exit codes: 0 all done, 1 something failed, 2 words that make no sense, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .files import first_line

app = typer.Typer(
    name="rasalore",
    help="Anomaly segmentation in brain MRI, trained from slice labels alone.",
    epilog="Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help; drawing boxes costs half a second
    pretty_exceptions_enable=False,
)

Scans = Annotated[
    list[Path],
    typer.Argument(
        metavar="SCAN...",
        help="NIfTI files, folders or zips of a DICOM series, BIDS data sets, folders of these",
    ),
]
Model = Annotated[str, typer.Option(help="folder or repo id of a RASALoRE model")]
Revision = Annotated[str, typer.Option(help="commit, tag or branch of a repo id")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="slices at once")]
Volume = Annotated[int | None, typer.Option(min=0, help="volume of 4-D scans, counted from 0")]
Modality = Annotated[
    str | None,
    typer.Option(
        help="t1, t1ce, t2 or flair: what the scans are, and which are taken of folders and MSD"
    ),
]
Flips = Annotated[bool, typer.Option("--flips", help="average over mirror images")]
SmoothMm = Annotated[
    float, typer.Option(min=0, help="standard deviation of a 3-D blur of the scores, mm")
]
Per = Annotated[str, typer.Option(help="voxels, slices or ml, for --false-alarms")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print errors only")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. `words` None: those of the command line."""
    try:
        app(args=list(words) if words is not None else None, prog_name="rasalore")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line for a user's mistake, and with code 130 for an interrupt."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        print("interrupted; finished results are complete.", file=sys.stderr)
        raise typer.Exit(130) from error


@app.command(epilog="Example: rasalore predict scans/ --modality t2 --model runs/stage2 --out out")
def predict(
    scans: Scans,
    model: Model,
    out: Annotated[Path, typer.Option(help="folder for the results")],
    revision: Revision = "main",
    threshold: Annotated[float | None, typer.Option(help="score, 0.5 if not given")] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="share of healthy voxels or slices, or ml per scan; needs calibrate"),
    ] = None,
    per: Per = "voxels",
    batch_size: BatchSize = 4,
    volume: Volume = None,
    modality: Modality = None,
    flips: Flips = False,
    noise_samples: Annotated[
        int, typer.Option(min=0, help="draws of noise for a spread map and a quality score")
    ] = 0,
    smooth_mm: SmoothMm = 0.0,
    smallest_ml: Annotated[float, typer.Option(min=0, help="remove smaller parts of masks")] = 0.0,
    device: Device = "auto",
    precision: Precision = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="skip scans finished before")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Segment scans: mask, score map, overlay and numbers of each, and a report of all."""
    with one_line_errors():
        from .prediction.loading import choose_precision, load_model
        from .prediction.run import RunSettings, predict_scans
        from .scans.finding import find_scans

        found = find_scans(scans, modality)
        network, processor = load_model(model, revision, device)
        alarms = None if false_alarms is None else (false_alarms, per, flips, smooth_mm)
        chosen, source = _threshold(threshold, alarms, (model, revision), network)
        settings = RunSettings(
            threshold=chosen,
            threshold_source=source,
            volume=volume,
            modality=modality,
            batch_size=batch_size,
            flips=flips,
            noise_samples=noise_samples,
            smooth_mm=smooth_mm,
            smallest_ml=smallest_ml,
            precision=choose_precision(network, precision),
        )
        say = _say_errors if quiet or as_json else _say
        say(f"computing on {network.device} in {settings.precision}")
        manifest = predict_scans(network, processor, found, out, settings, resume, say)
        failed = [e for e in manifest["scans"].values() if e["status"] == "failed"]
        if as_json:
            print(json.dumps(manifest, indent=2))
        elif not quiet:
            _conclude(manifest, failed, out)
    raise typer.Exit(min(len(failed), 1))


@app.command(epilog="Example: rasalore inspect scans/ --modality flair")
def inspect(
    scans: Scans,
    volume: Volume = None,
    modality: Modality = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what predict would do with each scan, and the memory it needs; loads no model.

    Of a folder that a script filled, say how: recipe, versions, seed, hashes and scores.
    """
    with one_line_errors():
        from .provenance import describe_folder, inspect_folder, is_result
        from .scans.finding import find_scans
        from .scans.reading import describe_facts, inspect_scan

        results = [inspect_folder(path) for path in scans if is_result(path)]
        scans = [path for path in scans if not is_result(path)]
        facts = [inspect_scan(path, volume, modality) for path in find_scans(scans, modality)]
    for result in [] if as_json or quiet else results:
        print(describe_folder(result))
    if as_json:
        print(json.dumps([*results, *facts], indent=2))
    for fact in [] if as_json else facts:
        if fact["reason"]:
            print(f"error: {fact['reason']}", file=sys.stderr)
        elif not quiet:
            print(describe_facts(fact))
    raise typer.Exit(int(any(fact["reason"] for fact in facts)))


@app.command(
    epilog="Example: rasalore calibrate healthy/ --modality t2 --model runs/stage2 "
    "--false-alarms 0.05"
)
def calibrate(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="healthy scans, held out")],
    model: Annotated[Path, typer.Option(help="folder of a RASALoRE model")],
    false_alarms: Annotated[
        list[float],
        typer.Option(help="share of healthy voxels or slices, or ml per scan; may be repeated"),
    ],
    per: Per = "voxels",
    batch_size: BatchSize = 4,
    volume: Volume = None,
    modality: Modality = None,
    flips: Flips = False,
    smooth_mm: SmoothMm = 0.0,
    device: Device = "auto",
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Store in the model folder the thresholds that healthy scans give for false-alarm rates."""
    with one_line_errors():
        from .prediction.calibration import calibrate, save_calibration
        from .prediction.loading import choose_precision, computing_in, load_model
        from .scans.finding import find_scans
        from .scans.reading import read_scan

        if not model.is_dir():
            raise ValueError(
                f"--model needs an existing folder to store the result in, got {model}."
            )
        found = find_scans(scans, modality)
        network, processor = load_model(str(model), device=device)
        healthy = (read_scan(path, volume, modality) for path in found)
        with computing_in(choose_precision(network, precision), network):
            result = calibrate(
                network, processor, healthy, false_alarms, per, batch_size, flips, smooth_mm
            )
        path = save_calibration(model, result)
    for entry in [] if quiet else result["thresholds"]:
        print(
            f"{entry['rate']:g} of {entry['unit']}: threshold {entry['threshold']:.4g} "
            f"({entry['scans']} scans, {entry['slices']} slices, {entry['voxels']} voxels)"
        )
    if not quiet:
        print(f"stored in {path}")


@app.command(epilog="Example: rasalore phantom runs/phantoms --patients 4 --healthy 2")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the patients")],
    patients: Annotated[int, typer.Option(help="how many")] = 8,
    healthy: Annotated[int, typer.Option(help="how many of them have no tumour")] = 0,
    seed: int = 0,
    shape: Annotated[tuple[int, int, int], typer.Option(help="voxels")] = (96, 112, 96),
    voxel_size: Annotated[float, typer.Option(help="mm")] = 2.0,
) -> None:
    """Write synthetic patients; can be interrupted and repeated."""
    with one_line_errors():
        from .data.phantoms import write_phantoms

        written = write_phantoms(out, patients, seed, healthy, shape, voxel_size)
        print(f"{len(written)} patients in the BraTS 2021 layout are in {out}")


@app.command(
    epilog="Example: rasalore convert-released --encoder Encoder_Model.pth --decoder "
    "Decoder_Model.pth --location-embeddings Candidate_Prompt_Embedding.pt --out runs/released"
)
def convert_released(
    out: Annotated[Path, typer.Option(help="new folder for the model")],
    encoder: Annotated[Path | None, typer.Option(help="stage 2: Encoder_Model.pth")] = None,
    decoder: Annotated[Path | None, typer.Option(help="stage 2: Decoder_Model.pth")] = None,
    location_embeddings: Annotated[
        Path | None, typer.Option(help="stage 2: Candidate_Prompt_Embedding*.pt")
    ] = None,
    ddpt: Annotated[
        Path | None, typer.Option(help="stage 1: folder of the model.pth.tar-* folders")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="stage 1: folder or repo id of the CLIP they were tuned on")
    ] = None,
    clip_revision: Annotated[str | None, typer.Option(help="of a repo id")] = None,
    class_token_position: Annotated[
        str, typer.Option(help="stage 1: end or middle, where training put the class word")
    ] = "end",
) -> None:
    """Make a model folder of the authors' released files of one stage."""
    with one_line_errors():
        from .publishing.released_checkpoints import (
            load_released_ddpt,
            load_released_rasalore,
            save_converted,
        )

        network: Any
        if encoder and decoder and location_embeddings and not (ddpt or clip):
            network = load_released_rasalore(encoder, decoder, location_embeddings)
        elif ddpt and clip and not (encoder or decoder or location_embeddings):
            fields = {"revision": clip_revision, "class_token_position": class_token_position}
            network = load_released_ddpt(ddpt, clip, **fields)
        else:
            raise ValueError(
                "one stage at a time: pass --encoder, --decoder and --location-embeddings, or "
                "--ddpt and --clip."
            )
        print(f"{type(network).__name__} is in {save_converted(network, out)}")


@app.command(epilog="Example: rasalore export --model runs/stage2 --out rasalore.onnx")
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="file to write, ending in .onnx")],
    revision: Revision = "main",
) -> None:
    """Write a model with its pre- and post-processing as ONNX: a slice in, its scores out."""
    with one_line_errors():
        from .prediction.loading import load_model
        from .publishing.onnx_export import export_onnx

        network, processor = load_model(model, revision, "cpu")
        print(f"the model is in {export_onnx(network, processor, out)}")


def _threshold(
    threshold: float | None,
    alarms: tuple[float, str, bool, float] | None,
    source: tuple[str, str],
    model: Any,
) -> tuple[float, str]:
    """Return the threshold to use, and in words where it comes from.

    `source` is the folder or repo id of the model, and its revision.
    """
    from .prediction.calibration import load_threshold
    from .prediction.run import RunSettings

    if threshold is not None and alarms is not None:
        raise ValueError("--threshold and --false-alarms exclude each other; give one of them.")
    if alarms is not None:
        rate, unit = alarms[:2]
        stored = load_threshold(source[0], model, *alarms, revision=source[1])
        return stored, f"calibrated for {rate:g} of healthy {unit}"
    if threshold is not None:
        return threshold, "given"
    return RunSettings.threshold, RunSettings.threshold_source


def _say(line: str) -> None:
    print(line, file=sys.stderr if line.startswith(("error: ", "warning: ")) else sys.stdout)


def _say_errors(line: str) -> None:
    if line.startswith("error: "):
        _say(line)


def _conclude(manifest: dict[str, Any], failed: list[dict[str, Any]], out: Path) -> None:
    count = len(manifest["scans"])
    settings = manifest["settings"]
    print(f"threshold {settings['threshold']:g}: {settings['threshold_source']}")
    print(f"{count - len(failed)} of {count} scans segmented; results are in {out}")
    for entry in failed:
        print(f"failed: {entry['input']}")
    print(manifest["disclaimer"])


if __name__ == "__main__":
    sys.exit(main())
