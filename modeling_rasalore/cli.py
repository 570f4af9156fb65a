"""The command `rasalore`: scans in, masks out; heavy modules are imported where they are used."""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One sub-command: its help line, what declares its arguments, what runs it."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns 0, 1 when anything failed. `words` None: the command line."""
    parser = argparse.ArgumentParser(
        prog="rasalore",
        description="Anomaly segmentation in brain MRI, trained from slice labels alone.",
        epilog="Research software, not a medical device.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.help, description=command.help)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        return complain(error)
    except KeyboardInterrupt:
        print("interrupted; finished results are complete.", file=sys.stderr)
        return 130


def complain(error: BaseException) -> int:
    """Print the first sentence of an error; returns the exit code of a failure."""
    text = str(error).strip() or type(error).__name__
    print(f"error: {text.splitlines()[0]}", file=sys.stderr)
    return 1


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scans", nargs="+", type=Path, metavar="SCAN", help=".nii or .nii.gz file")
    parser.add_argument("--model", required=True, help="folder or repo id of a RASALoRE model")
    parser.add_argument("--revision", default="main", help="commit, tag or branch of a repo id")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--threshold", type=float, default=0.5, help="score, default %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="slices at once, default 8")
    parser.add_argument("--channel", type=int, help="volume of 4-D scans, counted from 0")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")


def predict(arguments: argparse.Namespace) -> int:
    """Segment each scan by itself: one that fails prints one line, and the rest go on."""
    from .reports import DISCLAIMER

    places = output_places(arguments.scans, arguments.out)
    model, processor = load_model(arguments.model, arguments.revision, arguments.device)
    failed = 0
    for scan, place in zip(arguments.scans, places, strict=True):
        try:
            predict_scan(scan, place, model, processor, arguments)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            failed += complain(error)
    done = len(places) - failed
    print(f"{done} of {len(places)} scans segmented; results are in {arguments.out}")
    print(DISCLAIMER)
    return min(failed, 1)


def predict_scan(
    scan: Path, place: Path, model: Any, processor: Any, arguments: argparse.Namespace
) -> None:
    from .prediction import describe, find_warnings, predict_volume, write_prediction
    from .volumes import read_volume

    start = time.monotonic()
    volume = read_volume(scan, arguments.channel)
    for warning in find_warnings(volume):
        print(f"{scan}: {warning}")
    prediction = predict_volume(
        model,
        processor,
        volume,
        batch_size=arguments.batch_size,
        threshold=arguments.threshold,
    )
    write_prediction(prediction, volume, place.parent, place.name)
    print(f"{scan}: {describe(prediction)}, {time.monotonic() - start:.1f} s")


def output_places(scans: Sequence[Path], out: Path) -> list[Path]:
    """Return where each scan's results go, without ending: `out` mirrors the scans' folders.

    Raises ValueError when two scans would share a place.
    """
    parents = [scan.absolute().parent for scan in scans]
    common = os.path.commonpath(parents)
    stems = [scan.name.removesuffix(".gz").removesuffix(".nii") for scan in scans]
    places = [
        out / parent.relative_to(common) / stem for parent, stem in zip(parents, stems, strict=True)
    ]
    for place in places:
        if places.count(place) > 1:
            raise ValueError(f"two scans would both be written to {place}*; name each scan once.")
    return places


def load_model(name: str, revision: str, device: str) -> tuple[Any, Any]:
    """Return model and image processor of a folder or Hub repository, on the device."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from .modeling_rasalore import RasaloreModel

    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"--model needs an existing folder or a repo id (owner/name), got {name}.")
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    loaded = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
    model, report = loaded[0], loaded[1]
    if not isinstance(loaded[0], RasaloreModel):
        raise ValueError(f"--model needs a RASALoRE model (stage 2), got {type(model).__name__}.")
    if report["missing_keys"]:  # the library would go on with random numbers in their place
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"the weights of {name} are incomplete: {missing} are missing.")
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(name, revision=revision)


def add_phantoms_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the patients")
    parser.add_argument("--patients", type=int, default=8, help="how many, default 8")
    parser.add_argument("--healthy", type=int, default=0, help="how many of them have no tumour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(96, 112, 96), help="voxels, default 96 112 96"
    )
    parser.add_argument("--voxel-size", type=float, default=2.0, help="mm, default 2")


def phantoms(arguments: argparse.Namespace) -> int:
    """Write synthetic patients, which can be interrupted and repeated."""
    from .phantoms import write_phantoms

    written = write_phantoms(
        arguments.out,
        arguments.patients,
        arguments.seed,
        arguments.healthy,
        arguments.shape,
        arguments.voxel_size,
    )
    print(f"{len(written)} patients in the BraTS 2021 layout are in {arguments.out}")
    return 0


def add_convert_released_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, help="new folder for the model")
    stage2 = parser.add_argument_group("stage 2, RASALoRE")
    stage2.add_argument("--encoder", type=Path, help="Encoder_Model.pth")
    stage2.add_argument("--decoder", type=Path, help="Decoder_Model.pth")
    stage2.add_argument("--location-embeddings", type=Path, help="Candidate_Prompt_Embedding*.pt")
    stage1 = parser.add_argument_group("stage 1, DDPT")
    stage1.add_argument("--ddpt", type=Path, help="folder of the model.pth.tar-* folders")
    stage1.add_argument("--clip", help="folder or repo id of the CLIP they were tuned on")
    stage1.add_argument("--clip-revision", help="commit, tag or branch of a repo id")
    stage1.add_argument(
        "--class-token-position",
        choices=("end", "middle"),
        default="end",
        help="where training put the class word, default %(default)s",
    )


def convert_released(arguments: argparse.Namespace) -> int:
    """Write the authors' released files of one stage as a model folder."""
    from .released_checkpoints import load_released_ddpt, load_released_rasalore, save_converted

    stage1 = arguments.ddpt, arguments.clip
    stage2 = arguments.encoder, arguments.decoder, arguments.location_embeddings
    model: Any
    if all(stage2) and not any(stage1):
        model = load_released_rasalore(*stage2)
    elif all(stage1) and not any(stage2):
        model = load_released_ddpt(
            *stage1,
            revision=arguments.clip_revision,
            class_token_position=arguments.class_token_position,
        )
    else:
        raise ValueError(
            "one stage at a time: pass --encoder, --decoder and --location-embeddings, or --ddpt "
            "and --clip."
        )
    print(f"{type(model).__name__} is in {save_converted(model, arguments.out)}")
    return 0


COMMANDS = {
    "predict": Command("segment NIfTI scans", add_predict_arguments, predict),
    "phantoms": Command("write synthetic brain scans", add_phantoms_arguments, phantoms),
    "convert-released": Command(
        "make a model folder of the authors' released files",
        add_convert_released_arguments,
        convert_released,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
