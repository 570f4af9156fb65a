"""The Space in a real browser: upload, slices, threshold, downloads, errors, sessions, access."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import IN_CHROMIUM, SIZES, browsing, visiting
from crafted_headers import REFUSED
from dicom_files import write_series, zip_series
from space import AFFINE, left_in, write_scan

from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volumes import read_mask, read_volume

pytestmark = IN_CHROMIUM


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing(
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"
    ) as browser:
        yield browser


def visit(browser: Any, address: str, size: tuple[int, int] = SIZES[0]) -> Any:
    """A page in a browser session of its own."""
    return visiting(browser, address, "#run", size)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with visit(browser, address) as page:
        yield page


def upload(page: Any, scan: Path) -> None:
    page.set_input_files("#scan input[type=file]", str(scan))
    page.wait_for_selector(f"#scan >> text={scan.stem.split('.')[0]}")
    page.click("#run")


def download(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.click(button)
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def see_results(page: Any) -> None:
    page.wait_for_selector("#volumes table")
    page.wait_for_selector("#slice-view img")


PICTURES = "[...document.querySelectorAll('#slice-view img')].map(image => image.src).join()"


def changed(page: Any, before: str) -> str:
    """The pictures of the slice view, once they are others than before."""
    page.wait_for_function(f"before => {PICTURES} !== before", arg=before)
    return page.evaluate(PICTURES)


def slide(page: Any, slider: str, key: str, before: str) -> str:
    """The pictures after a key was pressed on a slider."""
    page.focus(f"#{slider} input[type=range]")
    page.keyboard.press(key)
    return changed(page, before)


def check_mask(path: Path, scan: Path, model: Path, threshold: float) -> None:
    volume = read_volume(scan)
    network = load_model(str(model), "main", "cpu")
    expected = predict_volume(*network, volume, PredictionOptions(threshold=threshold)).mask
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(read_mask(path, volume), expected)


def serious_violations(page: Any) -> set[tuple[str, str]]:
    """Rule of axe and element, for what is serious or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return {
        (rule["id"], node["html"][:200])
        for rule in axe.Axe().run(page).response["violations"]
        for node in rule["nodes"]
        if rule["impact"] in ("serious", "critical")
    }


def test_an_uploaded_scan_is_segmented_and_its_mask_downloaded(
    page: Any, model: Path, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "patient.nii.gz")
    upload(page, scan)
    see_results(page)
    assert "patient.nii.gz" in page.inner_text("#summary")
    assert left_in(cache) == []
    check_mask(download(page, "#save-mask", tmp_path), scan, model, 0.5)
    report = json.loads(download(page, "#save-report", tmp_path).read_text())
    assert report["input"] == "patient.nii.gz" and report["millilitres"] > 0


def test_a_zipped_series_is_segmented_after_a_bad_zip_was_refused(
    page: Any, model: Path, cache: Path, tmp_path: Path
) -> None:
    scan = write_scan(tmp_path / "patient.nii.gz")
    voxels = read_volume(scan).slices.transpose(2, 1, 0).astype(np.int16)
    (tmp_path / "broken.zip").write_text("no zip")
    upload(page, tmp_path / "broken.zip")
    page.wait_for_selector("[data-testid=toast-body] >> text=broken.zip: it is no zip archive")
    page.wait_for_selector("#scan input[type=file]", state="attached")  # for another file
    upload(page, zip_series(tmp_path / "dicom.zip", write_series(tmp_path / "s", voxels, AFFINE)))
    see_results(page)
    assert left_in(cache) == []
    mask = download(page, "#save-mask", tmp_path)
    assert mask.name == "dicom_mask.nii.gz"
    check_mask(mask, scan, model, 0.5)
    assert json.loads(download(page, "#save-report", tmp_path).read_text())["input"] == "dicom.zip"


def test_a_real_scan_is_seen_moved_through_and_its_mask_downloaded(
    page: Any, model: Path, brats2021: Path, tmp_path: Path
) -> None:
    scan = sorted(brats2021.glob("*/*_t2.nii.gz"))[0]
    upload(page, scan)
    see_results(page)
    plain, overlay = page.evaluate(PICTURES).split(",data:")
    assert plain.removeprefix("data:") != overlay  # the overlay shows
    shown = page.evaluate(PICTURES)
    shown = slide(page, "slice", "ArrowLeft", shown)
    slide(page, "threshold", "ArrowRight", shown)
    threshold = float(page.input_value("#threshold input[type=range]"))
    assert threshold == 0.51
    check_mask(download(page, "#save-mask", tmp_path), scan, model, threshold)


def test_the_brain_is_shown_and_turned_in_3_d(page: Any) -> None:
    page.click("#example")
    see_results(page)
    assert not page.is_visible("#brain-canvas")
    page.click("#show-brain")
    page.wait_for_selector("#brain-canvas[data-volumes='2']")
    azimuth = "document.querySelector('#brain-canvas').viewer.scene.renderAzimuth"
    before = page.evaluate(azimuth)
    page.focus("#brain-canvas")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(azimuth) == before + 10
    assert serious_violations(page) == set()
    page.click("#example")
    page.wait_for_selector("#brain-canvas", state="hidden")  # it was of the scan before


def test_slice_threshold_and_colours_change_the_picture_by_keyboard(page: Any) -> None:
    page.focus("#example")
    page.keyboard.press("Enter")
    see_results(page)
    shown = page.evaluate(PICTURES)
    shown = slide(page, "slice", "ArrowRight", shown)
    shown = slide(page, "threshold", "End", shown)
    page.wait_for_selector("#summary >> text=no anomaly found")
    page.check("input[type=radio][value=Uncertainty]")
    changed(page, shown)


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
        toast = page.wait_for_selector(f"[data-testid=toast-body] >> text={path.name}")
        words = toast.inner_text()
        assert re.search(sentence.removesuffix("$"), words), (case, words)
        assert "\n" not in words.strip() and str(cache) not in words
        page.wait_for_selector("#scan input[type=file]", state="attached")  # for another file
    assert left_in(cache) == []
    page.click("#example")
    see_results(page)


def test_two_people_at_once_see_their_own_scans(browser: Any, address: str, tmp_path: Path) -> None:
    with visit(browser, address) as first, visit(browser, address) as second:
        people = {"a": first, "b": second}
        for name, page in people.items():
            upload(page, write_scan(tmp_path / f"person_{name}.nii.gz", ord(name)))
        for name, page in people.items():
            see_results(page)
            assert re.findall(r"person_\w", page.inner_text("#summary")) == [f"person_{name}"]
        assert first.evaluate(PICTURES) != second.evaluate(PICTURES)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_screen_and_the_warning_stays_in_sight(
    browser: Any, address: str, size: tuple[int, int]
) -> None:
    with visit(browser, address, size) as page:
        elsewhere: list[str] = []
        page.on("request", lambda request, seen=elsewhere: seen.append(request.url))
        warning, title = (page.locator(name).bounding_box() for name in ("#warning", "h1"))
        assert title["y"] >= warning["y"] + warning["height"]
        page.click("#example")
        see_results(page)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        box = page.locator("#warning").bounding_box()
        assert 0 <= box["y"] < size[1] / 4
        assert "not a medical device" in page.inner_text("#warning")
        assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_violation(browser: Any, address: str, size: tuple[int, int]) -> None:
    with visit(browser, address, size) as page:
        assert serious_violations(page) == set()
        page.click("#example")
        see_results(page)
        assert serious_violations(page) == set()
