"""AE: a dense autoencoder of healthy slices; what it cannot reproduce is anomalous.

Native. Baur, Denner, Wiestler, Navab, Albarqouni, "Autoencoders for Unsupervised Anomaly
Segmentation in Brain MR Images: A Comparative Study", Medical Image Analysis 2021.
Follows: four strided 5x5 convolutions, dense code, mirrored decoder, sum of |x - reconstruction|.
Leaves out: the volume's 0.9 intensity quantile as a prior, 3D median and component removal (slices
come one by one), early stopping. Ambiguous in the poster: dense or spatial code, absolute or
positive residual; dense and absolute are chosen here.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from .frames import residual_maps
from .interface import LearnedSystem, step


@dataclass(frozen=True)
class AeSettings:
    pixels: int
    widths: tuple[int, ...]  # of the encoder, one per halving
    code: int  # numbers that a slice is squeezed through
    steps: int
    batch_size: int
    rate: float


class Ae(LearnedSystem):
    """Residual of a dense autoencoder of healthy slices."""

    SIZES = {  # noqa: RUF012 - constant
        "small": AeSettings(64, (16, 32, 64, 64), 64, 600, 32, 1e-3),
        "paper": AeSettings(128, (32, 64, 128, 128), 128, 40_000, 128, 1e-4),
    }
    HEALTHY_ONLY = RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        return {"autoencoder": DenseAutoencoder(self.settings)}

    def learn(self, images: Tensor, labels: Tensor) -> None:
        optimizer = self.optimizer("autoencoder", rate=self.settings.rate, betas=(0.5, 0.999))
        for chosen in self.batches(labels, self.settings.steps, self.settings.batch_size):
            batch = images[chosen]
            loss = (batch - self.networks["autoencoder"](batch)).abs().sum((1, 2, 3)).mean()
            step(optimizer, loss)

    def maps(self, images: Tensor) -> Tensor:
        return residual_maps(images, self.networks["autoencoder"](images))


class DenseAutoencoder(nn.Module):
    """(B, 1, p, p) -> (B, code) -> (B, 1, p, p)."""

    def __init__(self, settings: AeSettings):
        super().__init__()
        widths = settings.widths
        side = settings.pixels // 2 ** len(widths)
        narrow = widths[-1] // 8
        encoder: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            encoder += [nn.Conv2d(before, after, 5, 2, 2), nn.BatchNorm2d(after), nn.LeakyReLU()]
        flat = narrow * side * side
        bottleneck = [
            nn.Conv2d(widths[-1], narrow, 1),
            nn.Flatten(),
            nn.Linear(flat, settings.code),
        ]
        back = [
            nn.Dropout(0.2),
            nn.Linear(settings.code, flat),
            nn.Unflatten(1, (narrow, side, side)),
        ]
        back += [nn.Conv2d(narrow, widths[-1], 1), nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        decoder: list[nn.Module] = []
        outward = (widths[-1], *reversed(widths))
        for before, after in pairwise(outward):
            layer = nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=1)
            decoder += [layer, nn.BatchNorm2d(after), nn.LeakyReLU()]
        decoder.append(nn.Conv2d(widths[0], 1, 1))
        self.encoder = nn.Sequential(*encoder, *bottleneck)
        self.decoder = nn.Sequential(*back, *decoder)

    def forward(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))
