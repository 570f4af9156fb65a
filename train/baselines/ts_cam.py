"""TS-CAM: a vision transformer's class token attention times the semantic map of its patches.

Native. Gao, Wan, Pan, Peng, Tian, Han, Zhou, Ye, "TS-CAM: Token Semantic Coupled Attention Map for
Weakly Supervised Object Localization", ICCV 2021 (arXiv 2103.14862).
Follows: DeiT backbone, 3x3 convolution over the patch tokens, pooled logits, cross-entropy; map =
CLS-to-patch attention (mean over heads, sum over layers) x the unhealthy channel, each slice
min-max.
Leaves out: boxes and their threshold (0.1 of the maximum is far too loose here; 0.5 is used), drop
path. Views of a slice are turned by any angle, where those of photographs are cropped and flipped.
`small` is a shallow transformer from scratch at 64 px. With `view=scan` the three colours are the
slice and its neighbours, so that pretrained weights fit.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from .frames import random_views, stretch
from .grids import WITH_NEIGHBOURS
from .interface import LearnedSystem, step

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TsCamSettings:
    pixels: int
    patch: int
    width: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    rate: float
    pretrained: str = ""  # repo id or folder of a ViTModel; empty: trained from scratch


class TsCam(LearnedSystem):
    """Token semantic coupled attention map."""

    SIZES = {  # noqa: RUF012 - constant
        "small": TsCamSettings(64, 8, 96, 4, 3, 400, 32, 5e-4),
        "paper": TsCamSettings(
            224, 16, 384, 12, 6, 60_000, 128, 5e-5, "facebook/deit-small-patch16-224"
        ),
    }
    SCAN_CHANNELS = WITH_NEIGHBOURS

    def build(self) -> dict[str, nn.Module]:
        settings = self.settings
        # Its signature lacks `attn_implementation`.
        config = ViTConfig(  # type: ignore[call-arg]
            image_size=settings.pixels,
            patch_size=settings.patch,
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            attn_implementation="eager",  # other kinds return no attention
        )
        transformer = ViTModel(config, add_pooling_layer=False)
        if settings.pretrained:
            try:
                transformer = ViTModel.from_pretrained(
                    settings.pretrained, add_pooling_layer=False, attn_implementation="eager"
                )
                self.weights = settings.pretrained
            except OSError:  # no such repo, or none reachable
                self.weights = "stand-in"
        return {"classifier": TokenClassifier(transformer)}

    def learn(self, images: Tensor, labels: Tensor) -> None:
        classifier = self.networks["classifier"]
        optimizer = torch.optim.AdamW(
            classifier.parameters(), self.settings.rate, weight_decay=0.05
        )
        for chosen in self.batches(labels, self.settings.steps, self.settings.batch_size):
            semantic, _ = classifier(random_views(images[chosen]))
            step(optimizer, F.cross_entropy(semantic.mean((2, 3)), labels[chosen]))

    def maps(self, images: Tensor) -> Tensor:
        semantic, attention = self.networks["classifier"](images)
        return coupled_map(attention, semantic[:, 1], images.shape[-1])


class TokenClassifier(nn.Module):
    """Slices (B, C, p, p) -> semantic maps (B, 2, g, g) and CLS-to-patch attention (B, g, g)."""

    mean: Tensor
    std: Tensor

    def __init__(self, transformer: ViTModel):
        super().__init__()
        self.transformer = transformer
        self.head = nn.Conv2d(transformer.config.hidden_size, 2, 3, padding=1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] == 1:  # channels have the scale of their scan
            images = images / images.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
        output = self.transformer((images - self.mean) / self.std, output_attentions=True)
        patch = self.transformer.config.patch_size
        assert isinstance(patch, int)  # square patches
        side = images.shape[-1] // patch
        tokens = output.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        attention = sum(layer.mean(1) for layer in output.attentions)[:, 0, 1:]
        return self.head(tokens), attention.unflatten(1, (side, side))


def coupled_map(attention: Tensor, semantic: Tensor, pixels: int) -> Tensor:
    """Both factors (B, g, g) multiplied, bilinear to (B, pixels, pixels), min-max per slice."""
    coupled = F.interpolate((attention * semantic)[:, None], (pixels, pixels), mode="bilinear")
    return stretch(coupled[:, 0])
