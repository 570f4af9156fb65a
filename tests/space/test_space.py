"""The Space without a server: what is seen and taken away of a result."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from odd_sizes import (
    one_coronal_slice,
    one_sagittal_slice,
    stretched_scan,
)
from space import read_numbers, unpack

from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import (
    predict_volume,
)
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import Analysis, say_nothing
from drawing import draw_slice
from handlers import DOUBT, SCORES, Handlers
from layers import MASK_BIT, TRUTH_BIT, pack_layers, window_of
from scan_reading import read_scan
from thresholds import OWN

MASK, MAP, NUMBERS, PAGE = "Mask (NIfTI)", "Scores (NIfTI)", "Numbers (JSON)", "Report (HTML)"


def test_the_downloaded_mask_is_that_of_predict_volume(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    volume = analysis.scan.volume
    for threshold in (0.5, 0.501):
        path = unpack(handlers.pack(analysis, threshold, MASK), tmp_path)
        analyst = handlers.usual
        options = PredictionOptions(threshold=threshold)
        expected = predict_volume(analyst.model, analyst.processor, volume, options)
        assert 0 < expected.mask.sum() < expected.mask.size
        assert np.array_equal(read_mask(path, volume), expected.mask)


def test_the_downloaded_scores_are_those_of_the_analysis(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    scores = read_volume(unpack(handlers.pack(analysis, 0.5, MAP), tmp_path))
    assert np.array_equal(scores.slices, analysis.prediction.scores)
    assert np.array_equal(scores.affine, analysis.scan.volume.affine)


def test_the_downloaded_report_is_one_file_with_its_picture_inside(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    page = unpack(handlers.pack(analysis, 0.5, PAGE), tmp_path).read_text("utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "src=" not in page.replace('src="data:', "") and "not a medical device" in page
    assert f"{analysis.at(0.5).millilitres:.1f} mL marked in all" in page
    assert handlers.usual.options.threshold_source in page and len(page) < 3e6


def test_the_viewer_gets_all_layers_cut_to_the_brain_where_they_lie_in_the_world(
    analysis: Analysis, tmp_path: Path
) -> None:
    truth = np.zeros_like(analysis.prediction.mask)
    truth[2, 8, 9] = 1
    layers = pack_layers(replace(analysis, truth=truth), 0.5)
    window = window_of(analysis)
    greys, scores, outlines = (
        read_volume(unpack(layers[name], tmp_path)) for name in ("scan", "scores", "outlines")
    )
    expected = np.clip(analysis.images / analysis.view.white * 255, 0, 255)[window]
    assert np.abs(greys.slices - expected).max() <= 0.5
    assert np.abs(scores.slices - analysis.prediction.scores[window] * 255).max() <= 0.5
    assert np.array_equal(outlines.slices == MASK_BIT, ((analysis.at(0.5).mask > truth)[window]))
    assert (outlines.slices[truth[window] > 0] >= TRUTH_BIT).all()
    corner = [side.start for side in window]
    whole, cut = analysis.scan.volume.geometry, greys.geometry
    assert np.allclose(cut.slice_affine[:3, 3], (whole.slice_affine @ [*corner, 1])[:3])
    assert greys.geometry.axis_codes == "RAS"  # so that the viewer need not turn anything
    assert layers["first_slice"] == corner[0] and layers["has_truth"]


def test_an_analysis_is_looked_at_without_a_scan_of_someone_else(handlers: Handlers) -> None:
    assert handlers.show(None, None, 0.5)[:3] == ("", "", None)
    assert handlers.outline(None, 0.5) == ("", "", None)
    assert handlers.describe(None, 0.5) == ("", "")
    assert handlers.pack(None, 0.5, MASK) is handlers.doubt(None) is None
    assert handlers.draw(None, True, 2, 0.5, 0.5, SCORES) == ""


def test_the_report_follows_the_threshold(handlers: Handlers, analysis: Analysis) -> None:
    report = read_numbers(handlers, analysis, 1.0)
    assert (report["threshold"], report["millilitres"], report["findings"]) == (1.0, 0, [])
    assert report["threshold_source"] == OWN
    assert "not a medical device" in report["disclaimer"]
    whole = analysis.report(0.5, "")
    assert sum(row["millilitres"] for row in whole["findings"]) == pytest.approx(
        whole["millilitres"]
    )


def test_an_emptied_threshold_field_means_the_first_preset(
    handlers: Handlers, analysis: Analysis
) -> None:
    assert handlers.describe(analysis, None) == handlers.describe(analysis, 0.5)
    assert handlers.outline(analysis, None) == handlers.outline(analysis, 0.5)


def test_opacity_colours_and_outlines_change_the_picture(
    handlers: Handlers, analysis: Analysis
) -> None:
    empty = np.zeros_like(analysis.prediction.mask)
    spread = handlers.usual.uncertainty(analysis, 3)
    pictures = {
        draw_slice(analysis, 3, mask, opacity, doubt).tobytes()
        for mask, opacity, doubt in (
            (empty, 0, None),
            (empty, 0.5, None),
            (empty, 0.5, spread),
            (analysis.prediction.mask, 0.5, None),
        )
    }
    assert len(pictures) == 4


def test_pictures_have_the_shape_of_the_brain_in_mm(handlers: Handlers, tmp_path: Path) -> None:
    voxels = np.zeros((40, 40, 3), np.uint8)
    voxels[10:30, 10:30, 1] = np.arange(100, 120)
    path = write_nifti(tmp_path / "scan.nii.gz", voxels, np.diag([-1.0, -2.0, 1.0, 1.0]))
    analysis = handlers.usual.analyse(read_scan(path), 0.5, say_nothing)
    plain = draw_slice(analysis, 1, analysis.prediction.mask, 0.5)
    assert plain.height == pytest.approx(2 * plain.width, abs=1)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (one_sagittal_slice, (256, 1024)),
        (one_coronal_slice, (512, 128)),
        (lambda path: stretched_scan(path, (0.2, 20, 2)), (256, 1024)),
        (lambda path: stretched_scan(path, (0.03, 20, 2)), (256, 1024)),
    ],
)
def test_a_picture_is_bounded_whatever_sizes_the_header_states(
    make: Callable[[Path], Path], size: tuple[int, int], handlers: Handlers, tmp_path: Path
) -> None:
    analysis = handlers.usual.analyse(read_scan(make(tmp_path / "scan.nii.gz")), 0.5, say_nothing)
    tracemalloc.start()
    started = time.process_time()
    picture = draw_slice(analysis, 5, analysis.prediction.mask, 0.5)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert picture.size == size
    assert seconds < 2
    assert peak < 32 * 2**20


def test_a_scan_with_an_empty_mask_can_be_looked_at(handlers: Handlers, analysis: Analysis) -> None:
    assert handlers.draw(analysis, True, 999, 1.0, 0.5, SCORES)
    assert "No anomaly found" in handlers.describe(analysis, 1.0)[0]


def test_pictures_come_inline_and_only_where_the_browser_cannot_draw(
    handlers: Handlers, analysis: Analysis
) -> None:
    for what in (SCORES, DOUBT):
        picture = handlers.draw(analysis, True, 2, 0.5, 0.5, what)
        assert picture.startswith('<img alt="Slice 2 with overlay" src="data:image/png;base64,')
    assert handlers.draw(analysis, False, 2, 0.5, 0.5, SCORES) == ""
    assert handlers.doubt(analysis)
