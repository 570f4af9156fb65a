"""Change a batch of slices at random, vectorised, on the batch's own device."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.scan_view_rasalore import Levels


@dataclass
class AugmentationRecipe:
    """Random changes of training slices; geometry is shared with their masks.

    Attributes:
        rotation_degrees: largest angle, drawn from -value to value.
        rotation_probability: of turning a slice at all.
        smallest_scale: share of the area that a random crop keeps at least.
        zoom: size times e^-value to e^value.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: factor drawn from 1 - value to 1 + value.
        contrast: factor drawn from 1 - value to 1 + value.
        gamma: exponent drawn from 1 / (1 + value) to 1 + value: how bright tissue is between black
            and white differs more between scanners than a factor says. Poster and released: none.
        intensity_probability: of each of these changes of intensity.
        scan_contrast: of slices seen with their scan: distances from the brain's median times
            e^-value to e^value.
        scan_offset: of such slices: added to them and their neighbours, from -value to value; 1 is
            two standard deviations of the brain.
        noise_std: share of the intensity range; of slices seen with their scan as scan_offset.
        noise_probability: of noise.
        sequence_dropout: probability of each sequence of data.modality=all to be missing; one,
            another for each slice, never is.
    """

    rotation_degrees: float = 0.0
    rotation_probability: float = 0.7
    smallest_scale: float = 1.0
    zoom: float = 0.0
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    scan_contrast: float = 0.0
    scan_offset: float = 0.0
    intensity_probability: float = 0.5
    noise_std: float = 0.0
    noise_probability: float = 0.7
    sequence_dropout: float = 0.0


def augment_batch(
    pixel_values: Tensor,
    masks: dict[str, Tensor],
    recipe: AugmentationRecipe,
    value_range: float = 1.0,
    levels: Levels | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return changed slices (B, C, H, W) and their masks, moved alike.

    Args:
        masks: named masks (B, h, w), 0 or 1, at any resolution; nearest pixel, so they stay binary.
        value_range: difference between the brightest and the darkest pixel, which the noise is
            relative to.
        levels: of slices seen with their scan; nothing changes outside their brain.
    """
    batch = len(pixel_values)
    transform = random_transforms(batch, recipe, pixel_values.device)
    moved = {
        name: resample(mask[:, None].float(), transform, "nearest")[:, 0].to(mask.dtype)
        for name, mask in masks.items()
    }
    if levels is not None:
        return augment_scans(pixel_values, transform, recipe, value_range, levels), moved
    # Black is not 0 where mean and standard deviation were applied; what comes from outside must
    # be black and brightness must leave black alone.
    black = pixel_values.amin((2, 3), keepdim=True)
    pixel_values = resample(pixel_values - black, transform, "bilinear")
    pixel_values = change_intensity(pixel_values, recipe) + black
    pixel_values = add_noise(pixel_values, recipe, value_range)
    if recipe.sequence_dropout:
        channels = pixel_values.shape[1]
        dropped = drop_sequences(batch, channels, recipe.sequence_dropout)
        pixel_values = torch.where(dropped.to(black.device), black, pixel_values)
    return pixel_values, moved


def augment_scans(
    pixel_values: Tensor,
    transform: Tensor,
    recipe: AugmentationRecipe,
    value_range: float,
    levels: Levels,
) -> Tensor:
    """Return changed slices that were seen with their scan; their background stays as it is."""
    outside = levels.outside.to(pixel_values)
    shown = (pixel_values != outside).to(pixel_values.dtype)
    both = resample(torch.cat([pixel_values - outside, shown], 1), transform, "bilinear")
    shifted, share = both.chunk(2, dim=1)
    # As in `crop_view`, no background is mixed into the edge of the brain.
    pixel_values = shifted / share.clamp(min=0.5) + outside
    pixel_values = add_noise(change_tissue(pixel_values, levels, recipe), recipe, value_range)
    return torch.where(share >= 0.5, pixel_values, outside)


def add_noise(pixel_values: Tensor, recipe: AugmentationRecipe, value_range: float) -> Tensor:
    """Return slices with Gaussian noise on some of them."""
    if not recipe.noise_std:
        return pixel_values
    amount = recipe.noise_std * value_range * happens(recipe.noise_probability, pixel_values)
    return pixel_values + amount * torch.randn_like(pixel_values)


