"""The Space in a real browser: upload, planes, findings, threshold, downloads, errors, access."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import IN_CHROMIUM
from crafted_headers import REFUSED
from dicom_files import write_series, zip_series
from space import AFFINE, left_in, serving, write_scan
from space_pages import (
    DRAWN,
    SIZES,
    download,
    open_example,
    read_error,
    see,
    upload,
    violations,
    visit,
)

from modeling_rasalore.prediction.loading import describe_model, load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytestmark = IN_CHROMIUM
VIEWER = "document.querySelector('#planes').viewer"
NO_WEBGL = """const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...others) {
  return kind === 'webgl2' ? null : get.call(this, kind, ...others);
};"""


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def example(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that shows an example, and every address that it asked for."""
    with visit(browser, address, request.param) as page:
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        assert violations(page) == set()
        open_example(page)
        yield page


def press_on_threshold(page: Any, key: str) -> None:
    """Open the threshold's slider and press a key on it."""
    page.focus("#advanced button")
    page.keyboard.press("Enter")
    slider = page.locator("#threshold input[type=range]")
    before, seen = slider.input_value(), 0
    while seen < 2:  # Gradio makes and sets what it unfolds once more
        if slider.input_value() == before:
            slider.focus()
            page.keyboard.press(key)
            seen = 0
        page.wait_for_timeout(1000)
        seen += slider.input_value() != before


def see_point(page: Any) -> list[float]:
    """Where the crosshair is."""
    return page.evaluate(f"[...{VIEWER}.nv.frac2mm({VIEWER}.nv.scene.crosshairPos)].slice(0, 3)")


def check_mask(path: Path, scan: Path, model: Path, threshold: float) -> None:
    volume = read_volume(scan)
    network = load_model(str(model), "main", "cpu")
    expected = predict_volume(*network, volume, PredictionOptions(threshold=threshold)).mask
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(read_mask(path, volume), expected)


# --- At each size of a screen ---------------------------------------------------------------------


def test_the_picture_and_its_slice_control_share_the_screen_below_the_warning(example: Any) -> None:
    size = example.viewport_size
    warning, headline, picture, slider = (
        example.locator(name).bounding_box()
        for name in ("#warning", "#headline", "#planes", "#plane-slice")
    )
    assert warning["y"] == 0 and "not a medical device" in example.inner_text("#warning")
    assert headline["y"] >= warning["height"]
    assert picture["y"] > headline["y"]
    assert picture["width"] > 0.45 * size["width"] and picture["height"] > 0.4 * size["height"]
    assert slider["y"] >= picture["y"] + picture["height"]
    assert slider["y"] + slider["height"] <= size["height"]
    assert example.evaluate("document.scrollingElement.scrollWidth") <= size["width"]


def test_the_result_has_the_focus_and_axe_finds_nothing_moderate(example: Any) -> None:
    assert example.evaluate("document.activeElement.id") == "result"
    assert violations(example) == set()


def test_nothing_is_loaded_from_elsewhere(example: Any, address: str) -> None:
    assert any("niivue" in url for url in example.asked)
    own = (address, "data:", "blob:")
    assert [url for url in example.asked if not url.startswith(own)] == []


def test_layers_are_mixed_once_when_shown_and_again_when_their_mixture_changes(page: Any) -> None:
    open_example(page)
    page.evaluate(f"""() => {{
        const mixer = Object.getPrototypeOf({VIEWER}.nv), mix = mixer.refreshLayers;
        window.mixed = 0;
        mixer.refreshLayers = function (...given) {{
            window.mixed++;
            return mix.apply(this, given);
        }};
    }}""")
    open_example(page, "Large tumour")
    page.wait_for_function("mixed > 0")
    page.wait_for_selector(DRAWN)
    layers = page.evaluate(f"{VIEWER}.nv.volumes.length")
    assert page.evaluate("mixed") == layers == 2
    page.click("[data-plane=coronal]")
    page.uncheck("[data-layer=mask]")
    assert page.evaluate("mixed") == layers
    page.uncheck("[data-layer=scores]")
    assert page.evaluate("mixed") == 2 * layers


