"""The Space without a server: what its handlers answer, and the files it is made of."""

import base64
import gzip
import hashlib
import json
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

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
from modeling_rasalore.formats.endings import ALONE, WRITERS
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import VolumePrediction, predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytest.importorskip("gradio")
from analysis import Analysis, measure_findings, read_scan
from drawing import draw_slice, write_table
from handlers import DOUBT, SCORES, Handlers


def quiet(share: float, text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def handlers(model: Path) -> Handlers:
    return make_handlers(model)


@pytest.fixture(scope="module")
def analysis(handlers: Handlers, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    scan = read_scan(write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz"))
    return handlers.analyst.analyse(scan, 0.5, quiet)


# --- Handlers -------------------------------------------------------------------------------------


def test_the_downloaded_mask_is_that_of_predict_volume(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    volume = analysis.scan.volume
    for threshold in (0.5, 0.501):
        packed = handlers.pack_mask(analysis, threshold)
        path = tmp_path / packed["name"]
        path.write_bytes(base64.b64decode(packed["content"]))
        analyst = handlers.analyst
        options = PredictionOptions(threshold=threshold)
        expected = predict_volume(analyst.model, analyst.processor, volume, options)
        assert 0 < expected.mask.sum() < expected.mask.size
        assert np.array_equal(read_mask(path, volume), expected.mask)


def test_the_3_d_view_gets_the_scan_and_its_mask_on_one_grid(
    handlers: Handlers, analysis: Analysis, tmp_path: Path
) -> None:
    packed = handlers.pack_view(analysis, 0.5)
    paths = [tmp_path / file["name"] for file in packed]
    for path, file in zip(paths, packed, strict=True):
        path.write_bytes(base64.b64decode(file["content"]))
    greys = read_volume(paths[0])
    assert np.array_equal(greys.affine, analysis.scan.volume.affine)
    expected = np.clip(analysis.images / analysis.view.white * 255, 0, 255)
    assert np.abs(greys.slices - expected).max() <= 0.5
    assert np.array_equal(read_mask(paths[1], greys), analysis.at(0.5).mask)


def test_a_zipped_series_gives_the_mask_and_report_of_its_nifti_file(
    handlers: Handlers, tmp_path: Path
) -> None:
    nifti = read_scan(SPACE / "examples" / "synthetic_t2.nii.gz")
    voxels = nifti.volume.slices.transpose(2, 1, 0).astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    zipped = read_scan(zip_series(tmp_path / "phantom.zip", series))
    expected, found = (handlers.analyst.analyse(scan, 0.5, quiet) for scan in (nifti, zipped))
    packed = handlers.pack_mask(found, 0.5)
    path = tmp_path / packed["name"]
    path.write_bytes(base64.b64decode(packed["content"]))
    assert path.name == "phantom_mask.nii.gz"
    assert 0 < expected.prediction.mask.sum() < expected.prediction.mask.size
    assert np.array_equal(read_mask(path, nifti.volume), expected.prediction.mask)
    report = base64.b64decode(handlers.pack_report(found, 0.5)["content"])
    assert json.loads(report)["input"] == "phantom.zip"
    assert json.loads(report)["findings"] == expected.report(0.5)["findings"]
    assert len(handlers.pack_view(found, 0.5)) == len(handlers.draw(found, 9, 0.5, 0.5, SCORES))
    assert b"DOE" in next(series.iterdir()).read_bytes() and b"DOE" not in report


@pytest.mark.parametrize("change", [compress_series, copy_slices, drop_preambles])
def test_an_odd_zipped_series_gives_the_scores_of_the_plain_one(
    handlers: Handlers, tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    nifti = read_scan(SPACE / "examples" / "synthetic_t2.nii.gz")
    voxels = nifti.volume.slices.transpose(2, 1, 0)[:, :, 40:44].astype(np.int16)
    series = write_series(tmp_path / "series", voxels, nifti.volume.affine)
    plain = read_scan(zip_series(tmp_path / "plain.zip", series))
    odd = read_scan(zip_series(tmp_path / "odd.zip", change(series)))
    expected, given = (handlers.analyst.analyse(scan, 0.5, quiet) for scan in (plain, odd))
    assert np.array_equal(given.prediction.scores, expected.prediction.scores)
    told = " ".join(given.report(0.5)["warnings"])
    assert ("4 files were left out" in told) == (change is copy_slices)


def test_the_report_follows_the_threshold(handlers: Handlers, analysis: Analysis) -> None:
    packed = handlers.pack_report(analysis, 1.0)
    report = json.loads(base64.b64decode(packed["content"]))
    assert packed["name"] == "scan.json"
    assert (report["threshold"], report["millilitres"], report["findings"]) == (1.0, 0, [])
    assert "not a medical device" in report["disclaimer"]
    whole = analysis.report(0.5)
    assert sum(row["millilitres"] for row in whole["findings"]) == pytest.approx(
        whole["millilitres"]
    )


def test_findings_by_hand() -> None:
    mask = np.zeros((4, 5, 5), np.uint8)
    mask[0, 0, 0] = 1
    mask[1:3, 3, 3:5] = 1
    mask[3, 4, 4] = 1  # touches the second finding by a corner
    scores = np.where(mask, 0.8, 0).astype(np.float32)
    scores[0, 0, 0] = 1
    found, others = measure_findings(VolumePrediction(scores, mask, 0.5, (10.0, 10.0, 10.0), {}))
    assert others == {"count": 0, "millilitres": 0}
    assert found == [
        {"millilitres": 5, "lowest_slice": 1, "highest_slice": 3, "mean_score": pytest.approx(0.8)},
        {"millilitres": 1, "lowest_slice": 0, "highest_slice": 0, "mean_score": 1},
    ]


def test_the_table_names_the_largest_findings_and_counts_the_rest() -> None:
    row = {"millilitres": 2.0, "lowest_slice": 3, "highest_slice": 4, "mean_score": 0.75}
    report = {"millilitres": 24.0, "slices_with_anomaly": 2, "findings": [row] * 12}
    lines = write_table(report | {"smaller_findings": {"count": 0}}).splitlines()
    assert lines[3] == "| 1 | 2.0 | 3 to 4 | 0.75 |"
    assert len(lines) == 2 + 1 + 10 + 1
    assert lines[-1].startswith("| +2 ")
    lines = write_table(report | {"smaller_findings": {"count": 90}}).splitlines()
    assert lines[-1].startswith("| +92 ")


def test_a_report_lists_a_bounded_number_of_findings_and_adds_up_the_others() -> None:
    mask = np.zeros((2, 200, 200), np.uint8)
    mask[:, ::2, ::2] = 1  # 10,000 parts of two voxels, none touching another
    mask[0, :3, :3] = 1  # and one of 12: four of them, joined
    prediction = VolumePrediction(mask * 0.5, mask, 0.5, (10.0, 10.0, 10.0), {})
    rows, others = measure_findings(prediction)
    assert len(rows) == 1000
    assert (rows[0]["millilitres"], rows[1]["millilitres"]) == (13, 2)
    assert (others["count"], others["millilitres"]) == (8997, 2 * 8997)
    assert sum(row["millilitres"] for row in rows) + others["millilitres"] == mask.sum()


def test_opacity_and_colours_change_the_overlay_and_not_the_plain_slice(
    handlers: Handlers, analysis: Analysis
) -> None:
    empty = np.zeros_like(analysis.prediction.mask)
    plain, clear = draw_slice(analysis, 3, empty, opacity=0)
    assert plain.tobytes() == clear.tobytes()
    spread = handlers.analyst.uncertainty(analysis, 3)
    pictures = {
        draw_slice(analysis, 3, mask, opacity, doubt)[1].tobytes()
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
    analysis = handlers.analyst.analyse(read_scan(path), 0.5, quiet)
    plain, _ = draw_slice(analysis, 1, analysis.prediction.mask, 0.5)
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
    analysis = handlers.analyst.analyse(read_scan(make(tmp_path / "scan.nii.gz")), 0.5, quiet)
    tracemalloc.start()
    started = time.process_time()
    pictures = draw_slice(analysis, 5, analysis.prediction.mask, 0.5)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [picture.size for picture in pictures] == [size, size]
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
    assert len(handlers.draw(analysis, 99, 1.0, 0.5, SCORES) or []) == 2
    assert "no anomaly found" in handlers.describe(analysis, 1.0)[0]


def test_pictures_come_inline_and_without_a_scan_there_are_none(
    handlers: Handlers, analysis: Analysis
) -> None:
    for what in (SCORES, DOUBT):
        pictures = handlers.draw(analysis, 2, 0.5, 0.5, what) or []
        assert [picture["url"][:22] for picture in pictures] == ["data:image/png;base64,"] * 2
    assert handlers.draw(None, 2, 0.5, 0.5, SCORES) is None
    assert handlers.describe(None, 0.5) == ("", "")


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
            read_scan(write_slices(tmp_path / "scan.nii.gz", slices)), 0.5, quiet
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
    expected, moved = (handlers.analyst.analyse(scan, 0.5, quiet) for scan in (clean, spikes))
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


def test_the_bundled_example_is_small_and_loads(handlers: Handlers) -> None:
    path = SPACE / "examples" / "synthetic_t2.nii.gz"
    assert path.stat().st_size < 300_000
    assert read_volume(path).slices.any()


def test_the_bundled_example_is_what_its_script_makes() -> None:
    pytest.importorskip("nilearn")
    from write_example import TARGET, make_example

    voxels, affine = make_example()
    bundled = read_volume(TARGET)
    assert np.array_equal(bundled.affine, affine)
    # Rounding may differ by one between processors.
    assert np.abs(bundled.slices - voxels.transpose(2, 1, 0).astype(np.float32)).max() <= 1


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
    for name in ("torch", "pydicom", "pynrrd"):
        assert re.search(rf"^{name}==[\d.]+$", requirements, re.MULTILINE)[0] in pins  # type: ignore[index]
    assert "app_file: app.py" in header


def test_the_3_d_viewer_is_its_authors_file_and_comes_with_its_licences() -> None:
    viewer = (SPACE / "niivue" / "niivue.umd.js").read_bytes()
    digest = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # npm, 0.69.0
    assert hashlib.sha256(viewer).hexdigest() == digest
    licences = (SPACE / "niivue" / "LICENSES.txt").read_text("utf-8")
    assert licences.count("Permission is hereby granted") >= 10
    assert "Copyright (c) 2021, Niivue" in licences
