"""The Space: upload a brain scan, look through its anomaly map, download mask and report.

    [RASALORE_MODEL=<folder or repo id>] python app.py

A scan lives in its browser session (`gr.State`), never in a global, and no picture of it is written
to disk. The model is the only thing that sessions share.
"""

import importlib.util
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from analysis import Analyst
from controls import place_inputs, place_results
from fastapi.middleware import Middleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.routing import Mount
from fastapi.staticfiles import StaticFiles
from gradio.utils import get_upload_folder
from handlers import Handlers
from page import HEAD, THEME, TITLE, WARNING, introduction
from thresholds import offer_presets
from traffic import FileWatch, sweeping
from wiring import Wiring

from modeling_rasalore.files import first_line
from modeling_rasalore.packaged import has_model, packaged_model
from modeling_rasalore.prediction.loading import choose_precision, load_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS
from modeling_rasalore.prediction.saved_options import complete_options

FILE_SECONDS = 900  # longer than an upload waits in the queue; then what is left is deleted
VIEWER = Path(__file__).parent / "niivue"  # JavaScript, served as it is
SESSIONS = 16  # whose scans are held in memory
WAITING = 16  # requests
MAX_FILE_SIZE = "100mb"


def build_app(handlers: Handlers) -> gr.Blocks:
    """Return the page, with its endpoint for programs."""
    with gr.Blocks(title=TITLE, fill_width=True) as blocks:
        gr.HTML(WARNING, elem_id="warning")
        gr.Markdown(introduction(handlers.analyst.trained_on), elem_id="introduction")
        with gr.Row():
            inputs = place_inputs(handlers)
            results = place_results(handlers.analyst.draws_noise)
        Wiring(blocks, handlers, inputs, results)
    return blocks


def launch_options(handlers: Handlers) -> dict[str, Any]:
    """Limits, looks and privacy of the server, for `Blocks.launch`."""
    return {
        "theme": THEME,
        "head": HEAD,
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {
            "middleware": [
                Middleware(FileWatch, register=handlers.uploads, handed_over=handlers.handed_over)
            ],
            "routes": [Mount("/niivue", GZipMiddleware(StaticFiles(directory=VIEWER)))],
            "lifespan": sweeping(Path(get_upload_folder()), FILE_SECONDS),
        },
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "share": False,
    }


def open_model(name: str, revision: str = "main") -> Analyst:
    """Return a model with what is saved with it: how its masks are made, and its thresholds.

    Args:
        name: folder or repo id.
        revision: of a repo id.

    Raises:
        ValueError: no such model, or a file beside it that is damaged.
    """
    model, processor = load_model(name, revision, "auto")
    options = replace(DEFAULT_OPTIONS, precision=choose_precision(model))
    options = complete_options(options, (), model, name, revision)
    presets = offer_presets(options, name, model, revision)
    return Analyst(model, processor, options, presets)


def main() -> None:
    """Load the model of RASALORE_MODEL, else that of the package, and serve the page."""
    name = os.environ.get("RASALORE_MODEL", "")
    if not name and not has_model():
        sys.exit("Set RASALORE_MODEL to the repo id or folder of a RASALoRE model (stage 2).")
    try:
        revision = os.environ.get("RASALORE_REVISION", "main")
        analyst = open_model(name or str(packaged_model()), revision)
    except (ValueError, OSError) as error:
        sys.exit(f"{name or 'the model of the package'}: {first_line(error)}")
    handlers = Handlers(analyst)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
    with TemporaryDirectory(prefix="rasalore-") as folder:  # of this app alone, so it can be swept
        os.environ["GRADIO_TEMP_DIR"] = folder
        build_app(handlers).queue(max_size=WAITING).launch(**launch_options(handlers))


if __name__ == "__main__":
    main()