# --- Scans ----------------------------------------------------------------------------------------


def test_an_uploaded_scan_is_segmented_and_its_mask_downloaded(
    page: Any, model: Path, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "patient.nii.gz")
    upload(page, scan)
    see(page, "patient.nii.gz")
    assert left_in(cache) == []
    page.wait_for_selector("#scan input[type=file]", state="attached")  # for another file
    check_mask(download(page, "mask-nifti", tmp_path), scan, model, 0.5)
    report = json.loads(download(page, "numbers-json", tmp_path).read_text())
    assert report["input"] == "patient.nii.gz" and report["millilitres"] > 0
    assert "data:image" in download(page, "report-html", tmp_path).read_text("utf-8")
    assert not page.is_visible("#save-mask-dicom")
    page.click("[data-layer=doubt]")
    page.wait_for_function(f"{VIEWER}.hasDoubt")
    assert not page.is_checked("[data-layer=scores]")  # one colour at a time
    assert left_in(cache) == []


def test_a_zipped_series_is_segmented_after_a_bad_zip_was_refused(
    page: Any, model: Path, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "patient.nii.gz")
    voxels = read_volume(scan).slices.transpose(2, 1, 0).astype(np.int16)
    (tmp_path / "broken.zip").write_text("no zip")
    open_example(page)
    upload(page, tmp_path / "broken.zip")
    assert "broken.zip: it is no zip archive" in read_error(page)
    assert page.evaluate("document.activeElement.id") == "message"
    assert not page.is_visible("#results")  # of the scan before
    assert violations(page) == set()
    upload(page, zip_series(tmp_path / "dicom.zip", write_series(tmp_path / "s", voxels, AFFINE)))
    see(page, "dicom.zip")
    assert not page.is_visible("#message") and page.is_visible("#save-mask-dicom")
    assert left_in(cache) == []
    mask = download(page, "mask-nifti", tmp_path)
    assert mask.name == "dicom_mask.nii.gz"
    check_mask(mask, scan, model, 0.5)
    report = json.loads(download(page, "numbers-json", tmp_path).read_text())
    assert report["input"] == "dicom.zip"


def test_a_real_scan_is_moved_through_and_its_mask_downloaded(
    page: Any, model: Path, brats2021: Path, tmp_path: Path
) -> None:
    scan = sorted(brats2021.glob("*/*_flair.nii.gz"))[0]
    upload(page, scan)
    see(page, scan.name)
    before = page.inner_text("#slice-label")
    page.focus("#plane-slice")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#slice-label") != before
    press_on_threshold(page, "ArrowRight")
    page.wait_for_selector("#summary >> text=above a score of 0.51")
    check_mask(download(page, "mask-nifti", tmp_path), scan, model, 0.51)


def test_twenty_bad_files_show_one_line_each_and_the_app_lives_on(
    page: Any, cache: Path, tmp_path: Path
) -> None:
    # All but those that the page does not let in, or would take seconds to make.
    cases = [case for case in REFUSED if case not in ("another ending",) and "GiB of" not in case]
    for number, case in enumerate(cases[::2][:20]):
        name, make, sentence = REFUSED[case]
        path = tmp_path / f"bad{number}{name.removeprefix('a')}"
        path.write_bytes(make())
        upload(page, path)
        page.wait_for_selector(f"#message >> text={path.name}")
        words = read_error(page)
        assert re.search(sentence.removesuffix("$"), words), (case, words)
        assert "\n" not in words.strip() and str(cache) not in words
        assert not page.is_visible("[data-testid=toast-body]")  # nothing lies over the warning
        page.wait_for_selector("#scan input[type=file]", state="attached")  # for another file
    assert left_in(cache) == []
    open_example(page)


def test_two_people_at_once_see_their_own_scans(browser: Any, address: str, tmp_path: Path) -> None:
    with visit(browser, address) as first, visit(browser, address) as second:
        people = {"a": first, "b": second}
        for name, page in people.items():
            upload(page, write_scan(tmp_path / f"person_{name}.nii.gz", ord(name)))
        for name, page in people.items():
            see(page, f"person_{name}")
            assert re.findall(r"person_\w", page.inner_text("#summary")) == [f"person_{name}"]
        masks = [download(page, "mask-nifti", tmp_path).read_bytes() for page in people.values()]
        assert masks[0] != masks[1]


