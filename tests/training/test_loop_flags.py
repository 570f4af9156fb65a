"""Recipe flags that change how a step is computed leave what it computes alone."""

import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from small_ddpt import LABELS, TRAINED, make_model, make_slices
from torch import Tensor, nn
from torch.utils.data import default_collate

from modeling_rasalore import RasaloreConfig, RasaloreModel
from modeling_rasalore.models.network_rasalore import RasaloreOutput
from modeling_rasalore.recipes import BaseRecipe, LoopRecipe
from modeling_rasalore.training import loop
from modeling_rasalore.training.loop import Objective, loss_parts
from modeling_rasalore.training.optimizers import OptimizerRecipe, build_optimizer
from modeling_rasalore.training.run import RunFolder
from modeling_rasalore.training.slice_loader import Step

SMALL: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 2,
    "grid_size": 8,
    "refiner_grid": 8,
    "num_attention_heads": 2,
}
STEPS = 3
NO_REENTRY = {"use_reentrant": False}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))),
    reason="torch.compile needs a C++ compiler",
)


pytestmark = pytest.mark.usefixtures("own_accelerator")


def make_stage2(**fields: Any) -> RasaloreModel:
    torch.manual_seed(0)
    return RasaloreModel(RasaloreConfig(**{**SMALL, **fields})).train()


def make_samples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(32, 32)
    labels[8:20, 4:16] = 1
    return [
        {"pixel_values": torch.rand(1, 16, 16, generator=generator), "labels": labels}
        for _ in range(4)
    ]


class Batches:
    """Two batches in place of a loader."""

    steps_per_epoch, pieces = 2, 1

    def __init__(self, *batches: dict[str, Tensor]):
        self.batches = batches

    def steps(self, epoch: int, first: int) -> list[Step]:
        return [Step([(0, 2, batch)], 2) for batch in self.batches[first:]]

    def held_out_batches(self) -> list[tuple[tuple[int, int], dict[str, Tensor]]]:
        return [((0, place), batch) for place, batch in enumerate(self.batches)]


class OneLayer(nn.Module):
    """A network that a compiler is done with in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.ConvTranspose2d(1, 1, 2, stride=2)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> RasaloreOutput:
        logits = self.layer(pixel_values)
        loss = None if labels is None else (logits[:, 0].sigmoid() - labels).square().mean()
        return RasaloreOutput(loss=loss, logits=logits)


def train(
    folder: Path, model: nn.Module | None = None, **flags: Any
) -> tuple[list[float], nn.Module]:
    """Loss of every step of a short run, and the model it leaves behind."""
    recipe = LoopRecipe(max_steps=STEPS, batch_size=2, tensorboard=False, **flags)
    model, samples = model or make_stage2(), make_samples()
    schedule = OptimizerRecipe(learning_rate=1e-2)
    history: list[float] = []

    def losses(model: nn.Module, batch: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
        parts = loss_parts(model(batch["pixel_values"], labels=batch["labels"]))
        history.append(parts["loss"].item())
        return parts

    @torch.inference_mode()
    def score(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["pixel_values"]).logits.mean((1, 2, 3))

    optimizer = build_optimizer(schedule, [{"params": list(model.parameters())}])
    loader: Any = Batches(default_collate(samples[:2]), default_collate(samples[2:]))
    run = RunFolder(BaseRecipe(model="none", out=str(folder), loop=recipe))
    loop.train(run, model, optimizer, schedule, loader, Objective(losses, score, "score"))
    return history, model


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-6),
        ({"precision": "bfloat16"}, 0.05),
    ],
)
def test_a_run_with_the_flag_has_the_losses_of_a_run_without(
    flags: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    plain, reference = train(tmp_path / "plain")
    history, model = train(tmp_path / "flag", **flags)
    assert_same(history, model, plain, reference, tolerance)


def assert_same(
    history: list[float],
    model: nn.Module,
    plain: list[float],
    reference: nn.Module,
    tolerance: float,
) -> None:
    assert len(plain) == STEPS
    assert plain[0] != plain[-1], "the run learned nothing, so it compares nothing"
    assert history == pytest.approx(plain, rel=tolerance)
    assert model.state_dict().keys() == reference.state_dict().keys()


@needs_compiler
def test_a_compiled_run_has_the_losses_of_a_run_without(tmp_path: Path) -> None:
    plain, reference = train(tmp_path / "plain", OneLayer())
    history, model = train(tmp_path / "flag", OneLayer(), compile=True)
    assert_same(history, model, plain, reference, tolerance=1e-4)


def test_stage_2_is_traced_whole_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a compiler but the machine code of each kernel, which takes minutes for so many."""
    compiled = partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(RasaloreModel, "compile", compiled)
    plain, reference = train(tmp_path / "plain")
    history, model = train(tmp_path / "flag", compile=True)
    assert_same(history, model, plain, reference, tolerance=1e-4)


def loss_and_gradients(model: nn.Module, **inputs: Any) -> list[Tensor]:
    """The loss, and the gradient of every trainable parameter that has one."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def saved_bytes(model: nn.Module, **inputs: Any) -> int:
    """Size of everything that the forward pass keeps for the gradients, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(kept.values())


def assert_checkpointing_changes_memory_only(model: Any, **inputs: Any) -> None:
    expected, before = loss_and_gradients(model, **inputs), saved_bytes(model, **inputs)
    model.activation_checkpointing_enable(NO_REENTRY)
    values, after = loss_and_gradients(model, **inputs), saved_bytes(model, **inputs)
    assert len(values) == len(expected) > 1
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
    assert after < 0.8 * before


@pytest.mark.parametrize("noise", ["gaussian", "learned"])
def test_checkpointed_stage_2_has_the_same_gradients_from_less_memory(noise: str) -> None:
    samples = make_samples()
    assert_checkpointing_changes_memory_only(
        make_stage2(value_noise=noise, image_size=16),
        pixel_values=torch.stack([sample["pixel_values"] for sample in samples]),
        labels=torch.stack([sample["labels"] for sample in samples]),
    )


@pytest.mark.parametrize("fields", [{}, TRAINED])
def test_checkpointed_stage_1_has_the_same_gradients_from_less_memory(
    fields: dict[str, Any],
) -> None:
    assert_checkpointing_changes_memory_only(
        make_model(**fields).train(), pixel_values=make_slices(), labels=LABELS
    )
