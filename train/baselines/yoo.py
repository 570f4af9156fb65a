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

import torch
from scipy import ndimage
from torch import Tensor, nn

from .classifier import rise, rise_masks, train_classifier
from .frames import BRAIN
from .interface import LearnedSystem, step
from .networks import resnet_classifier
from .yoo_networks import SuperpixelNetwork, compactness_loss, seed_loss

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


class YooT2(LearnedSystem):
    """Scored superpixels of one sequence."""

    SIZES = {  # noqa: RUF012 - constant
        "small": YooSettings(64, (8, 16, 32), 8, 200, 100, 128, 120, 16, 2e-3),
        "paper": YooSettings(128, (16, 32, 64, 128), 64, 10_000, 4000, 1_000_000, 30_000, 32),
    }

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