# --- Viewer, findings and thresholds --------------------------------------------------------------


def test_the_page_is_used_by_keyboard_alone(page: Any) -> None:
    page.focus("#examples button >> nth=1")
    page.keyboard.press("Enter")
    page.wait_for_selector(DRAWN)
    assert page.locator("#findings tr[aria-current]").count() == 1
    opened = see_point(page)
    picture = page.locator("#planes")
    shown = picture.screenshot()
    page.keyboard.press("h")  # the focus is in the result
    assert picture.screenshot() != shown and page.get_attribute("#hide", "aria-pressed") == "true"
    page.keyboard.press("h")
    assert picture.screenshot() == shown
    page.keyboard.press("n")
    assert see_point(page) != opened
    page.focus("#findings tr[data-point] button")
    page.keyboard.press("Enter")
    assert see_point(page) == opened
    page.focus("#planes")
    page.keyboard.press("ArrowUp")
    assert see_point(page)[2] > opened[2]
    press_on_threshold(page, "End")
    page.wait_for_selector("#summary >> text=No anomaly found")


def test_a_finding_is_opened_where_its_row_says(page: Any) -> None:
    open_example(page)
    rows = page.locator("#findings tr[data-point]")
    point = [float(number) for number in rows.first.get_attribute("data-point").split(",")]
    assert see_point(page) == pytest.approx(point, abs=0.6)  # the voxels are of 2 mm
    slices = page.inner_text("#slice-label")
    assert slices == f"Axial slice {rows.first.get_attribute('data-slice')}"
    score = float(page.inner_text("#here").removeprefix("Score here "))
    assert score > 0.49  # in steps of 1/255


def test_the_brain_is_shown_and_turned_in_3_d(page: Any) -> None:
    open_example(page)
    page.click("[data-plane=brain]")
    azimuth = f"{VIEWER}.nv.scene.renderAzimuth"
    before = page.evaluate(azimuth)
    page.focus("#planes")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(azimuth) == before + 10
    assert violations(page) == set()


def test_without_webgl_the_server_draws_the_slices(browser: Any, address: str) -> None:
    context = browser.new_context()
    context.add_init_script(NO_WEBGL)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(address)
    page.click("#examples >> text=Small tumour")
    source = "document.querySelector('#slice-view img')?.src"
    page.wait_for_selector("#slice-view img")
    page.wait_for_function("document.querySelector('#slice input[type=number]').value > 0")
    assert not page.is_visible("#viewer")
    shown = page.evaluate(source)
    page.focus("#slice input[type=range]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"before => {source} !== before", arg=shown)
    assert violations(page) == set()
    context.close()


def test_a_preset_marks_exactly_what_its_calibrated_threshold_does(
    browser: Any, model: Path, tmp_path: Path
) -> None:
    entry = {"unit": "voxels", "promise": "so it is"}
    rates = {0.01: 0.70707, 0.05: 0.41371}
    network, _ = load_model(str(model), device="cpu")
    calibration = {
        "weights_sha256": describe_model(network)["weights_sha256"],
        "thresholds": [{**entry, "rate": rate, "threshold": t} for rate, t in rates.items()],
    }
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "calibration.json").write_text(json.dumps(calibration))
    with serving(tmp_path / "cache", folder) as address, visit(browser, address) as page:
        upload(page, write_scan(tmp_path / "patient.nii.gz"))
        see(page, "patient.nii.gz")
        for rate, threshold in rates.items():
            page.check(f"#preset >> text=marks {100 * rate:g} in 100 healthy voxels")
            page.wait_for_selector(f"#summary >> text=above a score of {threshold:.2f}")
            report = json.loads(download(page, "numbers-json", tmp_path).read_text())
            assert report["threshold"] == threshold
            assert "calibrated: so it is" in report["threshold_source"]
