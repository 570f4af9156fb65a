"""`rasalore predict` on heads, on what is no brain, and on sequences told or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import make_bottle, make_brain, make_head, write_slices
from own_model import save_own_model

from modeling_rasalore.brains.reading import read_brain
from modeling_rasalore.cli import main
from modeling_rasalore.scans.volumes import VolumeError

BRAIN, HEAD = make_brain(61, "t2"), make_head(61, "t2")
Predict = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_own_model(tmp_path_factory.mktemp("own"), modality="t2")


@pytest.fixture
def predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Segment a scan; its entry in the manifest, with what was said on either stream."""

    def run(scan: Path, *words: str) -> dict[str, Any]:
        out = tmp_path / "out"
        code = main(["predict", str(scan), *words, "--model", str(model), "--out", str(out)])
        said, errors = capsys.readouterr()
        manifest = json.loads((out / "manifest.json").read_text()) if not code else {"scans": {}}
        (entry,) = manifest["scans"].values() or ({},)
        return {
            "code": code,
            "said": said,
            "errors": errors,
            **manifest.get("settings", {}),
            **entry,
        }

    return run


def test_a_head_is_refused_with_every_way_out(predict: Predict, tmp_path: Path) -> None:
    result = predict(write_slices(tmp_path / "p1_t2.nii.gz", HEAD))
    assert result["code"] == 1 and "as a head with skull has" in result["errors"]
    for way in ("--brain-mask", "NAME_brainmask.nii.gz", "synthstrip", "--strip none"):
        assert way in result["errors"]
    assert "0 of 1 scans segmented" in result["said"]


@pytest.mark.parametrize("slices", [make_bottle(180, 45), make_bottle(120, 80)])
def test_a_limb_and_a_bottle_are_refused(
    slices: np.ndarray, predict: Predict, tmp_path: Path
) -> None:
    result = predict(write_slices(tmp_path / "p1_t2.nii.gz", slices))
    assert result["code"] == 1 and "and no brain; give" in result["errors"]


def test_with_its_mask_a_head_gives_what_its_brain_alone_gives(
    predict: Predict, tmp_path: Path
) -> None:
    brain = predict(write_slices(tmp_path / "brain" / "p1_t2.nii.gz", BRAIN))
    mask = write_slices(tmp_path / "m.nii.gz", (BRAIN > 0).astype(np.uint8))
    head = write_slices(tmp_path / "head" / "p1_t2.nii.gz", HEAD)
    given = predict(head, "--brain-mask", str(mask))
    assert given["millilitres"] == pytest.approx(brain["millilitres"], rel=1e-3)
    assert given["brain_source"] == "the mask m.nii.gz" and brain["brain_source"] == ""
    assert given["brain_mask"]["name"] == "m.nii.gz"
    assert "(its name says t2; brain: the mask m.nii.gz)" in given["said"]
    mask.rename(head.with_name("p1_brainmask.nii.gz"))
    beside = predict(head)
    assert beside["millilitres"] == given["millilitres"]
    assert beside["brain_source"] == "the mask p1_brainmask.nii.gz beside the scan"


def test_a_mask_beside_a_brain_alone_changes_nothing(tmp_path: Path) -> None:
    scan = write_slices(tmp_path / "p1_t2.nii.gz", BRAIN)
    write_slices(tmp_path / "p1_brainmask.nii.gz", (np.median(BRAIN) < BRAIN).astype(np.uint8))
    assert np.array_equal(read_brain(scan).slices, BRAIN)


def test_strip_none_takes_a_head_for_a_brain_and_says_so(predict: Predict, tmp_path: Path) -> None:
    result = predict(write_slices(tmp_path / "p1_t2.nii.gz", HEAD), "--strip", "none")
    assert result["code"] == 0
    (told,) = (text for text in result["warnings"] if "dark shell" in text)  # once
    assert "by --strip none, although it shows" in told
    summary = json.loads((tmp_path / "out" / result["outputs"]["summary"]).read_text())
    assert told in summary["unfit_because"]


def test_a_mask_for_two_scans_and_a_mask_with_a_program_are_refused(
    predict: Predict, tmp_path: Path
) -> None:
    for name in ("p1_t2", "p2_t2"):
        write_slices(tmp_path / "scans" / f"{name}.nii.gz", BRAIN)
    mask = write_slices(tmp_path / "m.nii.gz", (BRAIN > 0).astype(np.uint8))
    two = predict(tmp_path / "scans", "--brain-mask", str(mask))
    assert two["code"] == 1 and "is the mask of one scan, got 2 scans" in two["errors"]
    both = predict(tmp_path / "scans", "--brain-mask", str(mask), "--strip", "none")
    assert both["code"] != 0 and "exclude each other" in " ".join(both["errors"].split())


def test_a_program_that_is_not_installed_is_told_before_any_scan_is_read(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    result = predict(write_slices(tmp_path / "p1_t2.nii.gz", HEAD), "--strip", "synthstrip")
    (line,) = (line for line in result["errors"].splitlines() if line.startswith("error: "))
    assert line.startswith("error: --strip synthstrip needs the program mri_synthstrip")


def test_the_image_of_an_unnamed_scan_tells_its_sequence_and_that_is_said(
    predict: Predict, tmp_path: Path
) -> None:
    result = predict(write_slices(tmp_path / "scan.nii.gz", BRAIN))
    assert (result["modality"], result["modality_source"]) == ("t2", "its image looks like a t2")
    assert "(its image looks like a t2)" in result["said"]


def test_an_unnamed_scan_of_another_sequence_is_warned_about(
    predict: Predict, tmp_path: Path
) -> None:
    result = predict(write_slices(tmp_path / "scan.nii.gz", make_brain(61, "t1")))
    assert result["modality"] is None
    assert any("trained on t2, but its image looks like a t1" in x for x in result["warnings"])


def test_a_scan_that_says_another_sequence_is_left_out_unless_that_is_assumed(
    predict: Predict, tmp_path: Path
) -> None:
    scan = write_slices(tmp_path / "p1_t1.nii.gz", BRAIN)
    refused = predict(scan, "--modality", "t2")
    assert refused["code"] == 1 and "its name says t1, not t2; give a t2 scan" in refused["errors"]
    assumed = predict(scan, "--assume-modality", "t2")
    assert assumed["modality"] == "t2" and assumed["code"] == 0
    assert (
        "taken as t2 because of --assume-modality, although its name says t1."
        in (assumed["warnings"])
    )


def test_reading_a_head_in_python_ends_with_the_same_sentence(tmp_path: Path) -> None:
    path = write_slices(tmp_path / "p1_t2.nii.gz", HEAD)
    with pytest.raises(VolumeError, match="a scan must show the brain alone, but it shows"):
        read_brain(path)
