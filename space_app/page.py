"""Words, looks and the one script of the page."""

import gradio as gr
from drawing import LARGEST_SPREAD

from modeling_rasalore.reports import DISCLAIMER

TITLE = "RASALoRE: anomalies in brain MRI"
WARNING = f'<p role="note"><strong>{DISCLAIMER}</strong></p>'
INTRODUCTION = f"""# {TITLE}

Upload a **skull-stripped** brain scan as NIfTI. The model was trained on one MRI sequence and on
labels that only say which slices are unhealthy. Your scan's file is deleted as soon as it is read;
the scan is forgotten when you leave the page.
"""
LEGEND = f"""Left of the handle: the scan. Right of it: purple to orange is the anomaly score, the
yellow line is the mask. As uncertainty, blue to cyan is the spread of the score under the model's
own noise, up to {LARGEST_SPREAD}. Slices are counted from below; the patient's right is on the
left, the front is up.
"""

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

CSS = """
.gradio-container { max-width: 1200px !important; margin: auto; padding-top: 48px !important; }
#warning {
  position: fixed; top: 0; left: 0; right: 0; z-index: 50;
  background: #7c2d12; border-radius: 0; padding: 6px 12px;
}
@media (max-width: 640px) {
  .gradio-container { padding-top: 76px !important; }
  #warning { font-size: 13px; line-height: 1.3; }
}
#warning p, #warning strong { color: #ffffff !important; margin: 0; text-align: center; }
#volumes table { width: 100%; }
#slice-view img { background: #000000; }
button:focus-visible, input:focus-visible, a:focus-visible {
  outline: 3px solid #4f46e5; outline-offset: 2px;
}
"""

# A file comes as base64 and is saved by the browser, so that it never lies on the server.
SAVE_FILE = """(file) => {
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type: 'application/octet-stream'}));
  link.download = file.name;
  document.body.appendChild(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
