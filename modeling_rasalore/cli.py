"""The command `rasalore`: scans in, masks out; heavy modules are imported where they are used.

Exit codes: 0 all done, 1 something failed, 2 words that make no sense, 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import modeling_rasalore

from .commands.calibrate import calibrate
from .commands.convert import convert_released, export
from .commands.demo import demo
from .commands.inspect import inspect
from .commands.label import label
from .commands.phantom import phantom
from .commands.predict import predict
from .commands.train import train

app = typer.Typer(
    name="rasalore",
    epilog="Research software, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help; drawing boxes costs half a second
    pretty_exceptions_enable=False,
)
EXAMPLES: dict[Callable[..., None], str] = {
    predict: "rasalore predict scan.nii.gz",
    demo: "rasalore demo",
    inspect: "rasalore inspect scans/ --modality flair",
    calibrate: "rasalore calibrate healthy/ --modality t2 --model runs/stage2 --false-alarms 0.05",
    label: "rasalore label scans/",
    train: "rasalore train scans/ --modality flair --out runs/mine",
    phantom: "rasalore phantom runs/phantoms --patients 4 --healthy 2",
    convert_released: "rasalore convert-released --encoder Encoder_Model.pth --decoder "
    "Decoder_Model.pth --location-embeddings Candidate_Prompt_Embedding.pt --out runs/released",
    export: "rasalore export --model runs/stage2 --out rasalore.onnx",
}


def tell_version(asked: bool) -> None:
    """Print the version and end, where that is asked for."""
    if asked:
        print(modeling_rasalore.__version__)
        raise typer.Exit


@app.callback()
def rasalore(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=tell_version, help="print it")
    ] = False,
) -> None:
    """Anomaly segmentation in brain MRI, trained from slice labels alone."""


for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(command)


def main(words: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code. `words` None: those of the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    if words is None:  # a process of its own
        modeling_rasalore.runs_one_command = True
        # Bars of libraries, such as of loading weights, do not belong between a command's lines.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(args=list(words) if words is not None else None, prog_name="rasalore")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
