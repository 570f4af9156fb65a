"""AnoFPDM: noise is added step by step, and healthy and unconditional predictions are compared.

Adapted. Che, Rafsani, Shah, Siddiquee, Wu, "AnoFPDM: Anomaly Detection with Forward Process of
Diffusion Models for Brain MRI", WACV Workshops 2025 (arXiv 2404.15683).
Follows: class-conditional diffusion model with the label dropped at p 0.1, DDIM inversion, healthy
guidance w = 2, sub-maps (guided x0 - x)^2 averaged up to the step of largest disagreement, median.
Departs: diffusers' UNet2DModel (no class keys in the attention, a learned null class instead of a
zero vector); the unguided prediction is the null class, not the authors' label without guidance.
Leaves out: the threshold from the map's own quantile and the slice gate fitted on labels (the
benchmark's thresholds are the same for every system), component removal. `small`: 32 px, base 16,
15 strided steps of the forward process, where the authors take 600.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from .frames import smooth
from .interface import LearnedSystem, step

HEALTHY_CLASS, NULL_CLASS = 0, 2
DROPPED = 0.1  # share of training slices whose label is replaced by the null class
LAST_STEP = 600  # of 1000


@dataclass(frozen=True)
class AnofpdmSettings:
    pixels: int
    widths: tuple[int, ...]
    attention_levels: int  # how many of the deepest levels attend
    steps: int
    batch_size: int
    rate: float
    forward_steps: int  # strided, up to `LAST_STEP`
    guidance: float = 2.0
    average: float = 0.9999  # decay of the averaged weights


class Anofpdm(LearnedSystem):
    """Guided error along the forward process."""

    SIZES = {  # noqa: RUF012 - constant
        "small": AnofpdmSettings(32, (16, 32, 32), 1, 500, 16, 1e-3, 15, average=0.99),
        "paper": AnofpdmSettings(128, (128, 128, 256, 384, 512), 3, 210_000, 64, 1e-4, 600),
    }
    RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        settings = self.settings
        levels = len(settings.widths)
        attends = [level >= levels - settings.attention_levels for level in range(levels)]
        down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends]
        up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
        self.scheduler = DDPMScheduler(beta_schedule="linear")
        unet = UNet2DModel(
            sample_size=settings.pixels,
            in_channels=1,
            out_channels=1,
            block_out_channels=settings.widths,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=2 if levels > 3 else 1,
            norm_num_groups=8,
            attention_head_dim=settings.widths[-1] // 4,
            num_class_embeds=3,
            resnet_time_scale_shift="scale_shift",
        )
        return {"unet": unet}

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings, unet = self.settings, self.networks["unet"]
        optimizer = torch.optim.AdamW(unet.parameters(), settings.rate, weight_decay=0.0)
        averaged = EMAModel(unet.parameters(), decay=settings.average)
        for chosen in self.batches(labels, settings.steps, settings.batch_size):
            clean = signed(images[chosen])
            noise = torch.randn_like(clean)
            times = torch.randint(1000, (len(clean),), device=clean.device)
            dropped = torch.rand(len(clean), device=clean.device) < DROPPED
            classes = torch.where(dropped, NULL_CLASS, labels[chosen])
            noisy = self.scheduler.add_noise(clean, noise, times)
            step(optimizer, F.mse_loss(unet(noisy, times, classes).sample, noise))
            averaged.step(unet.parameters())
        averaged.copy_to(unet.parameters())

    @torch.no_grad()
    def forward_process(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Guided and unguided x0 at each step, (T, N, 1, p, p) each, of slices in [-1, 1]."""
        times = torch.linspace(1, LAST_STEP, self.settings.forward_steps + 1).long().tolist()
        share = self.scheduler.alphas_cumprod.to(images.device)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        state = share[times[0]].sqrt() * images + (1 - share[times[0]]).sqrt() * noise
        guided, unguided = [], []
        for now, following in pairwise(times):
            healthy, null = self.noise_estimates(state, now)
            weight = self.settings.guidance
            towards = (1 + weight) * healthy - weight * null
            guided.append(clean_estimate(state, towards, share[now]))
            unguided.append(clean_estimate(state, null, share[now]))
            # DDIM inversion: the same noise, one step further.
            state = share[following].sqrt() * unguided[-1] + (1 - share[following]).sqrt() * null
        return torch.stack(guided), torch.stack(unguided)

    def noise_estimates(self, state: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """Noise as the healthy and the null class explain it."""
        estimates = []
        for class_label in (HEALTHY_CLASS, NULL_CLASS):
            classes = torch.full((len(state),), class_label, device=state.device)
            estimates.append(self.networks["unet"](state, time, classes).sample)
        return estimates[0], estimates[1]

    def maps(self, images: Tensor) -> Tensor:
        unit = signed(images)
        guided, unguided = self.forward_process(unit)
        last = (guided - unguided).square().mean((2, 3, 4)).argmax(0)  # per slice, (N,)
        taken = torch.arange(len(guided), device=images.device)[:, None] <= last
        errors = (guided - unit).square()[:, :, 0] * taken[..., None, None]
        return smooth(errors.sum(0) / taken.sum(0)[:, None, None])


def signed(images: Tensor) -> Tensor:
    """Each slice from its own minimum, the background, and maximum to [-1, 1]."""
    return images / images.amax((2, 3), keepdim=True).clamp(min=1e-6) * 2 - 1


def clean_estimate(state: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """x0 that a noisy slice and its noise stand for, cut to [-1, 1]."""
    return ((state - (1 - share).sqrt() * noise) / share.sqrt()).clamp(-1, 1)
