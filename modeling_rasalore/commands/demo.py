"""Show what the package does, on a synthetic scan that comes with it: `rasalore demo`."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from .importing import quick_imports
from .places import make_new_folder
from .saying import one_line_errors, say_line
from .words import Model, Revision


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the results; rasalore_demo/ in this folder if not given"),
    ] = None,
    model: Model = None,
    revision: Revision = "main",
    open_report: Annotated[
        bool, typer.Option("--open/--no-open", help="show the report in a browser, or do not")
    ] = True,
) -> None:
    """Segment a synthetic T2 scan that comes with the package, and open the report."""
    with one_line_errors():
        from ..files import require_writable
        from ..packaged import EXAMPLE_SCAN, packaged_model
        from ..remote_files import read_model_config

        model = str(packaged_model("t2")) if model is None else model
        read_model_config(model, revision)  # a name that is none is told before the heavy imports
        out = require_writable(out) if out else make_new_folder(Path.cwd(), "rasalore_demo")
        with quick_imports():
            from ..prediction.loading import load_network
            from ..prediction.options import PredictionOptions
            from ..prediction.run import predict_scans
            from ..prediction.saved_options import complete_options
            from ..reports.tables import PAGE

        network, processor = load_network(model, revision)
        options = complete_options(PredictionOptions(), (), network, model, revision)
        manifest = predict_scans(network, processor, [EXAMPLE_SCAN], out, options, say=say_line)
    page = out.absolute() / PAGE
    print(f"{manifest['disclaimer']}\nreport: {page}")
    if open_report and has_screen():
        webbrowser.open(page.as_uri())


def has_screen() -> bool:
    """Whether a browser can show a page; on a server, one in the terminal would take it over."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in screens)
