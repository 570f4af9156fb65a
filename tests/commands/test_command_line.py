"""The command line, called as a function; some tests run it as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from predict_command import predict, save_tiny_model

from modeling_rasalore.cli import main
from modeling_rasalore.scans.bids import output_stems


def test_results_mirror_the_folders_of_the_scans():
    scans = [Path("/data/sub-1/anat/t2.nii.gz"), Path("/data/sub-2/anat/t2.nii")]
    assert output_stems(scans, Path("out")) == [
        Path("out/sub-1/anat/t2"),
        Path("out/sub-2/anat/t2"),
    ]


def test_results_of_one_folder_are_not_nested():
    scans = [Path("/data/a.nii"), Path("/data/b.nii.gz")]
    assert output_stems(scans, Path("out")) == [Path("out/a"), Path("out/b")]


def test_a_scan_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="name each scan once"):
        output_stems([Path("/data/a.nii"), Path("/data/a.nii")], Path("out"))


def test_two_scans_whose_names_differ_in_their_ending_both_get_results():
    scans = [Path("/data/a.nii"), Path("/data/a.nii.gz"), Path("/data/a.zip")]
    names = [path.name for path in output_stems(scans, Path("out"))]
    assert names == ["a.nii", "a", "a.zip"]


def test_phantoms_are_written_with_the_asked_numbers(tmp_path, capsys):
    small = ["--shape", "24", "28", "24", "--voxel-size", "8"]
    words = ["phantom", str(tmp_path / "p"), "--patients", "2", "--healthy", "1", "--seed", "3"]
    assert main([*words, *small]) == 0
    assert len(list((tmp_path / "p").glob("*/*_t2.nii.gz"))) == 2
    assert str(tmp_path / "p") in capsys.readouterr().out


def test_a_users_mistake_is_one_line(tmp_path, capsys):
    assert main(["phantom", str(tmp_path), "--patients", "1", "--healthy", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: healthy_patients")


def test_the_installed_command_prints_its_help():
    command = [sys.executable, "-m", "modeling_rasalore.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "predict" in result.stdout
    assert "phantom" in result.stdout
    assert result.stderr == ""


def run_without_torch(*words):
    """Code (100 where torch was imported) and the one line of a command that ends early."""
    program = (
        "import sys; from modeling_rasalore.cli import main; "
        "code = main(sys.argv[1:]); sys.exit(100 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True
    )
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


def test_what_cannot_work_is_told_before_torch_is_loaded(scan, model, tmp_path):
    predicting = ["predict", scan, "--model", model, "--out"]
    code, said = run_without_torch(*predicting, scan / "out")
    assert code == 1 and "--out needs a folder that takes files" in said
    code, said = run_without_torch("predict", scan, "--model", "owner/typo", "--out", tmp_path)
    assert code == 1 and "owner/typo is no folder here" in said
    for name in ("t1", "flair"):
        (scan.parent / f"p_{name}.nii.gz").write_bytes(scan.read_bytes())
    model = save_tiny_model(tmp_path / "t2", "t2")
    words = ["calibrate", scan.parent, "--model", model, "--false-alarms", "0.05"]
    code, said = run_without_torch(*words)
    assert code == 1 and "choose it with --modality" in said


def test_an_interrupt_says_how_to_go_on(scan, model, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_rasalore.prediction.run.predict_scans", interrupt)
    assert predict(scan, model=model, out=tmp_path / "out") == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "interrupted; finished results are complete, and the same command with --resume goes on."
    )


def test_inspect_tells_size_and_memory_without_a_model(scan, capsys):
    (scan.parent / "bad.nii").write_bytes(b"x")
    assert main(["inspect", str(scan.parent), "--json"]) == 1
    facts = {Path(fact["input"]).name: fact for fact in json.loads(capsys.readouterr().out)}
    assert (facts["a.nii.gz"]["slices"], facts["a.nii.gz"]["voxel_order"]) == (6, "LPS")
    assert facts["a.nii.gz"]["reason"] is None
    assert "bad.nii" in facts["bad.nii"]["reason"]


def test_export_without_its_extra_says_which_one(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    words = ["export", "--model", str(model), "--out", str(tmp_path / "a.onnx")]
    assert main(words) == 1
    assert "rasalore[onnx]" in capsys.readouterr().err


def test_the_shell_completes_commands_and_options():
    environment = {
        **os.environ,
        **{"_RASALORE_COMPLETE": "complete_bash", "COMP_WORDS": "rasalore pre", "COMP_CWORD": "1"},
    }
    program = "import sys; from modeling_rasalore.cli import main; sys.exit(main([]))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "predict"


@pytest.mark.parametrize("words", [["predikt"], ["predict"], ["inspect", "--colour"]])
def test_words_that_make_no_sense_end_with_code_2(words):
    assert main(words) == 2


@pytest.mark.parametrize(
    "command",
    ["predict", "inspect", "calibrate", "phantom", "convert-released", "export"],
)
def test_every_command_has_an_example_in_its_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"Example: rasalore {command}" in " ".join(capsys.readouterr().out.split())


def test_help_does_not_load_torch():
    program = (
        "import sys; sys.argv = ['rasalore', '--help']; from modeling_rasalore.cli import main; "
        "main(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_a_mistyped_model_is_told_without_loading_torch(scan, tmp_path):
    words = ["predict", scan, "--model", tmp_path / "typo", "--out", tmp_path / "o"]
    code, said = run_without_torch(*words)
    assert code == 1
    assert said.startswith("error: --model needs an existing folder or a repo id")
