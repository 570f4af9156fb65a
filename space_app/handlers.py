"""What happens when something on the page is used: every scan comes in and goes out as a value."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from analysis import Analysis, Analyst
from downloads import KINDS, Packed, write_mask
from drawing import draw_slice, inline_picture
from example_cases import Cases
from layers import Layer, pack_layers, pack_outlines, pack_spread
from model_choice import Models
from scan_reading import REFUSE, Report
from thresholds import source_of
from traffic import HandedOver
from uploads import ENDINGS, UploadRegister
from words import write_findings, write_result

from modeling_rasalore.reports.findings import locate_main_finding

SCORES, DOUBT = "Anomaly score", "Uncertainty"
PROGRESS = gr.Progress()  # as a default value, Gradio puts a request's own in


class Handlers:
    """Methods for Gradio events. Nothing of a request stays here but the names of its files."""

    def __init__(self, models: Models):
        self.models = models
        self.cases = Cases(models)
        self.uploads = UploadRegister()
        self.handed_over = HandedOver()

    @property
    def usual(self) -> Analyst:
        """The model whose thresholds the page offers before there is a scan."""
        return self.models.open(self.models.first)

    def analyse_upload(
        self,
        scan: str | None,
        brain_mask: str | None,
        strip: str,
        model: str | None,
        preset: str | None,
        threshold: float | None,
        progress: gr.Progress = PROGRESS,
    ) -> Analysis:
        """Read an uploaded scan and its brain mask, delete their files, and score the brain."""
        with one_line_errors():
            if scan is None:
                raise ValueError(f"Choose a scan first; its file ends in one of {ENDINGS}.")
            with ExitStack() as stack:
                path = stack.enter_context(self.uploads.reading(scan))
                mask = None
                if brain_mask is not None:
                    mask = stack.enter_context(self.uploads.reading(brain_mask))
                offer, read = self.models.read(path, model, mask, strip)
            analyst = self.models.open(offer)
            at = analyst.settle_threshold(preset, threshold)
            return analyst.analyse(read, at, progress)

    def analyse_case(self, title: str, progress: gr.Progress = PROGRESS) -> Analysis:
        """Open an example case; the model computes where its scores are not stored."""
        with one_line_errors():
            return self.cases.analyse(title, progress)

    def open_first_case(self) -> Analysis | None:
        """Open the case that an empty page shows; None where none is stored for the model."""
        return None if self.cases.first is None else self.analyse_case(self.cases.first)

    def show(
        self, analysis: Analysis | None, preset: str | None, threshold: float | None
    ) -> tuple[str, str, dict[str, Any] | None, Any, Any]:
        """Return sentences, findings, what the viewer shows, and the thresholds of its model."""
        if analysis is None:
            return "", "", None, gr.skip(), gr.skip()
        analyst = analysis.analyst
        at = analyst.settle_threshold(preset, threshold)
        shown = pack_layers(analysis, at) | {
            "from_dicom": bool(analysis.scan.slice_headers),
            "draws_noise": analyst.draws_noise,
        }
        words = [p.words for p in analyst.presets]
        chosen = next((p.words for p in analyst.presets if p.threshold == at), None)
        radio = gr.Radio(words, value=chosen)
        return *self.describe(analysis, at), shown, radio, at

    def describe(self, analysis: Analysis | None, threshold: float | None) -> tuple[str, str]:
        """Return the sentences and the findings at a threshold."""
        if analysis is None:
            return "", ""
        report = report_at(analysis, threshold)
        return write_result(report, analysis.told), write_findings(report)

    def outline(
        self, analysis: Analysis | None, threshold: float | None
    ) -> tuple[str, str, Layer | None]:
        """Return the sentences, the findings and the outlines at another threshold."""
        result, findings = self.describe(analysis, threshold)
        if analysis is None:
            return result, findings, None
        return result, findings, pack_outlines(analysis, threshold_of(analysis, threshold))

    def doubt(self, analysis: Analysis | None) -> Layer | None:
        """Return the uncertainty of the whole scan as a layer of the viewer."""
        if analysis is None:
            return None
        with one_line_errors():
            return pack_spread(analysis, analysis.analyst.whole_uncertainty(analysis))

    def preset(self, analysis: Analysis | None, words: str) -> float:
        """Return the threshold of a preset of the model that made a result."""
        analyst = self.usual if analysis is None else analysis.analyst
        return analyst.settle_threshold(words, None)

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
            spread = analysis.analyst.uncertainty(analysis, number) if what == DOUBT else None
            mask = analysis.at(threshold_of(analysis, threshold)).mask
            picture = draw_slice(analysis, number, mask, opacity or 0, spread)
        return inline_picture(picture, f"Slice {number} with overlay")

    def open_slices(self, analysis: Analysis | None, wanted: bool, threshold: float | None) -> Any:
        """Go to the slice of the first finding, where the server draws."""
        if analysis is None or not wanted:
            return gr.skip()
        prediction = analysis.at(threshold_of(analysis, threshold))
        centre = locate_main_finding(prediction.mask, prediction.scores)
        count = len(analysis.images)
        index = count // 2 if centre is None else centre[0]
        return gr.Slider(maximum=count - 1, value=index, label=f"Slice, 0 to {count - 1}")

    def pack(self, analysis: Analysis | None, threshold: float | None, kind: str) -> Packed | None:
        """Return a file as the page saves it; nothing of it stays on the disk."""
        if analysis is None:
            return None
        at = threshold_of(analysis, threshold)
        with one_line_errors():
            return KINDS[kind](analysis, at, source_of(at, analysis.analyst.presets))

    def segment(
        self,
        scan: str | None,
        threshold: float | None = None,
        brain_mask: str | None = None,
        strip: str = REFUSE,
        model: str | None = None,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[str, Report]:
        """Segment anomalies in a brain MRI scan. Research only, not a medical device.

        Args:
            scan: stripped brain, NIfTI, NRRD, mha, mgz or zipped DICOM, uploaded to this app.
            threshold: in [0, 1]; a voxel is marked when its score is above it; null: the model's.
            brain_mask: where a scan shows a whole head: mask of its brain, uploaded like it.
            strip: what to do with a scan that shows more than a brain, without a mask of it.
            model: which one reads the scan; several are chosen from by the scan's sequence.

        Returns:
            The mask as NIfTI on the scan's own grid, which can be fetched once.
            A report. Where `unfit_because` is not empty, do not rely on its numbers. Millilitres
            and every finding. An empty mask does not exclude disease.
        """  # agents see the first line of each argument only
        analysis = self.analyse_upload(scan, brain_mask, strip, model, None, threshold, progress)
        # In Gradio's own folder the file is served as it is; it is deleted once it was fetched.
        folder = Path(tempfile.mkdtemp(dir=Path(str(scan)).parents[1]))
        mask = write_mask(analysis, threshold_of(analysis, threshold), folder)
        self.handed_over.add(str(mask))
        return str(mask), report_at(analysis, threshold)


def threshold_of(analysis: Analysis, threshold: float | None) -> float:
    """Return a threshold for a result; its model's usual one where the field was emptied."""
    with one_line_errors():
        return analysis.analyst.settle_threshold(None, threshold)


def report_at(analysis: Analysis, threshold: float | None) -> Report:
    """Return what programs are told of a result at a threshold."""
    at = threshold_of(analysis, threshold)
    return analysis.report(at, source_of(at, analysis.analyst.presets))


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
