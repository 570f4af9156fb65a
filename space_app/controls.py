"""What stands on the page: where a scan goes in, and where its results are looked at."""

from typing import NamedTuple

import gradio as gr
from handlers import DOUBT, SCORES
from page import BRAIN, LEGEND
from uploads import take_uploads_only

from modeling_rasalore.formats.endings import ALONE


class Inputs(NamedTuple):
    """The first column: what is asked for, and the sentences of the answer."""

    scan: gr.File
    run: gr.Button
    example: gr.Button
    threshold: gr.Slider
    summary: gr.Markdown


class Results(NamedTuple):
    """The second column, hidden until there is something to see."""

    column: gr.Column
    view: gr.ImageSlider
    slice_index: gr.Slider
    opacity: gr.Slider
    what: gr.Radio
    table: gr.Markdown
    save_mask: gr.Button
    save_report: gr.Button
    show_brain: gr.Button


def place_inputs() -> Inputs:
    """Put the first column into the row that is open."""
    with gr.Column(scale=1, min_width=300):
        return Inputs(
            scan=place_upload(),
            run=gr.Button("Find anomalies", variant="primary", elem_id="run"),
            example=gr.Button("Try a synthetic brain (T2)", elem_id="example"),
            threshold=gr.Slider(
                0,
                1,
                0.5,
                step=0.01,
                label="Threshold: score above which a voxel is marked",
                elem_id="threshold",
            ),
            summary=gr.Markdown(elem_id="summary", min_height=80),  # room for the progress
        )


def place_upload() -> gr.File:
    """Put the field that takes a scan's file."""
    return take_uploads_only(
        gr.File(
            label="Brain scan (NIfTI, NRRD, MetaImage, MGH or DICOM zip, up to 100 MB)",
            file_types=[".nii", ".nii.gz", ".zip", ".dcm", *ALONE],
            height=150,
            elem_id="scan",
        )
    )


def place_results(draws_noise: bool) -> Results:
    """Put the second column; only a model that draws noise has an uncertainty to show."""
    with gr.Column(scale=2, min_width=300, visible=False) as column:
        view = gr.ImageSlider(
            label="Scan and overlay", max_height=800, buttons=[], elem_id="slice-view"
        )
        slice_index = gr.Slider(0, 1, 0, step=1, label="Slice", elem_id="slice")
        opacity, what = place_colours(draws_noise)
        gr.Markdown(LEGEND)
        table = gr.Markdown(label="Volumes", elem_id="volumes")
        save_mask, save_report = place_downloads()
        show_brain = gr.Button("Show in 3-D", elem_id="show-brain")
        gr.HTML(BRAIN, elem_id="brain")
    return Results(
        column, view, slice_index, opacity, what, table, save_mask, save_report, show_brain
    )


def place_colours(draws_noise: bool) -> tuple[gr.Slider, gr.Radio]:
    """Put what changes the overlay's colours: how strong they are, what they show."""
    with gr.Row():
        opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the colours")
        choices = [SCORES, DOUBT] if draws_noise else [SCORES]
        return opacity, gr.Radio(choices, value=SCORES, label="Colours show")


def place_downloads() -> tuple[gr.Button, gr.Button]:
    """Put the two buttons that save a file."""
    with gr.Row():
        return (
            gr.Button("Download mask (NIfTI)", elem_id="save-mask"),
            gr.Button("Download report (JSON)", elem_id="save-report"),
        )
