"""The Space without a server: what its handlers answer, and the files it is made of."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series, zip_series
from odd_formats import compress_series, copy_slices, drop_preambles
from odd_intensities import (
    scans_with_the_same_mask,
    scans_without_a_brain,
    smooth_brain,
    with_spikes,
    write_slices,
)
from odd_sizes import (
    one_coronal_slice,
    one_sagittal_slice,
    scan_of_two_volumes,
    stretched_scan,
)
from space import SPACE, make_handlers, write_scan

from modeling_rasalore import __version__
from modeling_rasalore.evaluation.metrics import dice
from modeling_rasalore.formats.endings import ALONE, WRITERS
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS, PredictionOptions
from modeling_rasalore.prediction.saved_options import save_defaults
from modeling_rasalore.prediction.volume import (
    VolumePrediction,
    describe_model,
    predict_volume,
)
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import Analysis, read_scan, say_nothing
from app import open_model
from drawing import draw_slice
from example_cases import EXAMPLES, RECORD, Case, write_scores
from findings import locate_findings, position_in_words
from gradio.exceptions import Error
from handlers import DOUBT, SCORES, Handlers
from layers import MASK_BIT, TRUTH_BIT, pack_layers, window_of
from thresholds import OWN, source_of
from words import write_findings, write_result

MASK, MAP, NUMBERS, PAGE = "Mask (NIfTI)", "Scores (NIfTI)", "Numbers (JSON)", "Report (HTML)"
EXAMPLE = next(iter(sorted(EXAMPLES.glob("1_*/phantom*.nii.gz"))))
HEAD = (slice(0, 9), slice(0, 9), slice(0, 9))  # a brain that fills its scan


def unpack(packed: dict[str, str] | None, folder: Path) -> Path:
    """The path of a file after it was saved as the page does."""
    assert packed
    path = folder / packed["name"]
    path.write_bytes(base64.b64decode(packed["content"]))
    return path


def read_numbers(handlers: Handlers, analysis: Analysis, threshold: float) -> dict[str, Any]:
    """The report for programs."""
    packed = handlers.pack(analysis, threshold, NUMBERS)
    assert packed
    return json.loads(base64.b64decode(packed["content"]))


@pytest.fixture(scope="module")
def handlers(model: Path) -> Handlers:
    return make_handlers(model)


@pytest.fixture(scope="module")
def analysis(handlers: Handlers, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    scan = read_scan(write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz"))
    return handlers.analyst.analyse(scan, 0.5, say_nothing)


# --- Handlers -------------------------------------------------------------------------------------


def test_the_downloaded_mask_is_that_of_predict_volume(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    volume = analysis.scan.volume
    for threshold in (0.5, 0.501):
        path = unpack(handlers.pack(analysis, threshold, MASK), tmp_path)
        analyst = handlers.analyst
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
    assert handlers.analyst.options.threshold_source in page and len(page) < 3e6


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
    assert handlers.show(None, 0.5) == ("", "", None)
    assert handlers.outline(None, 0.5) == ("", "", None)
    assert handlers.describe(None, 0.5) == ("", "")
    assert handlers.pack(None, 0.5, MASK) is handlers.doubt(None) is None
    assert handlers.draw(None, True, 2, 0.5, 0.5, SCORES) == ""


def test_a_zipped_series_gives_the_mask_and_report_of_its_nifti_file(
    handlers: Handlers, tmp_path: Path
) -> None:
    nifti = read_scan(EXAMPLE)
    voxels = nifti.volume.slices.transpose(2, 1, 0).astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    zipped = read_scan(zip_series(tmp_path / "phantom.zip", series))
    expected, found = (handlers.analyst.analyse(scan, 0.5, say_nothing) for scan in (nifti, zipped))
    path = unpack(handlers.pack(found, 0.5, MASK), tmp_path)
    assert path.name == "phantom_mask.nii.gz"
    assert 0 < expected.prediction.mask.sum() < expected.prediction.mask.size
    assert np.array_equal(read_mask(path, nifti.volume), expected.prediction.mask)
    report = handlers.pack(found, 0.5, NUMBERS)
    assert report and b"DOE" not in base64.b64decode(report["content"])
    assert read_numbers(handlers, found, 0.5)["input"] == "phantom.zip"
    assert read_numbers(handlers, found, 0.5)["findings"] == expected.report(0.5, "")["findings"]
    assert b"DOE" in next(series.iterdir()).read_bytes()


def test_a_series_whose_file_is_gone_still_gives_its_mask_as_dicom(
    handlers: Handlers, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    source = read_volume(write_scan(tmp_path / "scan.nii.gz"))
    voxels = source.slices.transpose(2, 1, 0).astype(np.int16)
    path = zip_series(tmp_path / "s.zip", write_series(tmp_path / "s", voxels, source.affine))
    scan = read_scan(path)
    path.unlink()
    analysis = handlers.analyst.analyse(scan, 0.5, say_nothing)
    segmentation = pydicom.dcmread(unpack(handlers.pack(analysis, 0.5, "Mask (DICOM)"), tmp_path))
    assert segmentation.Modality == "SEG"
    assert segmentation.pixel_array.sum() == analysis.prediction.mask.sum() > 0


def test_a_nifti_scan_has_no_mask_as_dicom(handlers: Handlers, analysis: Analysis) -> None:
    with pytest.raises(Error, match="a DICOM mask needs a scan that came as DICOM"):
        handlers.pack(analysis, 0.5, "Mask (DICOM)")


@pytest.mark.parametrize("change", [compress_series, copy_slices, drop_preambles])
def test_an_odd_zipped_series_gives_the_scores_of_the_plain_one(
    handlers: Handlers, tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    nifti = read_scan(EXAMPLE)
    voxels = nifti.volume.slices.transpose(2, 1, 0)[:, :, 40:44].astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    plain = read_scan(zip_series(tmp_path / "plain.zip", series))
    odd = read_scan(zip_series(tmp_path / "odd.zip", change(series)))
    expected, given = (handlers.analyst.analyse(scan, 0.5, say_nothing) for scan in (plain, odd))
    assert np.array_equal(given.prediction.scores, expected.prediction.scores)
    told = " ".join(given.report(0.5, "")["warnings"])
    assert ("4 files were left out" in told) == (change is copy_slices)


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


def test_findings_by_hand() -> None:
    mask = np.zeros((4, 5, 5), np.uint8)
    mask[0, 0, 0] = 1
    mask[1:3, 3, 3:5] = 1
    mask[3, 4, 4] = 1  # touches the second finding by a corner
    scores = np.where(mask, 0.8, 0).astype(np.float32)
    scores[0, 0, 0] = 1
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    prediction = VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {}, affine)
    rows = locate_findings(prediction, (slice(0, 4), slice(0, 5), slice(0, 5)))
    assert rows == [
        {
            "millilitres": 5,
            "mean_score": pytest.approx(0.8),
            "position": "left, back, middle third",
            "centre_mm": [18.0, 32.0, 36.0],
            "lowest_slice": 1,
            "highest_slice": 3,
            "slice": 2,
            "point_mm": [20, 30, 40],  # the voxel nearest to its centre
        },
        {
            "millilitres": 1,
            "mean_score": 1,
            "position": "right, front, lower third",
            "centre_mm": [0.0, 0.0, 0.0],
            "lowest_slice": 0,
            "highest_slice": 0,
            "slice": 0,
            "point_mm": [0, 0, 0],
        },
    ]


def test_findings_are_ordered_by_volume_times_score() -> None:
    mask = np.zeros((1, 1, 6), np.uint8)
    mask[0, 0, :3] = mask[0, 0, 4:] = 1
    scores = np.array([[[0.51, 0.51, 0.51, 0, 0.99, 0.99]]], np.float32)
    prediction = VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {})
    rows = locate_findings(prediction, (slice(0, 1), slice(0, 1), slice(0, 6)))
    assert [row["millilitres"] for row in rows] == [2, 3]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([0, 0, 0], "right, front, lower third"),
        ([8, 8, 8], "left, back, upper third"),
        ([4, 4, 8], "left, centre, middle third"),
        ([3, 2, 3], "right, front, middle third"),
    ],
)
def test_a_position_is_told_in_words(index: list[int], words: str) -> None:
    assert position_in_words(np.array([index]), HEAD) == words


def test_a_finding_across_the_midline_lies_on_both_sides() -> None:
    across = np.array([[0, 0, column] for column in range(3, 7)])  # two of four on either side
    assert position_in_words(across, HEAD).startswith("both sides, ")
    mostly_left = np.array([[0, 0, column] for column in range(4, 9)])  # one of five is not
    assert position_in_words(mostly_left, HEAD).startswith("left, ")


def row_of(millilitres: float) -> dict[str, Any]:
    """A finding as reports have it."""
    where = {"position": "left, back, upper third", "slice": 3, "point_mm": [1, 2, 3]}
    return {"millilitres": millilitres, "mean_score": 0.75, **where}


def test_findings_below_one_millilitre_are_folded() -> None:
    rows, others = [row_of(2.0), row_of(1.0), *[row_of(0.5)] * 3], {"count": 4, "millilitres": 0.3}
    shown = write_findings({"findings": rows, "smaller_findings": others})
    large, _, small = shown.partition("<details>")
    assert (large.count("<tr data-point"), small.count("<tr data-point")) == (2, 3)
    assert "7 small ones, under 1 mL each, 1.8 mL together" in small
    assert 'data-point="1,2,3" data-slice="3"' in large
    only = write_findings(
        {"findings": [row_of(0.5)], "smaller_findings": {"count": 0} | {"millilitres": 0}}
    )
    assert "<details open>" in only and "1 small one," in only
    assert "does not exclude disease" in write_findings({"findings": []})


def test_what_forbids_to_rely_on_a_result_stands_above_every_number(analysis: Analysis) -> None:
    report = analysis.report(0.5, "given")
    told = report | {"unfit_because": ["it is <t2>."], "warnings": ["a note.", "it is <t2>."]}
    html = write_result(told)
    assert html.index("Do not rely on this result") < html.index(" mL marked")
    assert html.count("it is &lt;t2&gt;.") == 1 and "<li>a note.</li>" in html
    assert "unfit" not in write_result(report | {"unfit_because": []})


def test_a_scan_of_another_sequence_a_skull_and_thick_slices_are_told_as_unfit(
    tmp_path: Path,
) -> None:
    scan = write_scan(tmp_path / "patient_t2.nii.gz")
    (reason,) = read_scan(scan, "flair").source["unfit_because"]
    assert "trained on flair, but the scan is t2" in reason
    assert read_scan(scan, "t2").source["unfit_because"] == []
    voxels = read_volume(scan).slices.transpose(2, 1, 0)
    thick = write_nifti(tmp_path / "thick.nii.gz", voxels, np.diag([-2.0, -2.0, 9.0, 1.0]))
    (reason,) = read_scan(thick).source["unfit_because"]
    assert reason.startswith("slices are 9 mm apart")
    noise = np.random.default_rng(0).integers(1, 200, (40, 40, 8)).astype(np.int16)
    noisy = write_nifti(tmp_path / "noise.nii.gz", noise, np.diag([-2.0, -2.0, 2.0, 1.0]))
    assert "everything but the brain removed" in read_scan(noisy).source["unfit_because"][0]


def test_a_report_lists_a_bounded_number_of_findings_and_adds_up_the_others() -> None:
    mask = np.zeros((2, 200, 200), np.uint8)
    mask[:, ::2, ::2] = 1  # 10,000 parts of two voxels, none touching another
    mask[0, :3, :3] = 1  # and one of 12: four of them, joined
    prediction = VolumePrediction(mask * 0.5, mask, 0.5, (10.0, 10.0, 10.0), {})
    rows = locate_findings(prediction, (slice(0, 2), slice(0, 200), slice(0, 200)))
    others = prediction.findings[1]
    assert len(rows) == 1000
    assert (rows[0]["millilitres"], rows[1]["millilitres"]) == (13, 2)
    assert (others["count"], others["millilitres"]) == (8997, 2 * 8997)
    assert sum(row["millilitres"] for row in rows) + others["millilitres"] == mask.sum()


def test_opacity_colours_and_outlines_change_the_picture(
    handlers: Handlers, analysis: Analysis
) -> None:
    empty = np.zeros_like(analysis.prediction.mask)
    spread = handlers.analyst.uncertainty(analysis, 3)
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
    analysis = handlers.analyst.analyse(read_scan(path), 0.5, say_nothing)
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
    analysis = handlers.analyst.analyse(read_scan(make(tmp_path / "scan.nii.gz")), 0.5, say_nothing)
    tracemalloc.start()
    started = time.process_time()
    picture = draw_slice(analysis, 5, analysis.prediction.mask, 0.5)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert picture.size == size
    assert seconds < 2
    assert peak < 32 * 2**20


@pytest.mark.parametrize("ending", ALONE)
def test_a_scan_of_another_format_is_taken_like_nifti(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("nrrd")
    voxels = np.zeros((20, 24, 8), np.int16)
    voxels[4:16, 4:20, 1:7] = np.random.default_rng(0).integers(90, 900, (12, 16, 6))
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    plain = read_scan(write_nifti(tmp_path / "a.nii.gz", voxels, affine))
    path = tmp_path / f"a{ending}"
    if ending in WRITERS:
        WRITERS[ending](path, voxels, affine, "")
    else:
        image = nib.MGHImage(voxels.astype(np.float32), affine)
        content = image.to_bytes()
        path.write_bytes(content if ending == ".mgh" else gzip.compress(content))
    scan = read_scan(path)
    assert np.array_equal(scan.volume.slices, plain.volume.slices)
    assert scan.volume.spacing == pytest.approx(plain.volume.spacing)


def test_a_4_d_scan_is_told_what_to_do_on_the_page(tmp_path: Path) -> None:
    path = scan_of_two_volumes(tmp_path / "four.nii.gz")
    with pytest.raises(ValueError, match="with 2 volumes; save the volume") as error:
        read_scan(path)
    assert "--" not in str(error.value)


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


def test_an_error_names_the_file_but_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.nii").write_text("no scan")
    with pytest.raises(ValueError, match=r"^notes\.nii: ") as error:
        read_scan(tmp_path / "notes.nii")
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_backgrounds_and_scales_leave_the_mask_as_it_is(
    handlers: Handlers, tmp_path: Path
) -> None:
    masks = [
        handlers.analyst.analyse(
            read_scan(write_slices(tmp_path / "scan.nii.gz", slices)), 0.5, say_nothing
        ).prediction.mask
        for slices in (smooth_brain(), *scans_with_the_same_mask().values())
    ]
    assert masks[0].any()
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


def test_single_voxels_move_no_more_than_a_hundredth_and_are_told(
    handlers: Handlers, tmp_path: Path
) -> None:
    clean = read_scan(write_slices(tmp_path / "clean.nii.gz", smooth_brain()))
    spikes = read_scan(write_slices(tmp_path / "spikes.nii.gz", with_spikes(smooth_brain(), 4)))
    expected, moved = (handlers.analyst.analyse(scan, 0.5, say_nothing) for scan in (clean, spikes))
    mask, other = expected.prediction.mask, moved.prediction.mask
    assert 2 * np.count_nonzero(mask & other) > 0.99 * (mask.sum() + other.sum())
    assert "4 voxels far brighter" in handlers.describe(moved, 0.5)[0]


@pytest.mark.parametrize("name", scans_without_a_brain())
def test_a_scan_without_a_brain_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    slices, sentence = scans_without_a_brain()[name]
    with pytest.raises(ValueError, match=r"^scan\.nii\.gz: a scan must show one brain") as error:
        read_scan(write_slices(tmp_path / "scan.nii.gz", slices))
    assert sentence in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_scan_with_too_many_voxels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.MAX_VOXELS", 1000)
    with pytest.raises(ValueError, match="million voxels here"):
        read_scan(write_scan(tmp_path / "scan.nii.gz"))


# --- Thresholds and examples ----------------------------------------------------------------------


def test_presets_are_those_of_the_calibration_that_fits_the_scores(
    handlers: Handlers, model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (preset,) = open_model(str(folder)).presets
    assert (preset.words, preset.threshold) == ("score 0.5, not calibrated", 0.5)
    entry = {"unit": "voxels", "threshold": 0.4, "promise": "so it is"}
    stored = [
        entry | {"rate": 0.05},
        entry | {"rate": 0.01, "threshold": 0.7},
        entry | {"rate": 0.02, "flips": True},
        entry | {"rate": 0.03, "unit": "slices"},
    ]
    weights = handlers.analyst.facts["weights_sha256"]
    calibration = {"weights_sha256": weights, "thresholds": stored}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    analyst = open_model(str(folder))
    assert [(preset.words, preset.threshold) for preset in analyst.presets] == [
        ("marks 1 in 100 healthy voxels", 0.7),
        ("marks 5 in 100 healthy voxels", 0.4),
    ]
    assert source_of(0.4, analyst.presets).startswith("calibrated: so it is")
    assert source_of(0.5, analyst.presets) == OWN
    assert Handlers(analyst).preset("marks 5 in 100 healthy voxels") == 0.4
    assert Handlers(analyst).threshold_or_usual(None) == 0.7


def test_masks_are_made_as_the_models_folder_says(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    saved = replace(DEFAULT_OPTIONS, flips=True, smallest_ml=1000)
    save_defaults(folder, saved, "scans of a test")
    analyst = open_model(str(folder))
    path = write_scan(tmp_path / "scan.nii.gz")
    analysis = analyst.analyse(read_scan(path), 0.5, say_nothing)
    expected = predict_volume(*load_model(str(folder), device="cpu"), read_volume(path))
    assert np.array_equal(analysis.prediction.scores, expected.scores)  # of mirror images, too
    assert (expected.scores > 0.5).any() and not expected.mask.any()
    assert not analysis.prediction.mask.any() and not analysis.at(0.4).mask.any()


def test_the_bundled_cases_are_small_and_have_their_truth(handlers: Handlers) -> None:
    folders = sorted(EXAMPLES.iterdir())
    assert 3 <= len(folders) <= 5
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*")) < 3e6
    for folder in folders:
        case = Case.read(folder)
        volume = read_volume(folder / case.scan)
        truth = read_mask(folder / "truth.nii.gz", volume)
        assert truth.any() == ("healthy" not in folder.name)


def test_a_case_without_scores_of_its_model_is_computed_and_compared_with_its_truth(
    handlers: Handlers,
) -> None:
    analysis = Case.read(EXAMPLES / "2_small").analyse(handlers.analyst, say_nothing)
    assert analysis.prediction.scores.any() and analysis.truth is not None
    report = analysis.report(0.5, "")
    assert report["dice"] == dice(analysis.at(0.5).mask, analysis.truth)
    assert f"Dice with the truth {report['dice']:.2f}" in handlers.describe(analysis, 0.5)[0]


def test_a_case_with_scores_of_its_model_is_opened_without_computing(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case"
    shutil.copytree(EXAMPLES / "2_small", folder)
    computed = replace(Case.read(folder), weights_sha256=None).analyse(
        handlers.analyst, say_nothing
    )
    write_scores(folder, computed.prediction.scores, computed.scan.volume)
    record = json.loads((folder / RECORD).read_text("utf-8"))
    record["weights_sha256"] = describe_model(handlers.analyst.model)["weights_sha256"]
    (folder / RECORD).write_text(json.dumps(record), "utf-8")
    monkeypatch.setattr("analysis.predict_volume", None)
    opened = Case.read(folder).analyse(handlers.analyst, say_nothing)
    assert np.abs(opened.prediction.scores - computed.prediction.scores).max() <= 0.0005001
    monkeypatch.setattr("example_cases.EXAMPLES", tmp_path)
    first = Handlers(handlers.analyst).open_first_case()
    assert first and np.array_equal(first.prediction.scores, opened.prediction.scores)
    assert first.told == opened.told


def test_a_bundled_case_is_what_its_script_makes() -> None:
    pytest.importorskip("nilearn")
    from write_example import make_patient

    folder = EXAMPLES / "2_small"
    record = json.loads((folder / RECORD).read_text("utf-8"))
    sequence = record["scan"].removesuffix(".nii.gz").rpartition("_")[2]
    patient = make_patient(record["seed"], sequence)
    bundled = read_volume(folder / record["scan"])
    assert np.array_equal(bundled.affine, patient.affine)
    # Rounding may differ by one between processors.
    made = patient.voxels.transpose(2, 1, 0).astype(np.float32)
    assert np.abs(bundled.slices - made).max() <= 1
    truth = read_mask(folder / "truth.nii.gz", bundled)
    assert np.array_equal(truth, patient.truth.transpose(2, 1, 0))


# --- What is uploaded as a Space ------------------------------------------------------------------


def test_the_header_of_the_space_agrees_with_its_requirements() -> None:
    header = (SPACE / "README.md").read_text("utf-8").split("---")[1]
    requirements = (SPACE / "requirements.txt").read_text("utf-8")
    pins = (SPACE.parent / "constraints.txt").read_text("utf-8")
    version = re.search(r"^sdk_version: (.+)$", header, re.MULTILINE)
    assert version
    assert f"gradio[mcp]=={version[1]}" in requirements
    assert f"gradio=={version[1]}\n" in pins
    assert f"rasalore=={__version__}\n" in requirements
    for name in ("torch", "pydicom", "highdicom", "pynrrd"):
        assert re.search(rf"^{name}==[\d.]+$", requirements, re.MULTILINE)[0] in pins  # type: ignore[index]
    assert "app_file: app.py" in header


def test_the_3_d_viewer_is_its_authors_file_and_comes_with_its_licences() -> None:
    viewer = (SPACE / "niivue" / "niivue.umd.js").read_bytes()
    digest = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # npm, 0.69.0
    assert hashlib.sha256(viewer).hexdigest() == digest
    licences = (SPACE / "niivue" / "LICENSES.txt").read_text("utf-8")
    assert licences.count("Permission is hereby granted") >= 10
    assert "Copyright (c) 2021, Niivue" in licences
