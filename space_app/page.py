"""Words, looks and the one script of the page."""

import gradio as gr

from modeling_rasalore.provenance import DISCLAIMER

TITLE = "RASALoRE: anomalies in brain MRI"
WARNING = f'<p role="note"><strong>{DISCLAIMER}</strong></p>'
INTRODUCTION = f"""# {TITLE}

Upload a **skull-stripped** brain scan as NIfTI (or NRRD, MetaImage, MGH), or as one DICOM series in
a zip. The model was trained on one MRI sequence and on labels that only say which slices are
unhealthy. Your scan's file is deleted as soon as it is read; the scan is forgotten when you leave
the page.
"""
LEGEND = """Left of the handle: the scan. Right of it: purple to orange is the anomaly score, the
yellow line is the mask. As uncertainty, blue to cyan is how much the score depends on the model's
own noise, compared with the slice's most uncertain places. Slices are counted from below; the
patient's right is on the left, the front is up.
"""
BRAIN = """<div id="brain-frame"><canvas id="brain-canvas" tabindex="0" role="img"
  aria-label="Brain in 3-D with the mask in yellow" aria-describedby="brain-help"></canvas></div>
<p id="brain-help">Drag it, or use the arrow keys, to turn it; scroll, + or - to zoom.
The mask is the one at the threshold of the moment you asked.</p>"""

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
  #introduction { margin-top: 36px; }
  #warning p, #warning strong { font-size: 13px; line-height: 1.3; }
  #brain-frame { height: 320px; }
  #volumes th, #volumes td { padding: 4px 8px; }
}
#warning p, #warning strong { color: #ffffff !important; margin: 0; text-align: center; }
#volumes table { width: 100%; }
#volumes th, #volumes td { white-space: nowrap; }
#brain-help { margin-top: 8px; }
footer .divider { display: none; }
#slice-view img { background: #000000 !important; }
#brain { display: none; }
#brain.shown { display: block; }
#brain-frame { height: 420px; background: #000000; }
button:focus-visible, input:focus-visible, a:focus-visible, canvas:focus-visible {
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

# The library comes from this server, the volumes as base64: nothing of them lies anywhere.
SHOW_BRAIN = """async (files) => {
  const box = document.querySelector('#brain');
  const canvas = document.querySelector('#brain-canvas');
  box.classList.add('shown');
  try {
    if (!window.niivue) await new Promise((done, failed) => {
      const script = document.createElement('script');
      script.src = new URL('niivue/niivue.umd.js', window.gradio_config.root + '/').href;
      script.onload = done;
      script.onerror = () => failed(new Error('the viewer did not load'));
      document.head.appendChild(script);
    });
    const { Niivue, NVImage } = window.niivue;
    if (!canvas.viewer) {
      const viewer = new Niivue({
        backColor: [0, 0, 0, 1], dragAndDropEnabled: false, isOrientCube: true, logLevel: 'error',
      });
      await viewer.attachToCanvas(canvas);
      viewer.setSliceType(viewer.sliceTypeRender);
      canvas.addEventListener('keydown', (event) => {
        const turn = {ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10],
          ArrowDown: [0, -10]}[event.key];
        const zoom = {'+': 1.1, '-': 1 / 1.1}[event.key];
        if (!turn && !zoom) return;
        event.preventDefault();
        const scene = viewer.scene;
        if (turn) viewer.setRenderAzimuthElevation(
          scene.renderAzimuth + turn[0], scene.renderElevation + turn[1]);
        else viewer.setScale(scene.volScaleMultiplier * zoom);
      });
      canvas.viewer = viewer;
    }
    const viewer = canvas.viewer;
    while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
    const looks = [{colormap: 'gray', opacity: 0.3}, {colormap: 'redyell', cal_min: 0, cal_max: 1}];
    for (const [place, file] of files.entries()) viewer.addVolume(
      await NVImage.loadFromBase64({name: file.name, base64: file.content, ...looks[place]}));
    viewer.setScale(1.5);
    canvas.dataset.volumes = viewer.volumes.length;
    box.scrollIntoView({block: 'nearest'});
  } catch (error) {
    document.querySelector('#brain-help').textContent =
      'This browser shows no 3-D view (' + error.message + '); the slices show the same.';
  }
}"""
HIDE_BRAIN = """() => document.querySelector('#brain').classList.remove('shown')"""
