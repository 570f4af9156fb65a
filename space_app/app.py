"""The Space: upload a brain scan, look through its anomaly map, download mask and report.

    [RASALORE_MODEL=<folders or repo ids, separated by commas>] python app.py

A scan lives in its browser session (`gr.State`), never in a global, and no picture of it is written
to disk. Models are the only thing that sessions share.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# Read when torch is imported: threads that wait leave their core to requests, and to a browser.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr
from controls import place_inputs, place_results
from fastapi.middleware import Middleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.routing import Mount
from fastapi.staticfiles import StaticFiles
from gradio.utils import get_upload_folder
from handlers import Handlers
from model_choice import offer_models
from page import HEAD, THEME, TITLE, WARNING, introduction
from traffic import FileWatch, sweeping
from wiring import Wiring

from modeling_rasalore.files import first_line
from modeling_rasalore.packaged import packaged_sequences

FILE_SECONDS = 900  # longer than an upload waits in the queue; then what is left is deleted
VIEWER = Path(__file__).parent / "niivue"  # JavaScript, served as it is
SESSIONS = 16  # whose scans are held in memory
WAITING = 16  # requests
MAX_FILE_SIZE = "100mb"


def build_app(handlers: Handlers) -> gr.Blocks:
    """Return the page, with its endpoint for programs."""
    with gr.Blocks(title=TITLE, fill_width=True) as blocks:
        gr.HTML(WARNING, elem_id="warning")
        gr.Markdown(introduction(handlers.models.sequences), elem_id="introduction")
        with gr.Row():
            inputs = place_inputs(handlers)
            results = place_results()
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


def split(words: str) -> list[str]:
    """Return what commas separate, without what is empty."""
    return [word for part in words.split(",") if (word := part.strip())]


def main() -> None:
    """Serve the page with the models of RASALORE_MODEL, else with those of the package."""
    sources = split(os.environ.get("RASALORE_MODEL", ""))
    if not sources and not packaged_sequences():
        sys.exit("Set RASALORE_MODEL to the repo id or folder of a RASALoRE model (stage 2).")
    try:
        revisions = split(os.environ.get("RASALORE_REVISION", "")) or ["main"]
        handlers = Handlers(offer_models(sources, revisions))
    except (ValueError, OSError) as error:
        sys.exit(f"{', '.join(sources) or 'the models of the package'}: {first_line(error)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
    with TemporaryDirectory(prefix="rasalore-") as folder:  # of this app alone, so it can be swept
        os.environ["GRADIO_TEMP_DIR"] = folder
        build_app(handlers).queue(max_size=WAITING).launch(**launch_options(handlers))


if __name__ == "__main__":
    main()
