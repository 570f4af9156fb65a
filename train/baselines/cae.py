"""CAE: a slice decoded with a healthy class code is its counterfactual; the difference is the map.

Adapted. Xie, Jiang, He, Pan, Cai, "A Weakly Supervised and Globally Explainable Learning Framework
for Brain Tumor Segmentation", arXiv 2408.01191; networks and losses as in class association
embedding (arXiv 2406.07961).
Follows: class code of 8 numbers and individual code, swapped between healthy and unhealthy slices
under cyclic adversarial training; loss weights 10, 10, 1, 1, 1, 1 and 1, 2; Adam 1e-4.
Leaves out: the topological analysis of the code manifold and its shortest path, which are not
public. Instead the class code moves straight to the nearest healthy training code until the
discriminator's class head says healthy. Batches instead of single pairs.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frames import residual_maps, to_signed
from .interface import LearnedSystem, step

PATH = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the way to the healthy code that are tried
GENERATOR = ("class_encoder", "individual_encoder", "decoder")


@dataclass(frozen=True)
class CaeSettings:
    pixels: int
    width: int
    blocks: int  # residual blocks of encoder and decoder
    steps: int
    batch_size: int
    rate: float
    code: int = 8
    bank: int = 256  # healthy codes that are kept


# --- Networks -----------------------------------------------------------------------------------
class ClassEncoder(nn.Module):
    """(B, 1, p, p) -> class code (B, code), no normalisation, at least 0."""

    def __init__(self, width: int, code: int):
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [nn.Conv2d(1, width, 7, padding=3), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], code, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class IndividualEncoder(nn.Module):
    """(B, 1, p, p) -> individual code (B, 4 width, p/4, p/4)."""

    def __init__(self, width: int, blocks: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 7, padding=3)]
        layers += [nn.InstanceNorm2d(width), nn.ReLU()]
        for before in (width, 2 * width):
            layers += [nn.Conv2d(before, 2 * before, 4, 2, 1), nn.InstanceNorm2d(2 * before)]
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(ResidualBlock(4 * width) for _ in range(blocks))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images)
        for block in self.blocks:
            features = block(features, None)
        return features


class Decoder(nn.Module):
    """Individual code and class code -> image (B, 1, p, p) in [-1, 1]."""

    def __init__(self, width: int, blocks: int, code: int):
        super().__init__()
        deep = 4 * width
        self.blocks = nn.ModuleList(ResidualBlock(deep) for _ in range(blocks))
        # Per block two normalisations, per normalisation a scale and a shift for each feature.
        self.styles = nn.Sequential(
            nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, blocks * 4 * deep), nn.Unflatten(1, (blocks, 2, 2, deep)),
        )  # fmt: skip
        layers: list[nn.Module] = []
        for before in (deep, deep // 2):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before // 2, 5, padding=2)]
            layers += [nn.GroupNorm(1, before // 2), nn.ReLU()]
        layers += [nn.Conv2d(width, 1, 7, padding=3), nn.Tanh()]
        self.output = nn.Sequential(*layers)

    def forward(self, individual: Tensor, code: Tensor) -> Tensor:
        features = individual
        for block, style in zip(self.blocks, self.styles(code).unbind(1), strict=True):
            features = block(features, style)
        return self.output(features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance normalisation, scaled and shifted by a style (AdaIN)."""

    def __init__(self, width: int):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, features: Tensor, style: Tensor | None) -> Tensor:
        change = features
        for index, convolution in enumerate(self.convolutions):
            change = F.instance_norm(convolution(change))
            if style is not None:
                scale, shift = style[:, index].unbind(1)
                change = change * (1 + scale[..., None, None]) + shift[..., None, None]
            change = change.relu() if index == 0 else change
        return features + change


