"""Yoo et al.: deep superpixels, each scored as lesion or not, learned from seeds of a classifier.

Adapted. Yoo, Namdar, Khalvati, "Deep superpixel generation and clustering for weakly supervised
segmentation of brain tumors in MR images", BMC Medical Imaging 24:335, 2024 (arXiv 2209.09930).
Follows: RISE heatmaps of a slice classifier give seeds; a superpixel network and a superpixel
scorer are trained jointly on seed loss and compactness; at inference the scorer's raw outputs, a
sigmoid, a 7x7 Gaussian blur and the threshold 0.6. `YooAll` sees all four sequences, `YooT2` one.
Chosen here, since the published notebook lacks it: ResNet-18 instead of VGG-16 as the classifier,
seeds above 0.8 and below 0.2 of the heatmap's range inside the brain, unhealthy slices only.
`small` seeds a subset of the slices, with fewer masks: RISE costs a forward pass per mask and
slice.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from modeling_rasalore.models.scan_view_rasalore import CHANNELS

from .classifier import rise, rise_masks, train_classifier
from .frames import BRAIN
from .interface import LearnedSystem, step
from .networks import resnet_classifier

POSITIVE, NEGATIVE = 0.8, 0.2  # cuts of a heatmap in [0, 1]


@dataclass(frozen=True)
class YooSettings:
    pixels: int
    widths: tuple[int, ...]  # of the superpixel network; one halving each
    scorer_width: int  # of the ResNet-18s
    classifier_steps: int
    masks: int  # of RISE
    seeded_slices: int  # unhealthy training slices that get seeds
    steps: int
    batch_size: int
    rate: float = 5e-4


# --- Networks and losses ------------------------------------------------------------------------
class SuperpixelNetwork(nn.Module):
    """(B, C, p, p) -> association (B, K, p, p): each pixel's share in each of K superpixels.

    K = (p / 2^levels)^2, one superpixel per cell of the coarsest features. Association implantation
    as in AINet: each pixel's embedding meets those of the 3x3 cells around it.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], pixels: int, embedding: int = 16):
        super().__init__()
        self.cells = pixels // 2 ** len(widths)
        inward = list(zip((channels, *widths), (*widths, 2 * widths[-1]), strict=True))
        self.down = nn.ModuleList(_double_convolution(*pair) for pair in inward)
        self.halve = nn.ModuleList(nn.Conv2d(w, w, 3, 2, 1) for w in widths)
        outward = list(zip((2 * widths[-1], *reversed(widths)), reversed(widths), strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in outward)
        self.merge = nn.ModuleList(_double_convolution(2 * b, b) for _, b in outward)
        self.pixel_embedding = nn.Conv2d(widths[0], embedding, 3, padding=1)
        self.cell_embedding = nn.Conv2d(2 * widths[-1], embedding, 1)
        self.implant = nn.Conv2d(9 * embedding, embedding, 1)
        self.output = nn.Conv2d(embedding, self.cells**2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for block, halve in zip(self.down, self.halve, strict=False):
            skips.append(block(features))
            features = halve(skips[-1])
        deepest = features = self.down[-1](features)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features = merge(torch.cat([up(features), skip], 1))
        pixel = self.pixel_embedding(features)
        around = F.unfold(self.cell_embedding(deepest), 3, padding=1)
        around = around.unflatten(2, (self.cells, self.cells)).unflatten(1, (-1, 9))
        around = F.interpolate(around.flatten(1, 2), images.shape[-2:]).unflatten(1, (-1, 9))
        centre = F.one_hot(torch.tensor(4, device=images.device), 9).view(1, 1, 9, 1, 1)
        implanted = self.implant((around + centre * pixel[:, :, None]).flatten(1, 2)).relu()
        return self.output(implanted).softmax(1)


def compactness_loss(images: Tensor, association: Tensor) -> Tensor:
    """How badly superpixel means describe colour and place of their pixels, per slice."""
    pixels, cells = images.shape[-1], association.shape[1] ** 0.5
    line = torch.arange(pixels, device=images.device, dtype=torch.float32)
    positions = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(
        len(images), -1, -1, -1
    )
    colour = _distance(images, association).sum((1, 2))
    spread = _distance(positions, association).sum((1, 2)) * (0.3 / (pixels / cells))
    return 0.005 * (colour + spread).mean()


def seed_loss(mask: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Cross-entropy of a mask (B, p, p) in [0, 1] on its seeds only."""
    logs = positive * mask.log().clamp(min=-100) + negative * (1 - mask).log().clamp(min=-100)
    return -(logs.sum() + 1) / ((positive + negative).sum() + 1)


def _distance(values: Tensor, association: Tensor) -> Tensor:
    """Distance of each pixel's value (B, V, p, p) from its reconstruction, (B, p, p)."""
    weights = association.flatten(2)
    means = torch.einsum("bvp,bkp->bvk", values.flatten(2), weights)
    means = means / weights.sum(2)[:, None].clamp(min=1e-6)
    rebuilt = torch.einsum("bvk,bkp->bvp", means, weights).unflatten(2, values.shape[-2:])
    return (values - rebuilt).square().sum(1).clamp(min=1e-12).sqrt()


def _double_convolution(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


# --- The system -----------------------------------------------------------------------------------
class YooT2(LearnedSystem):
    """Scored superpixels of one sequence."""

    SIZES = {  # noqa: RUF012 - constant
        "small": YooSettings(64, (8, 16, 32), 8, 200, 100, 128, 120, 16, 2e-3),
        "paper": YooSettings(128, (16, 32, 64, 128), 64, 10_000, 4000, 1_000_000, 30_000, 32),
    }
    SCAN_CHANNELS: ClassVar[tuple[str, ...]] = CHANNELS  # in the place of four sequences

    def build(self) -> dict[str, nn.Module]:
        settings = self.settings
        self.numbers["half"] = 0.6  # the authors' threshold
        superpixels = SuperpixelNetwork(self.channels, settings.widths, settings.pixels)
        count = superpixels.cells**2
        return {
            "classifier": resnet_classifier(self.channels, settings.scorer_width),
            "superpixels": superpixels,
            "scorer": resnet_classifier(self.channels + count, settings.scorer_width, count),
        }

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        classifier = self.networks["classifier"]
        train_classifier(
            self, classifier, images, labels, settings.classifier_steps, settings.batch_size
        )
        classifier.eval()
        unhealthy = images[labels == 1]
        unhealthy = unhealthy[:: max(1, len(unhealthy) // settings.seeded_slices)]
        positive, negative = self.seeds(unhealthy)
        optimizer = self.optimizer(
            "superpixels", "scorer", rate=settings.rate, weight_decay=0.1 * settings.rate
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, settings.steps // 4), 0.5)
        everyone = torch.ones(len(unhealthy))
        for chosen in self.batches(everyone, settings.steps, settings.batch_size):
            batch = unhealthy[chosen]
            association, scores = self.superpixel_scores(batch)
            mask = torch.einsum("bkrc,bk->brc", association, scores.softmax(1))
            seeding = seed_loss(mask, positive[chosen], negative[chosen])
            step(optimizer, compactness_loss(batch, association) + 50 * seeding)
            schedule.step()

    def seeds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels surely inside and surely outside the lesion, each (N, p, p) of 0 and 1."""
        masks = rise_masks(self.settings.masks, images.shape[-1], self.seed).to(self.device)
        heat = rise(self.networks["classifier"], images, masks)
        brain = (images > BRAIN).any(1)
        low = torch.where(brain, heat, torch.inf).amin((1, 2), keepdim=True)
        high = torch.where(brain, heat, -torch.inf).amax((1, 2), keepdim=True)
        heat = (heat - low) / (high - low).clamp(min=1e-6)
        return ((heat > POSITIVE) & brain).float(), ((heat < NEGATIVE) | ~brain).float()

    def superpixel_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Association (N, K, p, p) and the scorer's raw output per superpixel (N, K)."""
        association = self.networks["superpixels"](images)
        scores = self.networks["scorer"](torch.cat([images, association], 1)).logits
        return association, scores

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        association, scores = self.superpixel_scores(images)
        chance = torch.einsum("bkrc,bk->brc", association, scores).sigmoid().cpu().numpy()
        # A 7x7 kernel: sigma as OpenCV derives it from the size.
        blurred = ndimage.gaussian_filter(chance, (0, 1.4, 1.4), truncate=3 / 1.4)
        return torch.from_numpy(blurred)


class YooAll(YooT2):
    """Scored superpixels of T1, T1ce, T2 and FLAIR together."""

    ALL_SEQUENCES = True
    SCAN_CHANNELS = ()  # in the square of the scored sequence, without neighbours
