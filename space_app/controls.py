"""What stands on the page: where a scan goes in, and where its results are looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr
from downloads import KINDS
from handlers import DOUBT, SCORES, Handlers
from model_choice import Models
from page import EMPTY, LEGEND, MESSAGE, VIEWER
from scan_reading import REFUSE
from thresholds import Preset
from uploads import take_uploads_only


class Inputs(NamedTuple):
    """The first column: what is asked for.

    Attributes:
        scan: analysed as soon as it is uploaded.
        brain_mask, strip, model: how it is read.
        cases: buttons of the examples.
        preset, threshold: from which score on a voxel is marked.
    """

    scan: gr.File
    brain_mask: gr.File
    strip: gr.Radio
    model: gr.Radio
    cases: list[gr.Button]
    preset: gr.Radio
    threshold: gr.Slider


class Slices(NamedTuple):
    """What the server draws, where the browser has no WebGL2."""

    wanted: gr.Button
    view: gr.HTML
    number: gr.Slider
    opacity: gr.Slider
    what: gr.Radio


class Results(NamedTuple):
    """The second column: progress, or what there is to see of a result."""

    progress: gr.HTML
    result: gr.HTML
    findings: gr.HTML
    slices: Slices
    saves: dict[str, gr.Button]
    doubt: gr.Button


def place_inputs(handlers: Handlers) -> Inputs:
    """Put the first column into the row that is open."""
    with gr.Column(scale=1, min_width=240, elem_id="inputs"):
        scan = place_upload("Brain scan, up to 100 MB", "scan", 160)
        brain_mask, strip, model = place_reading(handlers.models)
        gr.HTML("<h2>Or open an example</h2>", elem_id="examples-title")
        with gr.Row(elem_id="examples"):
            cases = [gr.Button(title, size="sm") for title in handlers.cases.cases]
        analyst = handlers.usual
        preset, threshold = place_thresholds(analyst.presets, analyst.options.threshold)
    return Inputs(scan, brain_mask, strip, model, cases, preset, threshold)


def place_upload(label: str, name: str, height: int) -> gr.File:
    """Put a field that takes a file; what does not fit is told beside the scan, and stays."""
    return take_uploads_only(gr.File(label=label, height=height, elem_id=name))


def place_reading(models: Models) -> tuple[gr.File, gr.Radio, gr.Radio]:
    """Put what may be said of a scan before it is given: where its brain is, which model."""
    several = len(models.titles) > 1
    with gr.Accordion("Brain mask" + " and model" * several, open=False, elem_id="reading"):
        gr.Markdown("Choose before you give the scan.")
        brain_mask = place_upload("Brain mask", "brain-mask", 120)
        strip = gr.Radio(
            models.ways,
            value=REFUSE,
            label="If the scan shows more than a brain",
            elem_id="strip",
        )
        model = gr.Radio(
            models.titles, value=models.titles[0], label="Model", visible=several, elem_id="model"
        )
    # Words that are no choice are refused by the handlers, after the scan's file was deleted.
    for radio in (strip, model):
        vars(radio).update(preprocess=lambda payload: payload)
    return brain_mask, strip, model


def place_thresholds(presets: Sequence[Preset], threshold: float) -> tuple[gr.Radio, gr.Slider]:
    """Put the choice of a threshold: by what it marks of healthy brain, or by its number.

    Args:
        presets: to choose from.
        threshold: that is chosen at first, one of theirs.
    """
    words = [preset.words for preset in presets]
    usual = next(preset for preset in presets if preset.threshold == threshold)
    radio = gr.Radio(words, value=usual.words, label="Threshold", elem_id="preset")
    with gr.Accordion("Advanced: threshold", open=False, elem_id="advanced"):
        slider = gr.Slider(
            0,
            1,
            threshold,
            step=0.01,
            label="Score above which a voxel is marked",
            elem_id="threshold",
        )
    # A number outside the range is refused by the handlers, after the scan's file was deleted.
    vars(slider).update(preprocess=lambda payload: payload)
    return radio, slider


def place_results() -> Results:
    """Put the second column."""
    with gr.Column(scale=4, min_width=300, elem_id="outputs"):
        gr.HTML(MESSAGE, elem_id="told")
        progress = gr.HTML(elem_id="progress")
        gr.HTML(EMPTY, elem_id="empty")
        with gr.Column(elem_id="results"):
            result = gr.HTML(elem_id="summary")
            gr.HTML(VIEWER, elem_id="viewer")
            slices = place_slices()
            findings = gr.HTML(elem_id="findings")
            saves = place_downloads()
            doubt = gr.Button("Uncertainty", visible="hidden", elem_id="doubt")
            gr.HTML(LEGEND, elem_id="legend")
    return Results(progress, result, findings, slices, saves, doubt)


def place_slices() -> Slices:
    """Put the slices that the server draws, hidden until a browser asks for them."""
    with gr.Column(elem_id="slices"):
        wanted = gr.Button("Draw slices", visible="hidden", elem_id="want-slices")
        view = gr.HTML(elem_id="slice-view")
        number = gr.Slider(0, 1, 0, step=1, label="Slice", elem_id="slice")
        with gr.Row():
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the colours")
            what = gr.Radio([SCORES, DOUBT], value=SCORES, label="Colours show")
    return Slices(wanted, view, number, opacity, what)


def place_downloads() -> dict[str, gr.Button]:
    """Put one button per kind of file to take away."""
    with gr.Row(elem_id="saves"):
        return {kind: gr.Button(f"⬇ {kind}", size="sm", elem_id=name_id(kind)) for kind in KINDS}


def name_id(kind: str) -> str:
    """Return the id of a button that saves a kind of file, such as "save-mask-nifti"."""
    words = "".join(letter if letter.isalnum() else " " for letter in kind.lower()).split()
    return "-".join(["save", *words])