class Discriminator(nn.Module):
    """(B, 1, p, p) -> logits (B, 2) of fake | real and (B, 2) of healthy | unhealthy."""

    def __init__(self, width: int):
        super().__init__()
        widths = (1, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(ResidualBlock(8 * width) for _ in range(2))
        self.head = nn.Sequential(
            nn.Linear(8 * width, 256), nn.LeakyReLU(0.2), nn.Dropout(0.4), nn.Linear(256, 4)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layers(images)
        for block in self.blocks:
            features = block(features, None)
        logits = self.head(features.amax((2, 3)))
        return logits[:, :2], logits[:, 2:]


class CodeBank(nn.Module):
    """Class codes of healthy training slices, (count, code), kept with the weights."""

    codes: Tensor

    def __init__(self, count: int, code: int):
        super().__init__()
        self.register_buffer("codes", torch.zeros(count, code))

    def nearest(self, code: Tensor) -> Tensor:
        """The nearest healthy code of each code (B, code)."""
        return self.codes[torch.cdist(code, self.codes).argmin(1)]


# --- The system -----------------------------------------------------------------------------------
class Cae(LearnedSystem):
    """Difference between a slice and its healthy counterfactual."""

    SIZES = {  # noqa: RUF012 - constant
        "small": CaeSettings(64, 8, 2, 300, 16, 5e-4),
        "paper": CaeSettings(256, 64, 6, 200_000, 2, 1e-4),
    }
    RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        settings = self.settings
        return {
            "class_encoder": ClassEncoder(settings.width, settings.code),
            "individual_encoder": IndividualEncoder(settings.width, settings.blocks),
            "decoder": Decoder(settings.width, settings.blocks, settings.code),
            "discriminator": Discriminator(settings.width),
            "bank": CodeBank(settings.bank, settings.code),
        }

    def learn(self, images: Tensor, labels: Tensor) -> None:
        options = {"rate": self.settings.rate, "betas": (0.5, 0.999), "weight_decay": 1e-4}
        generator = self.optimizer(*GENERATOR, **options)
        discriminator = self.optimizer("discriminator", **options)
        for chosen in self.batches(labels, self.settings.steps, self.settings.batch_size):
            real = to_signed(images[chosen])
            swapped, loss = self.generator_loss(real, labels[chosen])
            step(generator, loss)
            step(discriminator, self.discriminator_loss(real, swapped.detach(), labels[chosen]))
        self.fill_bank(images[labels == 0])

    def generator_loss(self, real: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Slices with the class code of the other class, and the weighted sum of all terms.

        `real` (B, 1, p, p) holds the healthy half first, then the unhealthy one.
        """
        code, individual = self.encode(real)
        decode: nn.Module = self.networks["decoder"]
        partner = code.roll(len(code) // 2, 0)
        swapped = decode(individual, partner)
        swapped_code, swapped_individual = self.encode(swapped)
        looks_real, looks_like = self.networks["discriminator"](swapped)
        loss = (
            10 * F.l1_loss(decode(individual, code), real)
            + 10 * F.l1_loss(decode(swapped_individual, code), real)
            + F.l1_loss(swapped_code, partner)
            + F.l1_loss(swapped_individual, individual)
            + F.cross_entropy(looks_real, torch.ones_like(labels))
            + F.cross_entropy(looks_like, 1 - labels)
        )
        return swapped, loss

    def discriminator_loss(self, real: Tensor, swapped: Tensor, labels: Tensor) -> Tensor:
        """Real or fake, and twice the class of real slices."""
        real_logits, class_logits = self.networks["discriminator"](real)
        fake_logits, _ = self.networks["discriminator"](swapped)
        truth = torch.cat([torch.ones_like(labels), torch.zeros_like(labels)])
        adversarial = F.cross_entropy(torch.cat([real_logits, fake_logits]), truth)
        return adversarial + 2 * F.cross_entropy(class_logits, labels)

    def encode(self, signed: Tensor) -> tuple[Tensor, Tensor]:
        """Class code and individual code of slices in [-1, 1]."""
        return self.networks["class_encoder"](signed), self.networks["individual_encoder"](signed)

    @property
    def bank(self) -> CodeBank:
        """Class codes of healthy training slices."""
        bank = self.networks["bank"]
        assert isinstance(bank, CodeBank)
        return bank

    @torch.no_grad()
    def fill_bank(self, healthy: Tensor) -> None:
        """Keep the class codes of healthy slices drawn at random."""
        bank = self.bank.codes
        drawn = healthy[torch.randint(len(healthy), (len(bank),), device=self.device)]
        codes = [self.networks["class_encoder"](to_signed(part)) for part in drawn.split(32)]
        bank.copy_(torch.cat(codes))

    @torch.no_grad()
    def counterfactual(self, images: Tensor) -> Tensor:
        """Slices (N, 1, p, p) in [-1, 1] at the first place on the path that is called healthy."""
        code, individual = self.encode(to_signed(images))
        target = self.bank.nearest(code)
        shown = self.networks["decoder"](individual, code)
        waiting = torch.ones(len(images), dtype=torch.bool, device=images.device)
        for share in PATH:
            if not waiting.any():
                break
            moved = torch.lerp(code[waiting], target[waiting], share)
            shown[waiting] = self.networks["decoder"](individual[waiting], moved)
            waiting &= self.unhealthy_probability(shown) > 0.5
        return shown

    def unhealthy_probability(self, signed: Tensor) -> Tensor:
        """The class head's probability of slices in [-1, 1], (N,)."""
        return self.networks["discriminator"](signed)[1].softmax(1)[:, 1]

    def maps(self, images: Tensor) -> Tensor:
        # Halved: the networks work on [-1, 1], twice as wide as intensities.
        difference = (to_signed(images) - self.counterfactual(images)) / 2
        return residual_maps(images, images - difference)