def drop_sequences(batch: int, channels: int, probability: float) -> Tensor:
    """Return which channels are missing, (B, C, 1, 1) bool; never all of a slice."""
    dropped = torch.rand(batch, channels) < probability
    dropped[torch.arange(batch), torch.randint(channels, (batch,))] = False
    return dropped[:, :, None, None]


def random_transforms(batch: int, recipe: AugmentationRecipe, device: torch.device) -> Tensor:
    """Return matrices (B, 2, 3) from output to input coordinates in [-1, 1], (x, y) order."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, device=device)

    def sign(probability: float) -> Tensor:
        return torch.where(torch.rand(batch, device=device) < probability, -1.0, 1.0)

    turned = torch.rand(batch, device=device) < recipe.rotation_probability
    angle = math.radians(recipe.rotation_degrees) * uniform(-1, 1) * turned
    side = uniform(recipe.smallest_scale, 1).sqrt()  # a share of the area, so its root
    scale = side / (recipe.zoom * uniform(-1, 1)).exp() if recipe.zoom else side
    horizontal, vertical = sign(recipe.horizontal_flip), sign(recipe.vertical_flip)
    rows = [
        torch.stack([scale * angle.cos() * horizontal, -scale * angle.sin() * vertical], 1),
        torch.stack([scale * angle.sin() * horizontal, scale * angle.cos() * vertical], 1),
    ]
    shift = torch.stack([(1 - side) * uniform(-1, 1) for _ in range(2)], 1)  # crop stays inside
    return torch.cat([torch.stack(rows, 1), shift[:, :, None]], dim=2)


def resample(images: Tensor, transform: Tensor, mode: str) -> Tensor:
    """Return images (B, C, H, W) read through a transform; what comes from outside is 0."""
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def change_intensity(pixel_values: Tensor, recipe: AugmentationRecipe) -> Tensor:
    """Return slices of random gamma (exponent), brightness (factor) and contrast (around the mean).

    Black must be 0; gamma leaves it and a slice's brightest pixel alone.
    """
    if recipe.gamma:
        exponent = (1 + recipe.gamma) ** random_change(1.0, recipe, pixel_values)
        white = pixel_values.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
        pixel_values = white * (pixel_values.clamp(min=0) / white) ** exponent
    if recipe.brightness:
        pixel_values = pixel_values * random_factor(recipe.brightness, recipe, pixel_values)
    if recipe.contrast:
        mean = pixel_values.mean((1, 2, 3), keepdim=True)
        factor = random_factor(recipe.contrast, recipe, pixel_values)
        pixel_values = mean + (pixel_values - mean) * factor
    return pixel_values


def change_tissue(pixel_values: Tensor, levels: Levels, recipe: AugmentationRecipe) -> Tensor:
    """Return slices seen with their scan of random contrast (around the median) and offset.

    The offset moves intensities and no difference between hemispheres, whose background and median
    are the same.
    """
    outside, median = (level.to(pixel_values) for level in levels)
    if recipe.scan_contrast:
        factor = random_change(recipe.scan_contrast, recipe, pixel_values).exp()
        pixel_values = median + (pixel_values - median) * factor
    if recipe.scan_offset:
        unit = (median - outside) / 2  # z is -2 outside
        pixel_values = pixel_values + unit * random_change(recipe.scan_offset, recipe, pixel_values)
    return pixel_values


def random_factor(spread: float, recipe: AugmentationRecipe, like: Tensor) -> Tensor:
    """Return factors in [1 - spread, 1 + spread], 1 where nothing changes, (B, 1, 1, 1)."""
    return 1 + random_change(spread, recipe, like)


def random_change(spread: float, recipe: AugmentationRecipe, like: Tensor) -> Tensor:
    """Return numbers in [-spread, spread], 0 where nothing changes, (B, 1, 1, 1)."""
    change = spread * (2 * torch.rand(len(like), 1, 1, 1, device=like.device) - 1)
    return change * happens(recipe.intensity_probability, like)


def happens(probability: float, like: Tensor) -> Tensor:
    """Return 1 with a probability per sample, else 0, (B, 1, 1, 1)."""
    return (torch.rand(len(like), 1, 1, 1, device=like.device) < probability).float()
