"""What each control of the page starts, and the endpoint for programs."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from controls import Inputs, Results
from handlers import Handlers
from page import ask_page, call_page

STATE_SECONDS = 1800  # a session's scan is forgotten so long after its last use

# Answers without the model's turn, of which several may be made at once.
QUICK: dict[str, Any] = {
    "concurrency_limit": 4,
    "show_progress": "hidden",
    "api_visibility": "undocumented",
}


class Wiring:
    """Events between the controls of one page; made while the page is being built."""

    def __init__(self, blocks: gr.Blocks, handlers: Handlers, inputs: Inputs, results: Results):
        self.handlers, self.inputs, self.results = handlers, inputs, results
        self.analysis = gr.State(None, time_to_live=STATE_SECONDS)
        self.server_draws = gr.State(False)
        self.layers, self.outlines = gr.JSON(visible=False), gr.JSON(visible=False)
        self.told = [self.analysis, inputs.threshold]
        self.chosen = [inputs.preset, inputs.threshold]
        self.files = [inputs.scan, inputs.brain_mask]
        given = [*self.files, inputs.strip, inputs.model, *self.chosen]
        self.start(inputs.scan.upload, handlers.analyse_upload, given)
        for button in inputs.cases:
            self.start(button.click, handlers.analyse_case, [gr.State(button.value)])
        opened = blocks.load(handlers.open_first_case, None, self.analysis, **QUICK)
        self.show(opened, "open")
        self.follow_threshold()
        self.offer_slices()
        self.offer_files()
        self.add_endpoint()

    def start(self, event: Any, analyse: Callable[..., Any], given: list[Any]) -> None:
        """Let an event analyse a scan; until it ends, nothing of the scan before is to be seen."""
        event(None, None, None, js=call_page("begin"))
        started = event(
            analyse,
            given,
            self.analysis,
            concurrency_id="model",
            show_progress_on=self.results.progress,
            api_visibility="undocumented",
        )
        # Each in one step: once the field is empty, the next scan may be on its way.
        emptied = started.success(None, self.files, self.files, js=ask_page("emptied"))
        self.show(emptied, "show")
        started.failure(None, self.files, self.files, js=ask_page("end"))

    def show(self, ready: Any, how: str) -> None:
        """Show the result that is ready, by a function of the page's script."""
        results = self.results
        outputs = [results.result, results.findings, self.layers, *self.chosen]
        given = [self.analysis, *self.chosen]
        shown = ready.success(self.handlers.show, given, outputs, **QUICK)
        shown = shown.success(None, self.layers, None, js=call_page(how))
        self.draw_slices(shown)

    def draw_slices(self, ready: Any) -> None:
        """Draw the slice of the first finding on the server, if a browser has asked for it."""
        given = [self.analysis, self.server_draws, self.inputs.threshold]
        number = self.results.slices.number
        moved = ready.success(self.handlers.open_slices, given, number, **QUICK)
        moved.success(**self.picture())

    def picture(self) -> dict[str, Any]:
        """How a slice is drawn by the server, where the browser cannot."""
        slices = self.results.slices
        shown = [slices.number, self.inputs.threshold, slices.opacity, slices.what]
        return QUICK | {
            "fn": self.handlers.draw,
            "inputs": [self.analysis, self.server_draws, *shown],
            "outputs": slices.view,
        }

    def follow_threshold(self) -> None:
        """Let numbers, findings and outlines follow the threshold."""
        inputs, results = self.inputs, self.results
        outputs = [results.result, results.findings, self.outlines]
        follow = QUICK | {"fn": self.handlers.outline, "inputs": self.told, "outputs": outputs}
        given = [self.analysis, inputs.preset]
        chosen = inputs.preset.input(self.handlers.preset, given, inputs.threshold, **QUICK)
        moved = inputs.threshold.input(
            lambda: None, None, inputs.preset, **QUICK, trigger_mode="always_last"
        )
        for told in (
            chosen.success(**follow),
            moved.success(**follow, trigger_mode="always_last"),
        ):
            drawn = told.success(None, self.outlines, None, js=call_page("outline"))
            drawn.success(**self.picture())

    def offer_slices(self) -> None:
        """Draw slices on the server once a browser has asked for them."""
        slices = self.results.slices
        self.draw_slices(slices.wanted.click(lambda: True, None, self.server_draws, **QUICK))
        for control in (slices.number, slices.opacity, slices.what):
            control.input(**self.picture(), trigger_mode="always_last")

    def offer_files(self) -> None:
        """Let buttons hand what the server packs to the page's script."""
        for kind, button in self.results.saves.items():
            self.give_to_browser(button, self.handlers.pack, [*self.told, gr.State(kind)], "save")
        self.give_to_browser(self.results.doubt, self.handlers.doubt, [self.analysis], "doubt")

    def give_to_browser(
        self, button: gr.Button, pack: Callable[..., Any], given: list[Any], how: str
    ) -> None:
        """Let a button hand what the server packs to a function of the page's script."""
        packed = gr.JSON(visible=False)
        request = button.click(pack, given, packed, api_visibility="undocumented")
        request.success(None, packed, None, js=call_page(how))

    def add_endpoint(self) -> None:
        """Offer `/segment` to programs; its outputs have no place on the page."""
        mask = gr.File(label="Mask (NIfTI, uint8, on the scan's grid)", visible=False)
        report = gr.JSON(label="Report", visible=False)
        threshold = gr.Number(label="Threshold", visible=False)
        # What is no number is refused by the handlers, after the scan's file was deleted.
        vars(threshold).update(preprocess=lambda payload: payload)
        inputs = self.inputs
        gr.Button(visible=False).click(
            self.handlers.segment,
            [inputs.scan, threshold, inputs.brain_mask, inputs.strip, inputs.model],
            [mask, report],
            api_name="segment",
            concurrency_id="model",
        )
