"""What each control of the page starts, and the endpoint for programs."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from controls import Inputs, Results
from handlers import Handlers
from page import HIDE_BRAIN, SAVE_FILE, SHOW_BRAIN

STATE_SECONDS = 1800  # a session's scan is forgotten so long after its last use

# Answers without the model's turn, of which several may be made at once.
QUICK: dict[str, Any] = {
    "concurrency_limit": 4,
    "show_progress": "hidden",
    "api_visibility": "undocumented",
}


class Wiring:
    """Events between the controls of one page; made while the page is being built."""

    def __init__(self, handlers: Handlers, inputs: Inputs, results: Results):
        self.handlers, self.inputs, self.results = handlers, inputs, results
        self.analysis = gr.State(None, time_to_live=STATE_SECONDS)
        shown: list[Any] = [results.slice_index, inputs.threshold, results.opacity, results.what]
        self.picture = QUICK | {
            "fn": handlers.draw,
            "inputs": [self.analysis, *shown],
            "outputs": results.view,
            "postprocess": False,  # the pictures come inline
        }
        self.words = QUICK | {
            "fn": handlers.describe,
            "inputs": [self.analysis, inputs.threshold],
            "outputs": [inputs.summary, results.table],
        }
        self.start(inputs.run, handlers.analyse_upload, [inputs.scan, inputs.threshold])
        self.start(inputs.example, handlers.analyse_example, [inputs.threshold])
        for control in shown:
            control.input(**self.picture, trigger_mode="always_last")
        inputs.threshold.input(**self.words, trigger_mode="always_last")
        self.give_to_browser(results.save_mask, handlers.pack_mask, SAVE_FILE)
        self.give_to_browser(results.save_report, handlers.pack_report, SAVE_FILE)
        self.give_to_browser(results.show_brain, handlers.pack_view, SHOW_BRAIN)
        self.add_endpoint()

    def start(self, button: gr.Button, analyse: Callable[..., Any], given: list[Any]) -> None:
        """Let a button analyse a scan, and show the results or empty the upload."""
        started = button.click(
            analyse,
            given,
            self.analysis,
            concurrency_id="model",
            show_progress_on=self.inputs.summary,
            api_visibility="undocumented",
        )
        opened = started.success(
            self.handlers.open_results,
            [self.analysis, self.inputs.threshold],
            [self.inputs.scan, self.results.column, self.results.slice_index],
            api_visibility="undocumented",
        )
        opened.success(**self.picture).success(**self.words).success(None, js=HIDE_BRAIN)
        started.failure(None, None, self.inputs.scan, js="() => null")  # room for another file

    def give_to_browser(self, button: gr.Button, pack: Callable[..., Any], js: str) -> None:
        """Let a button hand what the server packs to a script of the page."""
        packed = gr.JSON(visible=False)
        request = button.click(
            pack, [self.analysis, self.inputs.threshold], packed, api_visibility="undocumented"
        )
        request.success(None, packed, js=js)

    def add_endpoint(self) -> None:
        """Offer `/segment` to programs; its outputs have no place on the page."""
        mask = gr.File(label="Mask (NIfTI, uint8, on the scan's grid)", visible=False)
        report = gr.JSON(label="Report", visible=False)
        gr.Button(visible=False).click(
            self.handlers.segment,
            [self.inputs.scan, self.inputs.threshold],
            [mask, report],
            api_name="segment",
            concurrency_id="model",
        )
