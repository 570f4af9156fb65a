"""What happens when something on the page is used: every scan comes in and goes out as a value."""

import base64
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from analysis import Analysis, Analyst, Report, read_scan
from drawing import draw_slice, inline_picture, write_summary, write_table
from traffic import HandedOver
from uploads import UploadRegister

EXAMPLE = Path(__file__).parent / "examples" / "synthetic_t2.nii.gz"
SCORES, DOUBT = "Anomaly score", "Uncertainty"
PROGRESS = gr.Progress(track_tqdm=True)  # as a default value, Gradio puts a request's own in


class Handlers:
    """Methods for Gradio events. Nothing of a request stays here but the names of its files."""

    def __init__(self, analyst: Analyst):
        self.analyst = analyst
        self.uploads = UploadRegister()
        self.handed_over = HandedOver()

    def analyse_upload(
        self, scan: str | None, threshold: float, progress: gr.Progress = PROGRESS
    ) -> Analysis:
        """Read an uploaded scan, delete its file, and score it."""
        if scan is None:
            raise gr.Error(
                "Choose a scan first: NIfTI, NRRD, MetaImage, MGH or zipped DICOM.",
                print_exception=False,
            )
        with one_line_errors():
            with self.uploads.reading(scan) as path:
                read = read_scan(path, self.analyst.trained_on)
            return self.analyst.analyse(read, threshold, progress)

    def analyse_example(self, threshold: float, progress: gr.Progress = PROGRESS) -> Analysis:
        """Score the synthetic brain that comes with the app."""
        with one_line_errors():
            return self.analyst.analyse(read_scan(EXAMPLE), threshold, progress)

    def open_results(self, analysis: Analysis, threshold: float) -> tuple[Any, ...]:
        """Empty the upload, show the results, and go to the slice with the largest mask."""
        count = len(analysis.images)
        largest = analysis.at(threshold).largest_slice
        index = count // 2 if largest is None else largest
        slider = gr.Slider(maximum=count - 1, value=index, label=f"Slice, 0 to {count - 1}")
        return None, gr.Column(visible=True), slider

    def draw(
        self, analysis: Analysis | None, index: float, threshold: float, opacity: float, what: str
    ) -> list[dict[str, Any]] | None:
        """Return the plain and the coloured slice, inline: no file is made of them."""
        if analysis is None:
            return None
        number = min(max(int(index), 0), len(analysis.images) - 1)
        with one_line_errors():
            spread = self.analyst.uncertainty(analysis, number) if what == DOUBT else None
            mask = analysis.at(threshold).mask
            pictures = draw_slice(analysis, number, mask, opacity, spread)
        return [inline_picture(picture) for picture in pictures]

    def describe(self, analysis: Analysis | None, threshold: float) -> tuple[str, str]:
        """Return the sentences and the table about the result at a threshold."""
        if analysis is None:
            return "", ""
        report = analysis.report(threshold)
        summary = write_summary(report["input"], analysis.at(threshold), report["warnings"])
        return summary, write_table(report)

    def pack_mask(self, analysis: Analysis, threshold: float) -> dict[str, str]:
        """Return the mask as the page saves it; its file is gone when this returns."""
        with tempfile.TemporaryDirectory() as folder:
            path = analysis.write_mask(threshold, folder)
            return pack(path.name, path.read_bytes())

    def pack_view(self, analysis: Analysis | None, threshold: float) -> list[dict[str, str]]:
        """Return scan and mask as the 3-D view takes them; their files are gone by then."""
        if analysis is None:
            raise gr.Error("Find anomalies first.", print_exception=False)
        with tempfile.TemporaryDirectory() as folder:
            paths = analysis.write_picture(folder), analysis.write_mask(threshold, folder)
            return [pack(path.name, path.read_bytes()) for path in paths]

    def pack_report(self, analysis: Analysis, threshold: float) -> dict[str, str]:
        """Return the report as the page saves it."""
        text = json.dumps(analysis.report(threshold), indent=2)
        return pack(f"{analysis.stem}.json", text.encode())

    def segment(
        self, scan: str | None, threshold: float, progress: gr.Progress = PROGRESS
    ) -> tuple[str, Report]:
        """Segment anomalies in a brain MRI scan. Research only, not a medical device.

        Args:
            scan: stripped brain, NIfTI, NRRD, mha, mgz or zipped DICOM, uploaded to this app.
            threshold: in [0, 1]; a voxel is marked when its score is above it; 0.5 is usual.

        Returns:
            The mask as NIfTI on the scan's own grid, which can be fetched once.
            A report: millilitres and every finding. An empty mask does not exclude disease.
        """  # agents see the first line of each argument only
        analysis = self.analyse_upload(scan, threshold, progress)
        # In Gradio's own folder the file is served as it is; it is deleted once it was fetched.
        mask = analysis.write_mask(threshold, tempfile.mkdtemp(dir=Path(str(scan)).parents[1]))
        self.handed_over.add(str(mask))
        return str(mask), analysis.report(threshold)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell people in one line what is wrong with their scan; the app goes on."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        sentence = (str(error) or "This scan needs more memory than there is.").splitlines()[0]
        raise gr.Error(sentence, print_exception=False) from error


def pack(name: str, content: bytes) -> dict[str, str]:
    """Return a file as the page's script turns it into a download."""
    return {"name": name, "content": base64.b64encode(content).decode()}
