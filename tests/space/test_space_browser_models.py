"""The Space in a real browser: sequences, models, heads and their masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from chromium import IN_CHROMIUM
from heads import make_brain, make_head, write_slices
from space import left_in, save_model, serving, write_scan
from space_pages import (
    read_error,
    see,
    upload,
    violations,
    visit,
)

from modeling_rasalore.prediction.loading import describe_model, load_model

pytestmark = IN_CHROMIUM


def test_a_scan_of_another_sequence_is_told_in_red_above_its_numbers(
    page: Any, tmp_path: Path
) -> None:
    upload(page, write_scan(tmp_path / "patient_t2.nii.gz"))
    see(page, "patient_t2.nii.gz")
    assert "trained on flair, but the scan is t2" in page.inner_text(".unfit")
    block, headline = (page.locator(name).bounding_box() for name in (".unfit", "#headline"))
    assert block["y"] + block["height"] <= headline["y"]
    assert violations(page) == set()


def test_a_head_is_refused_and_read_once_its_mask_is_given_first(
    page: Any, cache: Path, tmp_path: Path
) -> None:
    head = write_slices(tmp_path / "p1_flair.nii.gz", make_head(21, "flair"))
    brain = (make_brain(21, "flair") > 0).astype(np.uint8)
    upload(page, head)
    assert "as a head with skull has" in (words := read_error(page))
    assert "give a mask of the brain with the scan" in words and "--" not in words
    assert not page.is_visible("#results")
    page.wait_for_selector("#scan input[type=file]", state="attached")  # both fields are empty
    page.click("#reading button")
    page.set_input_files(
        "#brain-mask input[type=file]", str(write_slices(tmp_path / "brain.nii.gz", brain))
    )
    page.wait_for_selector("#brain-mask >> text=brain")
    page.wait_for_selector("#brain-mask .filename")
    assert violations(page) == set()
    upload(page, head)
    see(page, "p1_flair.nii.gz")
    page.click("#summary summary")
    assert "told by the mask brain.nii.gz" in page.inner_text("#summary")
    page.wait_for_selector("#brain-mask input[type=file]", state="attached")  # for another head
    assert left_in(cache) == []
    assert violations(page) == set()


def calibrate(folder: Path, thresholds: dict[float, float]) -> None:
    """Save thresholds for rates of healthy voxels beside a model."""
    network, _ = load_model(str(folder), device="cpu")
    entry = {"unit": "voxels", "promise": "so it is"}
    stored = {
        "weights_sha256": describe_model(network)["weights_sha256"],
        "thresholds": [entry | {"rate": r, "threshold": t} for r, t in thresholds.items()],
    }
    (folder / "calibration.json").write_text(json.dumps(stored))


def test_a_t2_is_recognised_read_by_its_model_and_has_its_thresholds(
    browser: Any, tmp_path: Path
) -> None:
    models = [save_model(tmp_path / name, name) for name in ("flair", "t2")]
    for folder, thresholds in zip(models, ({0.01: 0.3}, {0.01: 0.6, 0.05: 0.4}), strict=True):
        calibrate(folder, thresholds)
    with serving(tmp_path / "cache", *models) as address, visit(browser, address) as page:
        assert "Reads FLAIR or T2 scans" in page.inner_text("#introduction")
        for sequence, at in (("flair", "0.30"), ("t2", "0.60")):
            scan = write_slices(tmp_path / f"{at}.nii.gz", make_brain(21, sequence))
            upload(page, scan)
            see(page, scan.name)
            told = page.inner_text("#summary")
            assert f"{sequence.upper()} (its image looks like a {sequence})" in told
            assert f"read by {sequence} · marked above a score of {at}" in told
            assert page.is_checked("#preset >> text=marks 1 in 100 healthy voxels")
            page.wait_for_selector("#scan input[type=file]", state="attached")
        page.check("#preset >> text=marks 5 in 100 healthy voxels")  # of the second model alone
        page.wait_for_selector("#summary >> text=marked above a score of 0.40")
        upload(page, write_slices(tmp_path / "scan.nii.gz", make_brain(21, "t1")))
        assert "the models read FLAIR and T2, but its image looks like a t1" in read_error(page)
        assert not page.is_visible("#results")
