"""Words and markup of the page; its looks and scripts are the files of `browser/`."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from modeling_rasalore.provenance import DISCLAIMER

BROWSER = Path(__file__).parent / "browser"
SCRIPTS = ("viewer.js", "controls.js", "page.js")
TITLE = "RASALoRE: anomalies in brain MRI"
WARNING = f'<p role="note"><strong>{DISCLAIMER}</strong></p>'
# Filled by the page's script: what went wrong stays until the next scan.
MESSAGE = (
    '<div id="message" role="alert" tabindex="-1" hidden></div><p id="status" role="status"></p>'
)
EMPTY = """<h2>Nothing to see yet</h2><p>Upload a scan, or open one of the examples: synthetic
patients, with the outline of the true lesion.</p>"""
VIEWER = (BROWSER / "viewer.html").read_text("utf-8")
LEGEND = """<p>R is the patient's right, which is on the left; slices are counted from below. Purple
to orange is the anomaly score, the yellow line the mask, the blue one the truth of an example.
Uncertainty, in blue, is how much a score depends on the model's own noise.</p>"""

# Fonts that every system has: the page loads nothing from elsewhere.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue=gr.themes.colors.indigo,
    neutral_hue=gr.themes.colors.slate,
    font=FONTS,
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(  # the defaults are too pale to read for many
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
)
# In the head, and not as Gradio's own `css`, which would begin each rule inside its container.
HEAD = f"<style>{(BROWSER / 'page.css').read_text('utf-8')}</style>" + "".join(
    f"<script>{(BROWSER / name).read_text('utf-8')}</script>" for name in SCRIPTS
)


def introduction(sequences: Sequence[str]) -> str:
    """Return what the page is and what it reads.

    Args:
        sequences: that its models were trained on; empty: not known.
    """
    names = " or ".join(f"**{sequence.upper()}**" for sequence in sequences)
    reads = names or "one MRI sequence (not recorded which)"
    which = " Which of them yours is, is recognised." * (len(sequences) > 1)
    return (
        f"# {TITLE}\n\nReads {reads} scans of **skull-stripped** brains.{which} Your file is "
        "deleted as soon as it is read, the scan forgotten when you leave the page."
    )


def call_page(name: str) -> str:
    """Return the script of an event that calls a function of the page's script."""
    return f"(given) => {{ window.page.{name}(given); }}"


def ask_page(name: str) -> str:
    """Return the script of an event whose outputs are what a function of the page's script says."""
    return f"(...given) => window.page.{name}(...given)"
