"""Words and scans that commands refuse, in one line and before they compute."""

import json
from pathlib import Path

import numpy as np
import pytest
from own_model import save_own_model, use_own_model
from typer import Exit

import modeling_rasalore
from modeling_rasalore.cli import main
from modeling_rasalore.commands.saying import one_line_errors
from modeling_rasalore.scans.volume_writing import write_nifti


def write_scan(path: Path) -> Path:
    """A scan whose image is too small to tell its sequence."""
    path.parent.mkdir(exist_ok=True)
    data = np.zeros((20, 24, 6), np.int16)
    data[4:16, 4:20, 1:5] = 100 + np.arange(16)[:, None]
    return write_nifti(path, data, np.diag([-5.0, -5.0, 10.0, 1.0]))


@pytest.fixture
def t2_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_own_model(save_own_model(tmp_path / "own" / "t2"), monkeypatch)


def complaint(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(words) == code
    last: str = capsys.readouterr().err.splitlines()[-1]
    return last


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--per", "foo", "--false-alarms", "0.01"], "--per must be voxels, slices, ml, got foo"),
        (["--per", "slices"], "--per is the unit of --false-alarms; give both"),
        (["--revision", "abc"], "--revision is that of a --model on the Hub, got abc alone"),
        (["--device", "cuda:9"], "--device must be auto, cpu or an accelerator of this machine"),
        (["--device", "foo"], "--device must be auto, cpu or an accelerator of this machine"),
    ],
)
def test_words_that_would_change_nothing_are_refused(
    words: list[str],
    message: str,
    t2_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = write_scan(tmp_path / "scans" / "a_t2.nii.gz")
    assert message in complaint(["predict", str(scan), *words], capsys)


def test_thresholds_of_another_sequence_than_the_model_s_are_not_stored(
    t2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((t2_model / "config.json").read_text())
    (t2_model / "config.json").write_text(json.dumps({**config, "modality": "t2"}))
    scan = write_scan(tmp_path / "scans" / "a_flair.nii.gz")
    words = ["calibrate", str(scan), "--model", str(t2_model), "--false-alarms", "0.5"]
    message = complaint([*words, "--modality", "flair"], capsys)
    assert "the model was trained on t2, but" in message and "give healthy t2 scans" in message
    assert not (t2_model / "calibration.json").exists()
    assert main([*words, "--assume-modality", "t2"]) == 0
    assert (t2_model / "calibration.json").exists()


def test_a_scan_of_unknown_sequence_beside_a_known_one_is_not_guessed(
    t2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_scan(tmp_path / "scans" / "a_t2.nii.gz").parent
    write_scan(folder / "mystery.nii.gz")
    message = complaint(["predict", str(folder)], capsys)
    assert "neither name nor header of mystery.nii.gz tells its sequence" in message
    write_scan(folder / "a_flair.nii.gz")  # of a folder of several sequences one is taken
    assert "of mystery.nii.gz tells" in complaint(["predict", str(folder)], capsys)
    assert main(["predict", str(folder), "--modality", "t2"]) == 0


def test_inspect_takes_the_sequence_that_predict_takes(
    t2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_scan(tmp_path / "scans" / "a_t2.nii.gz").parent
    write_scan(folder / "a_flair.nii.gz")
    capsys.readouterr()
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("model: of several sequences predict takes t2") and "a_t2" in said


def test_what_other_options_made_is_named_before_it_is_made_again(
    t2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "scans" / "a_t2.nii.gz")
    words = ["predict", str(scan), "--out", str(tmp_path / "out"), "--resume"]
    assert main(words) == 0 and "made again" not in capsys.readouterr().out
    assert main([*words, "--threshold", "0.4"]) == 0
    assert "made before with other settings, and made again: a_t2" in capsys.readouterr().out


def test_scores_that_no_threshold_was_calibrated_for_are_warned_about(
    t2_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_scan(tmp_path / "scans" / "a_t2.nii.gz")
    calibrate = ["calibrate", str(scan), "--model", str(t2_model), "--false-alarms", "0.5"]
    assert main(calibrate) == 0
    assert main(["predict", str(scan), "--flips"]) == 0
    error = capsys.readouterr().err
    assert "warning: threshold 0.5 is a default; the model is calibrated for other flips" in error


def test_a_reader_who_has_had_enough_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as stop, pytest.MonkeyPatch.context() as patch, one_line_errors():
        patch.setattr("sys.stdout", None)
        raise BrokenPipeError(32, "Broken pipe")
    assert stop.value.exit_code == 1 and "Broken pipe" not in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{modeling_rasalore.__version__}\n"
