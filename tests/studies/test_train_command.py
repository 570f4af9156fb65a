"""`rasalore train` on toy scans, in a few steps: a model folder, a report, and what it refuses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_files import write_slice_labels
from own_model import save_tiny_preset, use_own_model
from safetensors import SafetensorError
from small_study import TWO_STEPS, studying_here

from modeling_rasalore.cli import main
from modeling_rasalore.commands.train import full_disk_in_words
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.training import loop

WORDS = [
    *("preset=rasalore-tiny", "start=scans", "fuse_from=1", "data.skip_slices=12"),
    "systems=smoothed_rank,mirror,synthetic_only,rasalore",
    *TWO_STEPS,
]


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with studying_here():
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with slice labels, whose masks are there for scores."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantoms(folder, 6, 7, 1, (44, 54, 44), 4.0, processes=1)
    write_slice_labels(find_patients(folder), folder / "slice_labels.csv")
    return folder


def train(scans: Path, out: Path, *words: str) -> int:
    return main(["train", str(scans), "--modality", "t2", "--out", str(out), *WORDS, *words])


def stop_in_stage2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in the second step of stage 2 on pseudo-masks."""
    real = loop.learn

    def learn(run: Any, *arguments: Any) -> Any:
        if run.path.name == "stage2" and run.recipe.pseudo_masks and run.progress.step == 1:
            raise KeyboardInterrupt
        return real(run, *arguments)

    monkeypatch.setattr(loop, "learn", learn)


def test_an_interrupted_training_goes_on_to_a_model_folder_and_a_verdict(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    with pytest.MonkeyPatch.context() as patch:
        stop_in_stage2(patch)
        assert train(scans, out) == 130
    told = capsys.readouterr()
    assert "found in " in told.out and "6 patients with a t2 scan, 6 with a mask" in told.out
    assert "training takes about " in told.out and "fuse_from: 1" in told.out
    assert "the same command goes on from here" in told.err
    assert train(scans, out) == 0
    printed = capsys.readouterr().out
    assert f"done before: {out / 'start/stage2'}" in printed
    assert re.search(r"Learning from these labels (beat|did not beat) the start on", printed)
    assert {path.name for path in (out / "model").iterdir()} > {
        *("config.json", "preprocessor_config.json", "model.safetensors", "README.md"),
        *("calibration.json", "results.json", "test_slices.png", "training.yaml", "run.json"),
    }
    page = (out / "report.html").read_text()
    assert "Smoothed rank and mirror" in page and "test_slices.png" in page
    assert not (out / "ceiling").exists()
    assert not any("BraTS2021" in path.read_text() for path in (out / "model").glob("*.[jm][sd]*"))
    # What is printed last works, and so does the stored threshold.
    tried = printed.splitlines()[-1].removeprefix("try: rasalore ").split()
    assert main([*tried, "--quiet"]) == 0 and (out / "masks" / "report.html").is_file()
    scan, options = next(scans.rglob("*_t2.nii.gz")), ["--false-alarms", "0.01", "--quiet"]
    model = ["--model", str(out / "model"), "--out", str(tmp_path / "alarms")]
    assert main(["predict", str(scan), *model, *options]) == 0
    # Other labels are another training.
    labels = scans / "slice_labels.csv"
    text = labels.read_text()
    labels.write_text(text.replace(",unhealthy", ",healthy", 1))
    assert train(scans, out) == 1
    assert "holds a network made with other settings" in capsys.readouterr().err
    labels.write_text(text)


def test_few_patients_teach_lesions_painted_into_their_healthy_slices(
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_own_model(save_tiny_preset(tmp_path / "weights" / "t2"), monkeypatch)
    out = tmp_path / "mine"
    rows = "systems=smoothed_rank,mirror,package,rasalore_control"
    assert train(scans, out, "start=package", "fuse_from=20", rows) == 0
    printed = capsys.readouterr().out
    assert "fewer than fuse_from=20 patients to learn from; lesions are painted into" in printed
    assert re.search(r"Learning from these labels (beat|did not beat) the package's own", printed)
    assert not (out / "pseudo_masks").exists() and not (out / "stage2").exists()
    weights = [out / folder / "model.safetensors" for folder in ("model", "control")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    learned = json.loads((out / "control" / "run.json").read_text())
    assert learned["pseudo_masks"] is None
    splits = [json.loads((out / run / "split.json").read_text()) for run in ("control", "stage1")]
    assert all(splits[0][part] == splits[1][part] for part in ("train", "validation", "test"))


def test_without_masks_it_ends_in_criteria_and_claims_nothing(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unmasked = tmp_path / "scans"
    for patient in find_patients(scans):
        (unmasked / patient.patient_id).mkdir(parents=True)
        path = patient.images["t2"]
        (unmasked / patient.patient_id / path.name).write_bytes(path.read_bytes())
    (unmasked / "slice_labels.csv").write_bytes((scans / "slice_labels.csv").read_bytes())
    out = tmp_path / "mine"
    assert train(unmasked, out) == 0
    printed = capsys.readouterr().out
    assert "is not known: no test patient has a mask" in printed
    assert (out / "choices.md").is_file() and (out / "model" / "calibration.json").is_file()
    assert json.loads((out / "model/calibration.json").read_text())["thresholds"][0]["scans"] == 3
    # Where masks are, they change nothing that was learned.
    masked = tmp_path / "masked"
    assert train(scans, masked) == 0
    for run in ("start/stage2", "start/stage1", "stage1", "stage2"):
        weights = [folder / run / "model.safetensors" for folder in (out, masked)]
        assert weights[0].read_bytes() == weights[1].read_bytes(), run


# --- Refused in one sentence, before anything is made ---------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--curve", "5,ten"], "--curve takes numbers with commas between them, got '5,ten'"),
        (["--curve", "2,40"], "there are 3 patients to learn from beside those who are held out"),
        (["stage3=[x=1]"], "unknown recipe key 'stage3'; the nearest is 'stage2'"),
        (["start=scratch"], "start must be auto, phantoms, scans, package, got 'scratch'"),
        (["systems=mirror,rasalore"], "without smoothed_rank, synthetic_only; add that, or give"),
        (["--folds", "9"], "split.folds must be 2 to the number of patients, 6"),
    ],
)
def test_words_that_make_no_sense_are_one_line(
    words: list[str],
    message: str,
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(scans, tmp_path / "mine", *words) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "mine").exists()


def test_every_field_of_the_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--fields"]) == 0
    printed = capsys.readouterr().out
    assert "preset=rasalore-base ceiling=false" in printed and "fuse_from=20" in printed


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
)
def test_a_full_disk_is_one_sentence_and_other_failures_stay(
    error: Exception, tmp_path: Path
) -> None:
    way_out = "takes no more; make room, and the same command goes on"
    with pytest.raises(OSError, match=way_out), full_disk_in_words(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), full_disk_in_words(tmp_path):
        raise RuntimeError("shapes differ")
