"""report.html: one file that says what was marked, what it means, and what to doubt."""

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modeling_rasalore.reports import page as page_module
from modeling_rasalore.reports.page import write_page
from modeling_rasalore.reports.pictures import count_scores, draw_planes, histogram_svg
from modeling_rasalore.reports.wording import explain_interval, explain_threshold, headline
from modeling_rasalore.scans.background import BrainSlices

SETTINGS: dict[str, Any] = {
    **{"threshold": 0.6, "threshold_source": "the model's default, calibrated: in at most 1 of 9"},
    **{"thresholds_at_rates": {"0.01": 0.6, "0.05": 0.25}, "precision": "float32"},
    **{"flips": False, "smooth_mm": 2.0, "free_map": 0.5, "smallest_ml": 0.1},
}
MANIFEST: dict[str, Any] = {
    "model": {"name": "base", "modality": "t2", "weights_sha256": "0123456789abcdef"},
    **{"settings": SETTINGS, "device": "cpu", "seconds": 3.0, "peak_memory_mib": 500.0},
    **{"file_counts": {"files": 1, "used": 1, "left_out": 0, "hidden": 0, "own_results": 0}},
    **{"left_out": [], "earlier": {}},
}
FINDING = {"millilitres": 4.0, "lowest_slice": 3, "highest_slice": 9, "mean_score": 0.8}
ENTRY: dict[str, Any] = {
    **{"status": "done", "modality": "t2", "slices": 60, "slices_with_anomaly": 7},
    **{"millilitres": 4.5, "interval_ml": [4.5, 9.0], "findings_above_1_ml": 1},
    **{"millilitres_at_rates": {"0.01": 4.5, "0.05": 9.0}, "noise_draws": 8, "threshold": 0.6},
    **{"findings": [{**FINDING, "centre_mm": [1.0, -2.5, 30.0]}], "findings_in_all": 3},
    **{"score_histogram": [90, 5, 0, 20], "largest_component_ml": 4.0, "warnings": []},
}


def picture(path: Path, size: tuple[int, int] = (90, 60)) -> str:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path.name


def write(folder: Path, scans: dict[str, dict[str, Any]]) -> str:
    return write_page(folder / "report.html", MANIFEST, scans).read_text()


def test_the_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    outputs = {role: picture(tmp_path / f"a_{role}.png") for role in ("planes", "overlay")}
    text = write(tmp_path, {"a": ENTRY | {"outputs": outputs}})
    addresses = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(addresses) == 2 and "http" not in text and "<script" not in text
    for address in addresses:
        kind, content = address.split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (90, 60)
    assert all("alt=" in tag for tag in re.findall("<img[^>]+>", text))


def test_the_page_says_what_was_marked_and_what_it_means(tmp_path: Path) -> None:
    text = write(tmp_path, {"a": ENTRY})
    for sentence in (
        "1 finding of 1 mL or more; 4.5 mL marked in all (interval 4.5 to 9.0 mL).",
        "Sequence: t2. 7 of 60 slices are marked.",
        "<td>1</td><td>4.00</td><td>0.80</td><td>3 to 9</td><td>1, -2.5, 30</td>",
        "2 smaller or fainter findings are in a.json.",
        "most have at most 1 of 100 healthy voxels marked. At 0.25 it would be at most 5 of 100",
        "Model base, trained on t2, weights 0123456789ab, on cpu",
        "scores not averaged over flips, blurred by 2 mm, joined by smoothed intensity and its "
        "mirror image with weight 0.5, parts below 0.1 mL removed",
    ):
        assert sentence in text
    assert "Warnings" not in text and "<h2>Scans</h2>" not in text


def test_warnings_and_failures_come_before_every_result(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "no <brain> in it."}
    text = write(tmp_path, {"a": ENTRY | {"warnings": ["it moved."]}, "b": failed})
    assert '<li class="failed">b: no &lt;brain&gt; in it.</li>' in text
    assert text.index("a: it moved.") < text.index("<h2>Scans</h2>") < text.index("4.5 mL marked")
    assert text.count("<article>") == 1


