"""DAE: a U-Net that removes coarse noise from healthy slices removes lesions too.

Native. Kascenas, Pugeault, O'Neil, "Denoising Autoencoders for Unsupervised Anomaly Detection in
Brain MRI", MIDL 2022.
Follows: 4-level U-Net with weight-standardised convolutions, coarse Gaussian noise (16x16 grid,
standard deviation 0.2, rolled), masked squared error, residual without noise at test time.
Leaves out: validation-based choice of the checkpoint, 3D component removal, four sequences at once
(one sequence here, as in the poster's T2 table).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frames import BRAIN, residual_maps
from .interface import LearnedSystem, step
from .networks import UNet


@dataclass(frozen=True)
class DaeSettings:
    pixels: int
    widths: tuple[int, ...]  # of the U-Net's levels
    steps: int
    batch_size: int
    rate: float
    noise_grid: int = 16
    noise_std: float = 0.2


class Dae(LearnedSystem):
    """Residual of a denoising U-Net of healthy slices."""

    SIZES = {  # noqa: RUF012 - constant
        "small": DaeSettings(64, (16, 32, 64), 300, 16, 1e-3),
        "paper": DaeSettings(128, (64, 128, 256, 512), 67_200, 16, 1e-4),
    }
    HEALTHY_ONLY = RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        return {"unet": UNet(self.channels, self.settings.widths)}

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        optimizer = self.optimizer("unet", rate=settings.rate, amsgrad=True, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for chosen in self.batches(labels, settings.steps, settings.batch_size):
            clean = images[chosen]
            brain = (clean > BRAIN).any(1, keepdim=True)
            noisy = clean + coarse_noise(clean, settings.noise_grid, settings.noise_std) * brain
            error = (self.networks["unet"](noisy) - clean).square() * brain
            step(optimizer, error.sum() / (brain.sum() * self.channels).clamp(min=1))
            schedule.step()

    def maps(self, images: Tensor) -> Tensor:
        return residual_maps(images, self.networks["unet"](images))


def coarse_noise(images: Tensor, grid: int, std: float) -> Tensor:
    """Noise N(0, std) on a grid x grid lattice, bilinear to the images' size, rolled at random."""
    coarse = torch.randn(*images.shape[:2], grid, grid, device=images.device) * std
    fine = F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    rows, columns = (int(torch.randint(side, ())) for side in images.shape[-2:])
    return fine.roll((rows, columns), (-2, -1))
