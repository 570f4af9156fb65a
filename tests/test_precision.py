"""The float type of a network: chosen by what its processor has, and never felt around it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_ddpt import make_model as make_stage1
from small_rasalore import make_model

from modeling_rasalore import RasaloreConfig
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.phantoms import write_phantoms
from modeling_rasalore.evaluation.metrics import average_precision, dice
from modeling_rasalore.packaged import packaged_sequences
from modeling_rasalore.precision import choose_precision, computing_in
from modeling_rasalore.prediction.journal import WHOLE, open_journal
from modeling_rasalore.prediction.loading import load_model
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.planning import settle_precision
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.recipes import BaseRecipe, LoopRecipe
from modeling_rasalore.scans.volumes import read_volume
from modeling_rasalore.training.run import RunFolder

CPU = torch.device("cpu")
BASE = RasaloreConfig.preset("base")


def have(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    """Let torch say that the processor has these instructions."""
    capabilities = dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


# --- What "auto" stands for -----------------------------------------------------------------------
@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
def test_a_processor_that_multiplies_bfloat16_is_asked_to(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, "avx512_f", instructions)
    chosen = choose_precision(BASE, CPU)
    assert chosen.name == "bfloat16" and instructions in chosen.reason


def test_other_processors_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "avx2", "avx512_f", "amx_tile")
    chosen = choose_precision(BASE, CPU)
    assert chosen.name == "float32" and "no amx_bf16 or avx512_bf16" in chosen.reason


def test_a_torch_that_does_not_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision(BASE, CPU).name == "float32"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (RasaloreConfig.preset("tiny"), "float32"),
        (RasaloreConfig.preset("poster"), "bfloat16"),
        (make_stage1().config, "float32"),
        (None, "float32"),
    ],
)
def test_narrow_networks_gain_nothing(
    config: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, "avx512_bf16")
    assert choose_precision(config, CPU).name == name


def test_what_is_asked_for_is_done_and_an_imitation_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have(monkeypatch, "amx_bf16")
    assert choose_precision(BASE, CPU, "float32") == ("float32", "asked for")
    have(monkeypatch)
    chosen = choose_precision(BASE, CPU, "bfloat16")
    assert chosen.name == "bfloat16" and "imitates" in chosen.reason


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loop\.precision must be auto, float32 or bfloat16"):
        choose_precision(BASE, CPU, "bf16", "loop.precision")


def test_a_run_that_goes_on_keeps_the_precision_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, "amx_bf16")
    model, options = make_model(base_channels=12), PredictionOptions(precision="auto")
    facts = {"device": "cpu", "settings": {"precision": "float32"}}
    with open_journal(tmp_path, WHOLE, facts):
        pass
    assert settle_precision(options, model, tmp_path).precision == "float32"
    with open_journal(tmp_path, WHOLE, {**facts, "device": "cuda:0"}):
        pass  # results of another kind of device are not gone on from
    assert settle_precision(options, model, tmp_path).precision == "bfloat16"


def test_a_training_that_goes_on_keeps_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_accelerator: None
) -> None:
    loop = LoopRecipe(max_steps=1, tensorboard=False)
    recipe, config = BaseRecipe("none", str(tmp_path), loop=loop), RasaloreConfig.preset("base")
    have(monkeypatch)
    run = RunFolder(recipe, config)
    assert run.precision.name == run.describe()["precision"] == "float32"
    run.save_checkpoint()
    have(monkeypatch, "avx512_bf16")
    assert RunFolder(recipe, config).precision == ("float32", "as the run was begun")
    (tmp_path / "other").mkdir()
    recipe.out = str(tmp_path / "other")
    other = RunFolder(recipe, config)
    assert (other.precision.name, other.accelerator.mixed_precision) == ("bfloat16", "bf16")


def test_processes_that_share_a_folder_compute_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "amx_bf16")
    model = make_model(base_channels=12)
    options = PredictionOptions(precision="auto")
    assert settle_precision(options, model).precision == "bfloat16"
    assert settle_precision(options, model, shared=True).precision == "float32"
    asked = replace(options, precision="bfloat16")
    assert settle_precision(asked, model, shared=True).precision == "bfloat16"


# --- What it changes ------------------------------------------------------------------------------
def test_only_the_network_computes_in_bfloat16() -> None:
    model, product = make_model().eval(), torch.rand(4, 4)
    pixel_values = torch.rand(1, 1, model.config.image_size, model.config.image_size)
    expected = model(pixel_values).logits
    with torch.no_grad(), computing_in("bfloat16", model):
        assert (product @ product).dtype == torch.float32
        assert model(pixel_values).logits.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model(pixel_values).logits, expected)


def test_a_forward_of_somebody_else_is_put_back() -> None:
    model = make_model()
    model.forward = own = model.forward  # as Accelerate leaves it
    with computing_in("bfloat16", model):
        assert model.forward is not own
    assert model.forward is own


def test_stage_1_has_its_logits_and_losses_in_float32() -> None:
    model = make_stage1()
    vision = model.config.clip_config.vision_config
    slices = torch.rand(2, vision.num_channels, vision.image_size, vision.image_size)
    with computing_in("bfloat16", model):
        output = model(slices, labels=torch.tensor([0, 1]))
    assert output.image_embeds.dtype == torch.bfloat16
    assert {output.logits.dtype, output.loss.dtype} == {torch.float32}


# --- Agreement ------------------------------------------------------------------------------------
@pytest.mark.skipif(
    not packaged_sequences(), reason="the package's own weights are not in this copy"
)
def test_dice_and_average_precision_of_both_precisions_are_within_a_fifth_of_a_point(
    tmp_path: Path,
) -> None:
    network, processor = load_model(device="cpu")
    write_phantoms(tmp_path, 2, shape=(48, 56, 48), voxel_size=4.0, processes=1)
    scores: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for patient in find_patients(tmp_path):
        assert patient.mask is not None
        truth = read_volume(patient.mask).slices > 0
        scan = read_volume(patient.images[network.config.modality])
        for name, values in scores.items():
            options = PredictionOptions(precision=name)
            predicted = predict_volume(network, processor, scan, options).scores
            values += [dice(predicted > 0.5, truth), average_precision(predicted, truth)]
    assert scores["float32"] != scores["bfloat16"], "both computed in the same precision"
    assert np.subtract(*scores.values()) == pytest.approx(0, abs=0.002)
