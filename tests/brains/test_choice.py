"""Without --model, the package's model for the sequence of the given scans is taken."""

from pathlib import Path

import numpy as np
import pytest
from heads import make_brain, make_head, write_slices
from own_model import save_own_model, use_own_model

from modeling_rasalore.brains import choice
from modeling_rasalore.brains.choice import choose_package_model
from modeling_rasalore.cli import main
from modeling_rasalore.scans.volume_writing import write_nifti

UNTOLD = (None, None, False, None)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models for FLAIR and T2."""
    for sequence in ("flair", "t2"):
        folder = save_own_model(tmp_path / "own" / sequence, modality=sequence)
    return use_own_model(folder, monkeypatch).parent


def write_scans(folder: Path, *names: str) -> list[Path]:
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    folder.mkdir(exist_ok=True)
    affine = np.diag([-5.0, -5.0, 10.0, 1.0])
    return [write_nifti(folder / f"{name}.nii.gz", data, affine) for name in names]


@pytest.mark.parametrize(("name", "sequence"), [("p1_t2", "t2"), ("p1_FLAIR", "flair")])
def test_the_name_of_a_scan_tells_its_model(
    weights: Path, tmp_path: Path, name: str, sequence: str
) -> None:
    model, found, told = choose_package_model(write_scans(tmp_path / "scans", name), UNTOLD)
    assert model == weights / sequence and len(found.scans) == 1 and told


def test_of_a_folder_of_several_sequences_the_one_with_the_clearest_lesions_is_taken(
    weights: Path, tmp_path: Path
) -> None:
    write_scans(tmp_path / "scans", "p1_t1", "p1_t2", "p1_flair", "p2_flair")
    model, found, _ = choose_package_model([tmp_path / "scans"], UNTOLD)
    assert model == weights / "flair"
    assert [path.name for path in found.scans] == ["p1_flair.nii.gz", "p2_flair.nii.gz"]


def test_what_was_asked_for_wins_over_what_is_clearest(weights: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "scans", "p1_t2", "p1_flair")
    model, found, _ = choose_package_model([tmp_path / "scans"], (None, "t2", False, None))
    assert model == weights / "t2" and [path.name for path in found.scans] == ["p1_t2.nii.gz"]


@pytest.mark.parametrize("names", [["p1_t1"], ["p1_t1", "p1_t1ce"]])
def test_sequences_without_a_model_are_refused(
    weights: Path, tmp_path: Path, names: list[str]
) -> None:
    write_scans(tmp_path / "scans", *names)
    with pytest.raises(ValueError, match=r"own models read flair, t2, got t1; give such a scan"):
        choose_package_model([tmp_path / "scans"], UNTOLD)


def test_single_files_of_several_sequences_are_refused(weights: Path, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", "p1_t2", "p1_flair")
    with pytest.raises(ValueError, match=r"one model for each of flair, t2, .* with --modality"):
        choose_package_model(scans, UNTOLD)


def test_a_scan_that_nothing_tells_is_looked_at(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = write_scans(tmp_path / "scans", "p1")
    with pytest.raises(ValueError, match=r"nor image of p1.nii.gz tells .* --modality flair or t2"):
        choose_package_model([scan], UNTOLD)
    monkeypatch.setattr(choice, "look_at_first", lambda *_: "t2")
    assert choose_package_model([scan], UNTOLD)[0] == weights / "t2"


def test_a_head_that_nothing_names_is_looked_at_within_the_mask_that_is_given(
    weights: Path, tmp_path: Path
) -> None:
    head = write_slices(tmp_path / "head.nii.gz", make_head(60, "t2"))
    mask = write_slices(tmp_path / "mask.nii.gz", (make_brain(60, "t2") > 0).astype(np.uint8))
    assert choose_package_model([head], UNTOLD, mask)[0] == weights / "t2"


def test_a_scan_that_cannot_be_read_is_told_by_the_run(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p1.nii.gz").write_bytes(b"no scan")
    assert main(["predict", str(tmp_path / "p1.nii.gz")]) == 1
    assert "failed: p1.nii.gz" in capsys.readouterr().out


def test_predict_says_which_model_it_takes(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scans(tmp_path / "scans", "p1_t1", "p1_t2")
    assert main(["predict", str(tmp_path / "scans")]) == 0
    assert capsys.readouterr().out.startswith("model: own, t2, which comes with the package\n")
