"""LA-GAN: a generator removes what a classifier's heatmap points at; the residual is the map.

Reconstructed from the abstract alone: Tao, Ma, Zhang, Huang, Ji, Fan, Yuan, Chen, "LAGAN:
Lesion-Aware Generative Adversarial Networks for Edema Area Segmentation in SD-OCT Images", IEEE
JBHI 2023. That this is the paper behind the poster's row is likely, not verified.
Follows: (1) classifier of slices, (2) its heatmap of each training slice, (3) adversarial training
of an image generator with the heatmaps as pseudo-annotation, multi-scale patch discriminator.
Chosen here, since no text or code says it: ResNet-18 with Grad-CAM; U-Net with residual output;
least-squares PatchGAN at three scales; loss weights 1 adversarial, 10 identity on healthy slices,
10 preservation outside the heatmap, 1 classifier; Adam 1e-4 and 4e-4.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import grad_cam, train_classifier, unhealthy_logit
from .frames import residual_maps
from .interface import LearnedSystem, step
from .networks import UNet, resnet_classifier


@dataclass(frozen=True)
class LaGanSettings:
    pixels: int
    classifier_width: int
    classifier_steps: int
    cam_stage: int  # of the classifier's four; deeper ones are coarser
    widths: tuple[int, ...]  # of the generator's levels
    steps: int
    batch_size: int
    rate: float  # of the generator; the discriminator's is four times as high
    identity: float = 10.0
    preservation: float = 10.0


class LaGan(LearnedSystem):
    """Residual of a lesion-removing generator."""

    SIZES = {  # noqa: RUF012 - constant
        "small": LaGanSettings(64, 8, 200, 2, (8, 16, 32), 200, 16, 5e-4),
        "paper": LaGanSettings(224, 64, 10_000, 3, (32, 64, 128, 256), 100_000, 8, 1e-4),
    }
    RESIDUAL = True

    def build(self) -> dict[str, nn.Module]:
        generator = UNet(1, self.settings.widths)
        nn.init.zeros_(generator.output.weight)  # starts by changing nothing
        return {
            "classifier": resnet_classifier(1, self.settings.classifier_width),
            "generator": generator,
            "discriminators": nn.ModuleList(
                patch_discriminator(self.settings.widths[0]) for _ in range(3)
            ),
        }

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        classifier = self.networks["classifier"]
        train_classifier(
            self, classifier, images, labels, settings.classifier_steps, settings.batch_size
        )
        classifier.eval().requires_grad_(False)
        generator = self.optimizer("generator", rate=settings.rate, betas=(0.5, 0.999))
        critics = self.optimizer("discriminators", rate=4 * settings.rate, betas=(0.5, 0.999))
        for chosen in self.batches(labels, settings.steps, settings.batch_size):
            healthy, unhealthy = images[chosen].chunk(2)  # `batches` draws label 0 first
            fake = self.pseudo_healthy(unhealthy)
            step(critics, self.patch_loss(healthy, 1) + self.patch_loss(fake.detach(), 0))
            step(generator, self.generator_loss(healthy, unhealthy, fake))

    def generator_loss(self, healthy: Tensor, unhealthy: Tensor, fake: Tensor) -> Tensor:
        """Adversarial, identity, preservation outside the heatmap, and the classifier's verdict."""
        heat = self.heatmaps(unhealthy)[:, None]
        identity = (self.pseudo_healthy(healthy) - healthy).abs().mean()
        preservation = ((1 - heat) * (fake - unhealthy).abs()).mean()
        return (
            self.patch_loss(fake, 1)
            + self.settings.identity * identity
            + self.settings.preservation * preservation
            + F.softplus(unhealthy_logit(self.networks["classifier"], fake)).mean()
        )

    def heatmaps(self, images: Tensor) -> Tensor:
        """Grad-CAM of the frozen classifier, (N, p, p) in [0, 1]."""
        return grad_cam(self.networks["classifier"], images, self.settings.cam_stage)

    def pseudo_healthy(self, images: Tensor) -> Tensor:
        """Slices without their lesion; the background stays 0."""
        return (images + self.networks["generator"](images)) * (images > 0)

    def patch_loss(self, images: Tensor, real: int) -> Tensor:
        """Least squares over patches of the full, half and quarter resolution."""
        discriminators = self.networks["discriminators"]
        assert isinstance(discriminators, nn.ModuleList)
        losses = []
        for level, discriminator in enumerate(discriminators):
            scaled = F.avg_pool2d(images, 2**level) if level else images
            losses.append((discriminator(scaled) - real).square().mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        return residual_maps(images, self.pseudo_healthy(images))


def patch_discriminator(width: int) -> nn.Sequential:
    """PatchGAN: (B, 1, p, p) -> one verdict per patch."""
    return nn.Sequential(
        nn.Conv2d(1, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(4 * width, 1, 3, padding=1),
    )  # fmt: skip
