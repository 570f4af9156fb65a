"""The Space: upload a brain scan, look through its anomaly map, download mask and report.

    RASALORE_MODEL=<folder or repo id> python app.py

A scan lives in its browser session (`gr.State`), never in a global, and no picture of it is written
to disk. The model is the only thing that sessions share.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from analysis import Analyst
from fastapi.middleware import Middleware
from fastapi.routing import Mount
from fastapi.staticfiles import StaticFiles
from gradio.utils import get_upload_folder
from handlers import DOUBT, SCORES, Handlers
from page import (
    BRAIN,
    CSS,
    HIDE_BRAIN,
    INTRODUCTION,
    LEGEND,
    SAVE_FILE,
    SHOW_BRAIN,
    THEME,
    TITLE,
    WARNING,
)
from traffic import FileWatch, sweeping
from uploads import take_uploads_only

from modeling_rasalore.model_loading import load_model

STATE_SECONDS = 1800  # a session's scan is forgotten so long after its last use
FILE_SECONDS = 900  # longer than an upload waits in the queue; then what is left is deleted
VIEWER = Path(__file__).parent / "niivue"  # JavaScript, served as it is
SESSIONS = 16  # whose scans are held in memory
WAITING = 16  # requests
MAX_FILE_SIZE = "100mb"


def build_app(handlers: Handlers) -> gr.Blocks:
    """Return the page, with its endpoint for programs."""
    with gr.Blocks(title=TITLE) as blocks:
        analysis = gr.State(None, time_to_live=STATE_SECONDS)
        gr.HTML(WARNING, elem_id="warning")
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                scan = take_uploads_only(
                    gr.File(
                        label="Brain scan (.nii or .nii.gz, up to 100 MB)",
                        file_types=[".nii", ".nii.gz"],
                        height=150,
                        elem_id="scan",
                    )
                )
                run = gr.Button("Find anomalies", variant="primary", elem_id="run")
                example = gr.Button("Try a synthetic brain (T2)", elem_id="example")
                threshold = gr.Slider(
                    0,
                    1,
                    0.5,
                    step=0.01,
                    label="Threshold: score above which a voxel is marked",
                    elem_id="threshold",
                )
                summary = gr.Markdown(elem_id="summary", min_height=80)  # room for the progress
            with gr.Column(scale=2, min_width=300, visible=False) as results:
                view = gr.ImageSlider(
                    label="Scan and overlay", max_height=800, buttons=[], elem_id="slice-view"
                )
                slice_index = gr.Slider(0, 1, 0, step=1, label="Slice", elem_id="slice")
                with gr.Row():
                    opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the colours")
                    what = gr.Radio(
                        [SCORES, DOUBT] if handlers.analyst.draws_noise else [SCORES],
                        value=SCORES,
                        label="Colours show",
                    )
                gr.Markdown(LEGEND)
                table = gr.Markdown(label="Volumes", elem_id="volumes")
                with gr.Row():
                    save_mask = gr.Button("Download mask (NIfTI)", elem_id="save-mask")
                    save_report = gr.Button("Download report (JSON)", elem_id="save-report")
                show_brain = gr.Button("Show in 3-D", elem_id="show-brain")
                gr.HTML(BRAIN, elem_id="brain")

        picture: dict[str, Any] = {
            "fn": handlers.draw,
            "inputs": [analysis, slice_index, threshold, opacity, what],
            "outputs": view,
            "postprocess": False,  # the pictures come inline
            "concurrency_limit": 4,
            "show_progress": "hidden",
            "api_visibility": "undocumented",
        }
        words: dict[str, Any] = {
            "fn": handlers.describe,
            "inputs": [analysis, threshold],
            "outputs": [summary, table],
            "concurrency_limit": 4,
            "show_progress": "hidden",
            "api_visibility": "undocumented",
        }
        for button, start, inputs in (
            (run, handlers.analyse_upload, [scan, threshold]),
            (example, handlers.analyse_example, [threshold]),
        ):
            started = button.click(
                start,
                inputs,
                analysis,
                concurrency_id="model",
                show_progress_on=summary,
                api_visibility="undocumented",
            )
            started.success(
                handlers.open_results,
                [analysis, threshold],
                [scan, results, slice_index],
                api_visibility="undocumented",
            ).success(**picture).success(**words).success(None, None, None, js=HIDE_BRAIN)
            started.failure(None, None, scan, js="() => null")  # room for another file
        for control in (slice_index, threshold, opacity, what):
            control.input(**picture, trigger_mode="always_last")
        threshold.input(**words, trigger_mode="always_last")
        for button, pack, js in (
            (save_mask, handlers.pack_mask, SAVE_FILE),
            (save_report, handlers.pack_report, SAVE_FILE),
            (show_brain, handlers.pack_view, SHOW_BRAIN),
        ):
            give_to_browser(button, pack, [analysis, threshold], js)
        add_endpoint(handlers, scan, threshold)
    return blocks


def give_to_browser(button: gr.Button, pack: Any, inputs: list[Any], js: str) -> None:
    """Let a button hand what the server packs to a script of the page."""
    packed = gr.JSON(visible=False)
    button.click(pack, inputs, packed, api_visibility="undocumented").success(
        None, packed, None, js=js
    )


def add_endpoint(handlers: Handlers, scan: Any, threshold: Any) -> None:
    """Offer `/segment` to programs; its outputs have no place on the page."""
    mask = gr.File(label="Mask (NIfTI, uint8, on the scan's grid)", visible=False)
    report = gr.JSON(label="Report", visible=False)
    gr.Button(visible=False).click(
        handlers.segment,
        [scan, threshold],
        [mask, report],
        api_name="segment",
        concurrency_id="model",
    )


def launch_options(handlers: Handlers) -> dict[str, Any]:
    """Limits, looks and privacy of the server, for `Blocks.launch`."""
    return {
        "theme": THEME,
        "css": CSS,
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {
            "middleware": [
                Middleware(FileWatch, register=handlers.uploads, handed_over=handlers.handed_over)
            ],
            "routes": [Mount("/niivue", StaticFiles(directory=VIEWER))],
            "lifespan": sweeping(Path(get_upload_folder()), FILE_SECONDS),
        },
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "share": False,
    }


def main() -> None:
    """Load the model named by RASALORE_MODEL and serve the page."""
    name = os.environ.get("RASALORE_MODEL", "")
    if not name:
        sys.exit("Set RASALORE_MODEL to the repo id or folder of a RASALoRE model (stage 2).")
    try:
        model, processor = load_model(name, os.environ.get("RASALORE_REVISION", "main"), "auto")
    except (ValueError, OSError) as error:
        sys.exit(f"RASALORE_MODEL: {str(error).splitlines()[0]}")
    handlers = Handlers(Analyst(model, processor))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
    with TemporaryDirectory(prefix="rasalore-") as folder:  # of this app alone, so it can be swept
        os.environ["GRADIO_TEMP_DIR"] = folder
        build_app(handlers).queue(max_size=WAITING).launch(**launch_options(handlers))


if __name__ == "__main__":
    main()
