"""AME-CAM: class activation maps of four exits of a classifier, fused by a learned attention.

Adapted. Chen, Hu, Shi, Ho, "AME-CAM: Attentive Multiple-Exit CAM for Weakly Supervised Segmentation
on MRI Brain Tumor", MICCAI 2023 (arXiv 2306.14505).
Follows: ResNet-18 with instance normalisation, one 1x1 exit per stage with losses weighted 0.25 to
1, a fusion network trained by contrasting foreground and background, mean of the exits and the
fusion.
Leaves out: SimCLR pretraining of the encoder, 8-bit images, the list of discarded test slices.
Departs: views of a slice are turned by any angle. The authors invert their final map; which
polarity holds is decided here without masks, by which map's hottest pixels, once removed, lower the
unhealthy probability more.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetBackbone

from modeling_rasalore.pseudo_masks.criteria import deletion_scores

from .frames import random_views, stretch
from .grids import WITH_NEIGHBOURS
from .interface import LearnedSystem, step
from .networks import resnet_config

EXIT_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class AmeCamSettings:
    pixels: int
    width: int  # of the first stage
    early_pooling: bool  # the ResNet's max-pool; without it each exit is twice as fine
    steps: int  # of the classifier
    fusion_steps: int
    batch_size: int
    rate: float


class AmeCam(LearnedSystem):
    """Attentive multiple-exit class activation map."""

    SIZES = {  # noqa: RUF012 - constant
        "small": AmeCamSettings(64, 16, False, 200, 60, 32, 1e-3),
        "paper": AmeCamSettings(240, 64, True, 10_000, 10_000, 128, 1e-4),
    }
    SCAN_CHANNELS = WITH_NEIGHBOURS  # the classifier's; the fusion weighs the slice alone

    def build(self) -> dict[str, nn.Module]:
        self.numbers["inverted"] = 0.0
        return {
            "exits": MultipleExits(self.channels, self.settings.width, self.settings.early_pooling),
            "fusion": fusion_network(),
        }

    def learn(self, images: Tensor, labels: Tensor) -> None:
        settings = self.settings
        optimizer = self.optimizer("exits", rate=settings.rate, weight_decay=1e-5)
        for chosen in self.batches(labels, settings.steps, settings.batch_size):
            target = labels[chosen].float()
            views = random_views(images[chosen])
            logits = [exit_map.mean((1, 2)) for exit_map in self.networks["exits"](views)]
            losses = [F.binary_cross_entropy_with_logits(logit, target) for logit in logits]
            loss = sum(w * x for w, x in zip(EXIT_WEIGHTS, losses, strict=True))
            assert isinstance(loss, Tensor)  # there are four exits, so not the 0 of an empty sum
            step(optimizer, loss)
        self.networks["exits"].eval().requires_grad_(False)
        self.learn_fusion(images[labels == 1])
        self.choose_polarity(images[labels == 1])

    def learn_fusion(self, unhealthy: Tensor) -> None:
        """Train the fusion network on unhealthy slices, the classifier frozen."""
        settings = self.settings
        optimizer = self.optimizer("fusion", rate=settings.rate)
        everyone = torch.ones(len(unhealthy))
        for chosen in self.batches(everyone, settings.fusion_steps, settings.batch_size):
            batch = unhealthy[chosen]
            step(optimizer, fusion_loss(batch, self.fuse(batch, self.exit_maps(batch))))

    def choose_polarity(self, unhealthy: Tensor) -> None:
        """Set `inverted` by which polarity is the more faithful heatmap of training slices."""
        chosen = unhealthy[:: max(1, len(unhealthy) // 64)]
        self.networks.eval()
        falls = []
        for polarity in (self.fused_map, lambda batch: 1 - self.fused_map(batch)):
            with torch.no_grad():
                scores = deletion_scores(
                    polarity(chosen), chosen, self.unhealthy_probability, levels=self.grid.levels
                )
            falls.append(float(scores.mean()))
        self.numbers["inverted"] = float(falls[1] > falls[0])

    def unhealthy_probability(self, images: Tensor) -> Tensor:
        """Of the last exit, (N,)."""
        return torch.sigmoid(self.networks["exits"](images)[-1].mean((1, 2)))

    def exit_maps(self, images: Tensor) -> Tensor:
        """Maps of the four exits in [0, 1], (N, 4, p, p)."""
        raw = self.networks["exits"](images)
        size = images.shape[-2:]
        larger = [F.interpolate(m[:, None], size, mode="bilinear")[:, 0] for m in raw]
        return torch.stack([stretch(exit_map) for exit_map in larger], 1)

    def fuse(self, images: Tensor, exit_maps: Tensor) -> Tensor:
        """Exit maps weighted pixel by pixel, (N, p, p), by what they show of the slice itself."""
        weights = self.networks["fusion"](images[:, :1] * exit_maps).softmax(1)
        return (weights * exit_maps).sum(1)

    def fused_map(self, images: Tensor) -> Tensor:
        """Mean of the four exits and the fusion, min-max per slice, polarity as it comes."""
        exit_maps = self.exit_maps(images)
        fused = self.fuse(images, exit_maps)
        return stretch(torch.cat([exit_maps, fused[:, None]], 1).mean(1))

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        fused = self.fused_map(images)
        return 1 - fused if self.numbers["inverted"] else fused


class MultipleExits(nn.Module):
    """(B, C, p, p) -> four maps of logits, finest first, each (B, h, w)."""

    def __init__(self, channels: int, width: int, early_pooling: bool):
        super().__init__()
        backbone = ResNetBackbone(resnet_config(channels, width, out_features=STAGES))
        if not early_pooling:
            backbone.embedder.pooler = nn.Identity()  # type: ignore[assignment]
        self.backbone = with_instance_norm(backbone)
        self.heads = nn.ModuleList(nn.Conv2d(width * 2**stage, 1, 1) for stage in range(4))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images).feature_maps
        return [head(f)[:, 0] for head, f in zip(self.heads, features, strict=True)]


def with_instance_norm(network: nn.Module) -> nn.Module:
    """The network with every batch normalisation replaced by a plain instance normalisation."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.InstanceNorm2d(module.num_features))
    return network


def fusion_network() -> nn.Sequential:
    """Slice times each exit's map (B, 4, p, p) -> logits of the exits' weights (B, 4, p, p)."""
    layers: list[nn.Module] = []
    for before, after in ((4, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(32, 4, 3, padding=1))


def fusion_loss(images: Tensor, maps: Tensor) -> Tensor:
    """Foregrounds alike, backgrounds alike, the two apart: images (B, C, p, p), maps (B, p, p)."""
    foreground = F.normalize((images[:, 0] * maps).flatten(1))
    background = F.normalize((images[:, 0] * (1 - maps)).flatten(1))
    across = _similarity(foreground, background)
    apart = -(1 - across).log().mean()
    return apart + _alike(foreground) + _alike(background)


def _alike(embeddings: Tensor) -> Tensor:
    """-log of similarities, the closest pairs first: weight exp(-0.25 rank) within each row."""
    similar = _similarity(embeddings, embeddings)
    ranks = similar.argsort(1, descending=True).argsort(1)
    return -(torch.exp(-0.25 * ranks) * similar.log()).mean()


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T).clamp(5e-4, 0.9995)
