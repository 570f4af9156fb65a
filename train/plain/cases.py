"""Set up what `speed.py` compares: the plain form of each computation beside the package's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_ddpt import plain_heatmaps, plain_step
from plain_rasalore import plain_forward, plain_loss
from plain_slices import plain_cut
from torch import Tensor, nn

from modeling_rasalore import DdptConfig, DdptModel, RasaloreConfig, RasaloreModel
from modeling_rasalore.data.layouts import find_patients
from modeling_rasalore.data.patient import Patient
from modeling_rasalore.data.slices import read_slices
from modeling_rasalore.models.network_rasalore import RasaloreOutput
from modeling_rasalore.scans.volume_writing import write_nifti

SLICES_SKIPPED = 15
TOY: dict[str, Any] = {
    "image_size": 16,
    "base_channels": 2,
    "grid_size": 8,
    "refiner_grid": 8,
    "num_attention_heads": 2,
}


@dataclass
class Case:
    """Two ways to the same result.

    Attributes:
        plain: the obvious way.
        ours: the package's.
        tolerance: how far the results may lie apart; None where the forms differ on purpose.
        model: whose `forward` is the package's way alone, so that it can compute in another float
            type; None where there is none.
    """

    plain: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    tolerance: float | None = 1e-3
    model: nn.Module | None = None


# --- Stage 2 ----------------------------------------------------------------------------------
def make_model(preset: str, toy: bool) -> RasaloreModel:
    """A preset of stage 2 with random weights."""
    sizes = {**TOY, "attention_head_dim": 16 if preset == "released" else None} if toy else {}
    return RasaloreModel(RasaloreConfig.preset(preset, **sizes))


def make_masks(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Pseudo-masks and SAM masks: overlapping discs in random places, (B, 1, size, size)."""
    axis = torch.arange(size, dtype=torch.float32)
    centre = size * (0.3 + 0.4 * torch.rand(batch, 2, 1, 1, 1))
    distance = ((axis[:, None] - centre[:, 0]) ** 2 + (axis - centre[:, 1]) ** 2).sqrt()
    return (distance < 0.15 * size).float(), (distance < 0.12 * size).float()


def inference_case(batch: int, toy: bool) -> Case:
    """Logits of slices at the released sizes."""
    model = make_model("released", toy).eval()
    pixel_values = torch.rand(batch, 1, model.config.image_size, model.config.image_size)

    @torch.no_grad()
    def plain() -> Tensor:
        return plain_forward(model, pixel_values)["logits"]

    @torch.no_grad()
    def ours() -> Tensor:
        return model(pixel_values).logits

    return Case(plain, ours, model=model)


def training_case(preset: str, toy: bool) -> Case:
    """One SGD step at batch 4, against the plain step of the released preset."""
    batch = 4
    plain_model, model = make_model("released", toy), make_model(preset, toy)
    if preset == "released":
        model.load_state_dict(plain_model.state_dict())
    config = plain_model.config
    assert isinstance(config, RasaloreConfig)
    size = config.image_size
    pixel_values = torch.rand(batch, 1, size, size)
    masks = make_masks(batch, 2 * size)
    # Rate 0: every step does all the work from the same weights.
    plain_optimizer = torch.optim.SGD(plain_model.parameters(), lr=0.0, momentum=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(0)  # the same dropout in both
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def plain_loss_now() -> Tensor:
        outputs = plain_forward(plain_model, pixel_values)
        return plain_loss(config, outputs, *masks)

    plain_model.train()
    model.train()
    return Case(
        lambda: step(plain_optimizer, plain_loss_now),
        lambda: step(optimizer, lambda: model(pixel_values, *masks).loss),
        1e-3 if preset == "released" else None,
        model,
    )


def loss_case(toy: bool) -> Case:
    """All losses and the gradient of the logits, at the released batch of 16."""
    batch = 4 if toy else 16
    model = make_model("released", toy)
    config = model.config
    assert isinstance(config, RasaloreConfig)
    logits = torch.randn(batch, 1, config.output_size, config.output_size, requires_grad=True)
    points = config.grid_size**2
    activations = torch.rand(batch, points)
    embeddings = torch.randn(batch, points, config.embedding_dim)
    masks = make_masks(batch, config.output_size)
    outputs = {"logits": logits, "point_activations": activations, "point_embeddings": embeddings}

    def gradient(loss: Tensor | None) -> Tensor:
        assert loss is not None  # masks are given
        return torch.cat([loss.detach()[None], torch.autograd.grad(loss, logits)[0].flatten()])

    def ours() -> Tensor:
        output = RasaloreOutput(**outputs)
        model.add_losses(output, *masks)
        return gradient(output.loss)

    return Case(lambda: gradient(plain_loss(config, outputs, *masks)), ours)


# --- Stage 1 ----------------------------------------------------------------------------------
def stage1_step_case(toy: bool) -> Case:
    """One guided SGD step at batch 8."""
    batch = 8
    model, pixel_values = make_stage1(batch, toy)
    labels = torch.arange(batch) % 2
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9)
    model.train()

    def step(loss: Tensor) -> Tensor:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Case(
        lambda: step(plain_step(model, pixel_values, labels)),
        lambda: step(model(pixel_values, labels=labels, guidance=True).loss),
        model=model,
    )


