"""VQVAE: healthy slices through a codebook; what no code stands for is anomalous.

Adapted. van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS
2017, applied to brain MRI as in Marimont and Tarroni, ISBI 2021 (arXiv 2012.06765). The source of
the poster's row is not known.
Follows: diffusers' VQModel (encoder, codebook, decoder), L1 plus commitment loss, plain residual.
Adds: codes start at encodings of training slices, and codes unused for a while return to one, since
on small data the codebook otherwise collapses.
Leaves out: the autoregressive prior and its restorations, the slice position as a condition.
"""

from dataclasses import dataclass

import torch
from diffusers import VQModel
from torch import Tensor, nn

from .frames import residual_maps
from .interface import LearnedSystem, step


@dataclass(frozen=True)
class VqvaeSettings:
    pixels: int
    widths: tuple[int, ...]  # each but the first after a halving
    code_width: int
    codes: int
    steps: int
    batch_size: int
    rate: float
    revive_every: int = 50  # steps; unused codes are moved in the first half of training


class Vqvae(LearnedSystem):
    """Residual of a VQ-VAE of healthy slices."""

    SIZES = {  # noqa: RUF012 - constant
        "small": VqvaeSettings(64, (16, 32, 32, 64), 16, 64, 300, 32, 1e-3),
        "paper": VqvaeSettings(128, (32, 64, 128, 256), 256, 128, 60_000, 64, 1e-4),
    }
    HEALTHY_ONLY = RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        settings = self.settings
        levels = len(settings.widths)
        model = VQModel(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=settings.widths,
            latent_channels=settings.code_width,
            vq_embed_dim=settings.code_width,
            num_vq_embeddings=settings.codes,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        return {"vqvae": model}

    @property
    def model(self) -> VQModel:
        """Encoder, codebook and decoder."""
        return self.networks["vqvae"]

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings, model = self.settings, self.model
        optimizer = self.optimizer("vqvae", rate=settings.rate)
        used = torch.zeros(settings.codes, device=self.device)
        for index, chosen in enumerate(self.batches(labels, settings.steps, settings.batch_size)):
            batch = images[chosen]
            if index < settings.steps / 2 and index % settings.revive_every == 0:
                self.revive(batch, used)
                used.zero_()
            output = model(batch)
            step(optimizer, (output.sample - batch).abs().mean() + output.commit_loss.mean())
            if index % 5 == 0:  # often enough to see which codes serve, at little cost
                used += torch.bincount(self.code_indices(batch).flatten(), minlength=len(used))

    @torch.no_grad()
    def revive(self, images: Tensor, used: Tensor) -> None:
        """Move codes that were not used to encodings of `images`."""
        encodings = self.encodings(images).movedim(1, -1).flatten(0, -2)
        unused = torch.nonzero(used == 0)[:, 0]
        drawn = torch.randint(len(encodings), (len(unused),), device=self.device)
        self.model.quantize.embedding.weight[unused] = encodings[drawn]

    def encodings(self, images: Tensor) -> Tensor:
        """Latents (N, code_width, h, w) before quantisation."""
        return self.model.encode(images).latents

    @torch.no_grad()
    def code_indices(self, images: Tensor) -> Tensor:
        """Which code stands at each latent position, (N, h, w)."""
        latents = self.encodings(images)
        codes = self.model.quantize.embedding.weight
        return torch.cdist(latents.movedim(1, -1).flatten(1, 2), codes).argmin(-1)

    def maps(self, images: Tensor) -> Tensor:
        return residual_maps(images, self.model(images).sample)