def test_beyond_3_mb_pictures_are_links_and_no_scan_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = {}
    for number in range(4):
        name = picture(tmp_path / f"s \udce9{number}.png", (300, 200))  # a byte of no UTF-8
        scans[f"scan{number}"] = ENTRY | {"outputs": {"overlay": name}}
    one = len(write(tmp_path, dict(list(scans.items())[:1])))
    monkeypatch.setattr(page_module, "MOST_BYTES", 2 * one)
    text = write(tmp_path, scans)
    assert text.count("<article>") == 2 and len(text) < 3 * one
    assert '<a href="s%20%E92.png">scan2</a>' in text and '<a href="s%20%E93.png">scan3</a>' in text
    assert all(f"<td>{name}</td>" in text for name in scans)


def test_a_picture_that_is_gone_costs_only_itself(tmp_path: Path) -> None:
    text = write(tmp_path, {"a": ENTRY | {"outputs": {"overlay": "gone.png"}}})
    assert "<img" not in text and "4.5 mL marked" in text


def test_an_empty_mask_is_not_called_health() -> None:
    words = headline(ENTRY | {"millilitres": 0.0, "findings_above_1_ml": 0})
    assert words == "No anomaly found. This does not exclude disease."
    crumbs = headline(ENTRY | {"findings_above_1_ml": 0, "interval_ml": None})
    assert crumbs == "No findings of 1 mL or more; 4.5 mL marked in all."


def test_an_interval_says_what_it_is_made_of_and_its_absence_why() -> None:
    words = explain_interval(ENTRY)
    assert "4.5 mL if 1 % of healthy brain may be marked, 9.0 mL if 5 %" in words
    assert "what 8 draws of the model's noise give" in words
    assert "has no interval" in explain_interval({})


def test_a_threshold_that_nobody_calibrated_promises_nothing() -> None:
    settings = {"threshold": 0.5, "threshold_source": "default; the model was not calibrated"}
    words = " ".join(explain_threshold(settings))
    assert "Healthy scans did not set this threshold" in words and "of 100" not in words


def test_scores_are_counted_in_the_brain_alone() -> None:
    scores = np.zeros((2, 2, 3), np.float32)
    scores[0, 0] = 0.01, 0.39, 1
    scores[1, 1, 0] = 0.39
    counts = count_scores(scores)
    assert (counts[0], counts[9], counts[24], sum(counts)) == (1, 2, 1, 4)


def test_bars_above_the_threshold_are_marked() -> None:
    chart = histogram_svg([9, 0, 9, 99], 0.5, "scores")
    kinds = re.findall('class="(\\w+)"', chart)
    heights = [float(height) for height in re.findall('height="([\\d.]+)"', chart)]
    assert kinds == ["plain", "plain", "marked", "marked"]
    assert heights == [100, 0, 100, 200]  # logarithms of 10, 1, 10 and 100


def test_the_three_planes_show_the_head_upright_with_the_finding_in_each() -> None:
    images = np.zeros((20, 30, 40), np.float32)
    images[2:18, 4:26, 5:35] = 50
    images[15:18] *= 2  # the top of the head is bright
    mask = np.zeros(images.shape, np.uint8)
    mask[8:11, 12:15, 20:23] = 1
    scores = np.zeros(images.shape, np.float32)
    drawn = draw_planes(BrainSlices(images), scores, mask, (2.0, 1.0, 1.0), (9, 13, 21))
    pixels = np.asarray(drawn).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 2] < 100)
    thirds = np.array_split(np.arange(pixels.shape[1]), 3)
    assert all(yellow[:, columns].any() for columns in thirds)
    for columns in thirds[1:]:  # coronal and sagittal
        grey = pixels[30:, columns].min(2).max(1)
        rows = np.flatnonzero(grey > 100)
        middle = (np.flatnonzero(yellow[:, columns].any(1)).mean()) - 30
        assert rows.size and rows.mean() < middle


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_is_accessible_and_fits_a_telephone(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    outputs = {"planes": picture(tmp_path / "p.png", (1044, 374))}
    entry = ENTRY | {"outputs": outputs, "warnings": ["something is " + "long" * 80]}
    write(tmp_path, {"a" * 90: entry, "b": {"status": "failed", "reason": "no brain."}})
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=shutil.which("chromium"))
        for width in (1280, 390):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            tab.goto((tmp_path / "report.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert axe.Axe().run(tab).response["violations"] == []
        browser.close()
