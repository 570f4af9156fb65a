"""What happens when something on the page is used: every scan comes in and goes out as a value."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from analysis import Analysis, Analyst, Report, read_scan
from downloads import KINDS, Packed, write_mask
from drawing import draw_slice, inline_picture
from example_cases import Cases
from layers import Layer, pack_layers, pack_outlines, pack_spread
from thresholds import source_of
from traffic import HandedOver
from uploads import ENDINGS, UploadRegister
from words import write_findings, write_result

from modeling_rasalore.reports.findings import locate_main_finding

SCORES, DOUBT = "Anomaly score", "Uncertainty"
PROGRESS = gr.Progress()  # as a default value, Gradio puts a request's own in


class Handlers:
    """Methods for Gradio events. Nothing of a request stays here but the names of its files."""

    def __init__(self, analyst: Analyst):
        self.analyst = analyst
        self.cases = Cases(analyst)
        self.uploads = UploadRegister()
        self.handed_over = HandedOver()

    def analyse_upload(
        self, scan: str | None, threshold: float | None, progress: gr.Progress = PROGRESS
    ) -> Analysis:
        """Read an uploaded scan, delete its file, and score it."""
        with one_line_errors():
            if scan is None:
                raise ValueError(f"Choose a scan first; its file ends in one of {ENDINGS}.")
            with self.uploads.reading(scan) as path:
                read = read_scan(path, self.analyst.trained_on)
            return self.analyst.analyse(read, self.threshold_or_usual(threshold), progress)

    def analyse_case(self, title: str, progress: gr.Progress = PROGRESS) -> Analysis:
        """Open an example case; the model computes where its scores are not stored."""
        with one_line_errors():
            return self.cases.analyse(title, progress)

    def open_first_case(self) -> Analysis | None:
        """Open the case that an empty page shows; None where none is stored for the model."""
        return None if self.cases.first is None else self.analyse_case(self.cases.first)

    def threshold_or_usual(self, threshold: float | None) -> float:
        """Return the threshold, or the model's usual one where its field was emptied."""
        if threshold is None:
            return self.analyst.options.threshold
        with one_line_errors():  # a number outside [0, 1]
            return replace(self.analyst.options, threshold=threshold).threshold

    def show(
        self, analysis: Analysis | None, threshold: float | None
    ) -> tuple[str, str, dict[str, Any] | None]:
        """Return the sentences, the findings, and what the viewer shows."""
        result, findings = self.describe(analysis, threshold)
        if analysis is None:
            return result, findings, None
        shown = pack_layers(analysis, self.threshold_or_usual(threshold))
        return result, findings, shown | {"from_dicom": bool(analysis.scan.slice_headers)}

    def describe(self, analysis: Analysis | None, threshold: float | None) -> tuple[str, str]:
        """Return the sentences and the findings at a threshold."""
        if analysis is None:
            return "", ""
        report = self.report(analysis, threshold)
        return write_result(report, analysis.told), write_findings(report)

    def report(self, analysis: Analysis, threshold: float | None) -> Report:
        """Return what programs are told of a result at a threshold."""
        threshold = self.threshold_or_usual(threshold)
        return analysis.report(threshold, source_of(threshold, self.analyst.presets))

    def outline(
        self, analysis: Analysis | None, threshold: float | None
    ) -> tuple[str, str, Layer | None]:
        """Return the sentences, the findings and the outlines at another threshold."""
        result, findings = self.describe(analysis, threshold)
        if analysis is None:
            return result, findings, None
        return result, findings, pack_outlines(analysis, self.threshold_or_usual(threshold))

    def doubt(self, analysis: Analysis | None) -> Layer | None:
        """Return the uncertainty of the whole scan as a layer of the viewer."""
        if analysis is None:
            return None
        with one_line_errors():
            return pack_spread(analysis, self.analyst.whole_uncertainty(analysis))

    def preset(self, words: str) -> float:
        """Return the threshold of a preset."""
        return next(p.threshold for p in self.analyst.presets if p.words == words)

    def draw(
        self,
        analysis: Analysis | None,
        wanted: bool,
        index: float | None,
        threshold: float | None,
        opacity: float | None,
        what: str,
    ) -> str:
        """Return one coloured slice as HTML, where a browser cannot draw them by itself."""
        if analysis is None or not wanted:
            return ""
        number = min(max(int(index or 0), 0), len(analysis.images) - 1)
        with one_line_errors():
            spread = self.analyst.uncertainty(analysis, number) if what == DOUBT else None
            mask = analysis.at(self.threshold_or_usual(threshold)).mask
            picture = draw_slice(analysis, number, mask, opacity or 0, spread)
        return inline_picture(picture, f"Slice {number} with overlay")

    def open_slices(self, analysis: Analysis | None, wanted: bool, threshold: float | None) -> Any:
        """Go to the slice of the first finding, where the server draws."""
        if analysis is None or not wanted:
            return gr.skip()
        prediction = analysis.at(self.threshold_or_usual(threshold))
        centre = locate_main_finding(prediction.mask, prediction.scores)
        count = len(analysis.images)
        index = count // 2 if centre is None else centre[0]
        return gr.Slider(maximum=count - 1, value=index, label=f"Slice, 0 to {count - 1}")

    def pack(self, analysis: Analysis | None, threshold: float | None, kind: str) -> Packed | None:
        """Return a file as the page saves it; nothing of it stays on the disk."""
        if analysis is None:
            return None
        threshold = self.threshold_or_usual(threshold)
        with one_line_errors():
            return KINDS[kind](analysis, threshold, source_of(threshold, self.analyst.presets))

    def segment(
        self, scan: str | None, threshold: float | None, progress: gr.Progress = PROGRESS
    ) -> tuple[str, Report]:
        """Segment anomalies in a brain MRI scan. Research only, not a medical device.

        Args:
            scan: stripped brain, NIfTI, NRRD, mha, mgz or zipped DICOM, uploaded to this app.
            threshold: in [0, 1]; a voxel is marked when its score is above it; 0.5 is usual.

        Returns:
            The mask as NIfTI on the scan's own grid, which can be fetched once.
            A report. Where `unfit_because` is not empty, do not rely on its numbers. Millilitres
            and every finding. An empty mask does not exclude disease.
        """  # agents see the first line of each argument only
        analysis = self.analyse_upload(scan, threshold, progress)
        # In Gradio's own folder the file is served as it is; it is deleted once it was fetched.
        folder = Path(tempfile.mkdtemp(dir=Path(str(scan)).parents[1]))
        mask = write_mask(analysis, self.threshold_or_usual(threshold), folder)
        self.handed_over.add(str(mask))
        return str(mask), self.report(analysis, threshold)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Tell people in one line what is wrong with their scan; the app goes on."""
    try:
        yield
    except gr.Error:  # told by a handler within this one
        raise
    except (ValueError, MemoryError) as error:
        sentence = (str(error) or "This scan needs more memory than there is.").splitlines()[0]
        raise gr.Error(sentence, print_exception=False) from error