def heatmaps_case(toy: bool) -> Case:
    """The heatmaps of 16 slices."""
    model, pixel_values = make_stage1(4 if toy else 16, toy)
    model.eval()
    return Case(
        lambda: plain_heatmaps(model, pixel_values),
        lambda: model.heatmaps(pixel_values, "cls_attention"),
    )


def make_stage1(batch: int, toy: bool) -> tuple[DdptModel, Tensor]:
    """Stage 1 on a ViT-B/32 with random weights, and slices (B, C, H, W) for it."""
    fields = {"heatmap_views": 1} if toy else {"base_model_name_or_path": None}
    model = DdptModel(DdptConfig.preset("tiny" if toy else "released", **fields))
    vision = model.config.clip_config.vision_config
    shape = (batch, vision.num_channels, vision.image_size, vision.image_size)
    return model, torch.rand(shape)


# --- Data -------------------------------------------------------------------------------------
def cut_case(root: str, folder: Path, toy: bool) -> Case:
    """A volume and its mask, cut into slices; the result is how many there are."""
    if root:
        patients = [p for p in find_patients(root) if p.mask and "t2" in p.images]
        if not patients:
            raise ValueError(f"a patient with a T2 scan and a mask is cut, and {root} has none.")
        patient = patients[0]
    else:
        patient = generated_patient(folder, (48, 48, 40) if toy else (240, 240, 155))
    scan, mask = patient.images["t2"], patient.mask
    assert mask is not None
    return Case(
        lambda: torch.tensor(plain_cut(scan, mask, folder, SLICES_SKIPPED)),
        lambda: torch.tensor(
            len(list(read_slices(patient, "t2", with_mask=True, skip=SLICES_SKIPPED)))
        ),
    )


def generated_patient(folder: Path, shape: tuple[int, int, int]) -> Patient:
    """A noisy ball with a smaller one as its lesion, in the files of one patient."""
    axes = np.meshgrid(*(np.linspace(-1.3, 1.3, side) for side in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(600, 100, shape)
    brain = np.where(radius < 1, noise, 0).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # as BraTS: columns to the left, rows to the back
    scan = write_nifti(folder / "ball_t2.nii.gz", brain, affine)
    mask = write_nifti(folder / "ball_seg.nii.gz", (radius < 0.4).astype(np.uint8), affine)
    return Patient("ball", {"t2": scan}, mask=mask)


# By name, all but cut_case, which needs a folder: whether in toy sizes -> what is compared.
CASES: dict[str, Callable[[bool], Case]] = {
    "inference_b1": partial(inference_case, 1),
    "inference_b4": partial(inference_case, 4),
    "training_b4": partial(training_case, "released"),
    "poster_training_b4": partial(training_case, "poster"),
    "losses": loss_case,
    "stage1_step": stage1_step_case,
    "heatmaps": heatmaps_case,
}
