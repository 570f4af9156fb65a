"""The page without a server: assembled once, served as plain files, used as a person does."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from space_pages import DRAWN, download

from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.publishing.browser_page import complete_page
from modeling_rasalore.scans.volumes import read_mask, read_volume

SOURCE = Path(__file__).parents[2] / "space_app" / "static"
READY = "body[data-ready]"
RESULT = "body[data-state='result'] #result"
READ = """async ([content, name]) => {
  const { readScan, unpack, writeMask } = await import('/nifti.js');
  const given = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const encode = (bytes) => btoa([...bytes].map((byte) => String.fromCharCode(byte)).join(''));
  try {
    const scan = readScan(await unpack(given));
    const mask = writeMask(Uint8Array.from(scan.slices, (value) => value > 100), scan);
    return { ...scan, slices: encode(new Uint8Array(scan.slices.buffer)), mask: encode(mask) };
  } catch (error) {
    return { refused: error.message, kind: error.constructor.name };
  }
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line per request."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving_page(folder: Path) -> Iterator[str]:
    """Assemble the page in a new folder and serve it on loopback; gives its address."""
    complete_page(SOURCE, folder)
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def read_in_browser(page: Any, path: Path) -> dict[str, Any]:
    """What the page's script reads of a file: slices, a mask of all above 100, or a refusal."""
    return page.evaluate(READ, [base64.b64encode(path.read_bytes()).decode(), path.name])


def analyse(page: Any, scan: Path, sequence: str) -> None:
    """Choose a file and its sequence, and wait until it is drawn."""
    page.set_input_files("#file", str(scan))
    page.wait_for_selector(f"#chosen >> text={scan.name}")
    page.check(f"[name=sequence][value={sequence}]")
    page.click("#analyse")
    page.wait_for_selector(f"{RESULT} >> text={scan.name}", state="attached")
    page.wait_for_selector(DRAWN)


def compare_with_package(page: Any, scan: Path, sequence: str, folder: Path) -> dict[str, float]:
    """How the page's mask and numbers differ from what `rasalore predict` says of a scan.

    Returns:
        share: of voxels in which the masks differ.
        voxels: that the package marks.
        millilitres: by which the page's number differs.
    """
    analyse(page, scan, sequence)
    volume = read_volume(scan)
    prediction = predict_volume(*load_model(modality=sequence, device="cpu"), volume)
    mask = read_mask(download(page, "mask", folder), volume)
    report = json.loads(download(page, "numbers", folder).read_text("utf-8"))
    return {
        "share": float(np.mean(mask != prediction.mask)),
        "voxels": float(prediction.mask.sum()),
        "millilitres": abs(report["millilitres"] - prediction.millilitres),
    }
