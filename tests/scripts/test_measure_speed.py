"""The script that measures speed, at sizes that only show that everything runs."""

import json
import subprocess
import sys
from pathlib import Path

import devices
import pytest
import speed
import torch
import torch.nn.functional as F
from speed import (
    NAMES,
    ROUNDED,
    SpeedRecipe,
    check_agreement,
    count_gflop,
    prepared,
    run_for_peak,
)

from modeling_rasalore.recipes import load_recipe

ROOT = Path(__file__).parents[2]
KEYS = {"ratio", "seconds", "plain_seconds", "gflop", "peak_mib", "plain_peak_mib"}


def toy_words(out: Path, names: list[str]) -> list[str]:
    return [f"out={out}", "toy=true", "rounds=1", "threads=1", f"names=[{','.join(names)}]"]


def check_table(out: Path, names: list[str], printed: str) -> None:
    figures = json.loads((out / "speed.json").read_text())
    assert list(figures) == names
    for name, figure in figures.items():
        assert set(figure) >= KEYS
        assert figure["ratio"] == pytest.approx(figure["plain_seconds"] / figure["seconds"])
        assert name in printed


def test_a_figure_is_printed_and_written(tmp_path: Path) -> None:
    program = [sys.executable, "train/plain/speed.py", *toy_words(tmp_path, ["cut_volume"])]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    check_table(tmp_path, ["cut_volume"], done.stdout)


def test_every_figure_agrees_with_its_plain_form_and_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure_peak", run_for_peak)  # here, and in no process of its own
    threads = torch.get_num_threads()
    try:
        speed.main(load_recipe(SpeedRecipe, toy_words(tmp_path, NAMES)))
    finally:
        torch.set_num_threads(threads)
    check_table(tmp_path, NAMES, capsys.readouterr().out)


def test_bfloat16_rounds_the_packages_form_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    results = {}
    for precision in ("float32", "bfloat16"):
        recipe = SpeedRecipe(names=["inference_b1"], toy=True, precision=precision)
        with prepared("inference_b1", recipe) as case:
            results[precision] = case.plain(), case.ours()
    (plain, exact), (same_plain, rounded) = results.values()
    assert torch.equal(plain, same_plain)
    assert 1e-5 < (exact - rounded).abs().max() < ROUNDED


def test_without_linux_s_files_no_peak_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "CLEAR_PEAK", tmp_path / "none")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    speed.main(load_recipe(SpeedRecipe, toy_words(tmp_path, ["losses"])))
    figure = json.loads((tmp_path / "speed.json").read_text())["losses"]
    assert (figure["peak_mib"], figure["plain_peak_mib"]) == (None, None)
    assert capsys.readouterr().out.splitlines()[1].split()[7:9] == ["-", "-"]


@pytest.mark.parametrize("words", [["names=[speed]"], ["rounds=0"]])
def test_what_cannot_be_measured_is_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names must be some of inference_b1"):
        speed.main(load_recipe(SpeedRecipe, [f"out={tmp_path}", *words]))


def test_forms_with_different_results_are_not_compared() -> None:
    one, two = torch.ones(2), torch.tensor([1.0, 1.5])
    with pytest.raises(ValueError, match=r"losses: both forms must agree to 0.001, got 0.5"):
        check_agreement("losses", one, two, 1e-3)
    with pytest.raises(ValueError, match="got nan"):
        check_agreement("losses", one, two * torch.nan, 1e-3)
    check_agreement("losses", one, two, 0.6)


def test_operations_are_those_counted_by_hand() -> None:
    matrix, tokens = torch.rand(30, 20), torch.rand(1, 2, 10, 8)
    assert count_gflop(lambda: matrix @ matrix.T)[1] == pytest.approx(2 * 30 * 20 * 30 / 1e9)
    attention = 2 * 2 * (2 * 10 * 10 * 8)  # two heads, two products each
    with torch.no_grad():
        counted = count_gflop(lambda: F.scaled_dot_product_attention(tokens, tokens, tokens))[1]
    assert counted == pytest.approx(attention / 1e9)


def test_a_device_is_measured_in_every_form_and_over_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {name: form for name, form in devices.FORMS.items() if not form.compiled}
    monkeypatch.setattr(devices, "FORMS", forms)  # compiling is tested with the training loop
    speed.main(
        load_recipe(
            SpeedRecipe, [*speed.words_of(["--device", "cpu", "--short"]), f"out={tmp_path}"]
        )
    )
    figures = json.loads((tmp_path / "device.json").read_text())
    assert (figures["device"], figures["short"]) == ("cpu", True)
    tiny = figures["presets"]["rasalore-tiny"]
    assert list(tiny["forms"]) == ["float32", "bfloat16"]  # TF32 is of GPUs
    for form in tiny["forms"].values():
        assert form["training_slices_per_second"] == pytest.approx(2000 / form["step_ms"])
        assert form["training_peak_mib"] is None
    epoch = tiny["epoch"]
    assert epoch["slices"] > 0 and 0 < epoch["loader_share"] < 1
    assert f"an epoch of {epoch['slices']} slices" in capsys.readouterr().out
