"""Augmentation: geometry shared with the masks, intensities changed on the slices alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modeling_rasalore.training.augmentation import (
    AugmentationRecipe,
    augment_batch,
    random_transforms,
    resample,
)

NOTHING = AugmentationRecipe(horizontal_flip=0.0)
EVERYTHING = AugmentationRecipe(
    rotation_degrees=90,
    smallest_scale=0.5,
    vertical_flip=0.5,
    brightness=0.2,
    contrast=0.2,
    noise_std=0.04,
)
GEOMETRY = replace(EVERYTHING, brightness=0, contrast=0, noise_std=0)
CPU = torch.device("cpu")


def blobs(count: int = 6, size: int = 32) -> Tensor:
    """Different smooth slices (B, 1, size, size) in [0, 1], black at the border."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size - 8, size - 8), mode="bicubic")
    return torch.nn.functional.pad(smooth.clamp(0, 1), (4, 4, 4, 4))


def augment(
    pixel_values: Tensor, recipe: AugmentationRecipe, seed: int = 0, value_range: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Augmented slices and their mask "bright" (above one half)."""
    torch.manual_seed(seed)
    masks = {"bright": (pixel_values[:, 0] > 0.5).to(torch.uint8)}
    changed, moved = augment_batch(pixel_values, masks, recipe, value_range)
    return changed, moved["bright"]


def test_a_recipe_of_zeros_changes_nothing() -> None:
    changed, mask = augment(blobs(), NOTHING)
    torch.testing.assert_close(changed, blobs(), atol=1e-5, rtol=0)
    assert torch.equal(mask, (blobs()[:, 0] > 0.5).to(torch.uint8))


@pytest.mark.parametrize(
    ("recipe", "dimensions"),
    [
        (AugmentationRecipe(horizontal_flip=1), [3]),
        (AugmentationRecipe(horizontal_flip=0, vertical_flip=1), [2]),
        (AugmentationRecipe(horizontal_flip=1, vertical_flip=1), [2, 3]),
    ],
)
def test_flips_are_exact(recipe: AugmentationRecipe, dimensions: list[int]) -> None:
    changed, mask = augment(blobs(), recipe)
    flipped = blobs().flip(dimensions)
    torch.testing.assert_close(changed, flipped, atol=1e-5, rtol=0)
    assert torch.equal(mask, (flipped[:, 0] > 0.5).to(torch.uint8))


def test_a_flip_happens_as_often_as_it_should() -> None:
    torch.manual_seed(0)
    transforms = random_transforms(4000, AugmentationRecipe(horizontal_flip=0.3), CPU)
    assert (transforms[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_whole_sequences_go_missing_as_often_as_asked_and_never_all_of_them() -> None:
    torch.manual_seed(0)
    images = blobs().repeat(150, 4, 1, 1) + 0.5  # black is not 0
    still = AugmentationRecipe(horizontal_flip=0)
    (changed, mask), (same, _) = (
        augment(images, replace(still, sequence_dropout=share)) for share in (0.4, 0.0)
    )
    black = images.amin((2, 3), keepdim=True)
    missing = (changed == black).flatten(2).all(2)
    assert torch.equal(changed[~missing], same[~missing])
    assert not missing.all(1).any()
    assert missing.float().mean().item() == pytest.approx(0.4 * 3 / 4, abs=0.03)
    assert mask.any(2).any(1).all()  # the lesion stays where it was


def test_slice_and_mask_move_together() -> None:
    image = (blobs() > 0.5).float()
    torch.manual_seed(1)
    changed, moved = augment_batch(image, {"mask": image[:, 0]}, GEOMETRY)
    differs = ((changed[:, 0] > 0.5).float() != moved["mask"]).float().mean()
    displaced = (image[:, 0] != moved["mask"]).float().mean()
    assert differs < 0.02 < 0.1 < displaced  # bilinear and nearest differ on edges only


def test_a_mask_of_another_resolution_moves_alike() -> None:
    small = (blobs()[:, 0] > 0.5).float()
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.manual_seed(2)
    _, moved = augment_batch(blobs(), {"small": small, "large": large}, GEOMETRY)
    shrunk = torch.nn.functional.avg_pool2d(moved["large"][:, None], 2)[:, 0]
    assert ((shrunk - moved["small"]).abs() > 0.5).float().mean() < 0.02


def test_masks_stay_binary_and_keep_their_type() -> None:
    for seed in range(5):
        _, mask = augment(blobs(), EVERYTHING, seed)
        assert mask.dtype == torch.uint8 and set(mask.unique().tolist()) == {0, 1}


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]).expand(6, -1, -1)
    turned = resample(blobs(), quarter, "bilinear")
    torch.testing.assert_close(turned, blobs().rot90(1, (2, 3)), atol=1e-5, rtol=0)


def test_a_rotation_is_rigid_and_within_its_limit() -> None:
    torch.manual_seed(0)
    recipe = replace(NOTHING, rotation_degrees=30, rotation_probability=1)
    matrices = random_transforms(500, recipe, CPU)[:, :, :2]
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(2).expand(500, 2, 2))
    angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg()
    assert angles.abs().max() <= 30.01 and angles.min() < -25 and angles.max() > 25


def test_a_random_crop_stays_inside_and_keeps_its_share_of_the_area() -> None:
    torch.manual_seed(0)
    transforms = random_transforms(500, replace(NOTHING, smallest_scale=0.5), CPU)
    area = torch.det(transforms[:, :, :2])
    reach = transforms[:, [0, 1], [0, 1]] + transforms[:, :, 2].abs()  # half side + shift
    assert 0.5 <= area.min() < 0.55 and 0.95 < area.max() <= 1
    assert reach.max() <= 1 + 1e-6


def test_a_random_crop_enlarges() -> None:
    square = torch.zeros(8, 1, 32, 32)
    square[:, :, 12:20, 12:20] = 1
    torch.manual_seed(0)
    _, moved = augment_batch(square, {"m": square[:, 0]}, replace(NOTHING, smallest_scale=0.5))
    assert (moved["m"].sum((1, 2)) >= 64).all() and moved["m"].sum() > 8 * 70


def test_the_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    first, again, other = (augment(blobs(), EVERYTHING, seed) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_samples_of_a_batch_are_changed_differently() -> None:
    same = blobs(1).expand(4, -1, -1, -1)
    changed, _ = augment(same, EVERYTHING)
    assert len({tuple(sample.flatten().tolist()) for sample in changed}) == 4


def test_the_input_is_left_alone() -> None:
    pixel_values, masks = blobs(), {"m": (blobs()[:, 0] > 0.5).float()}
    augment_batch(pixel_values, masks, EVERYTHING)
    assert torch.equal(pixel_values, blobs())
    assert torch.equal(masks["m"], (blobs()[:, 0] > 0.5).float())


def test_brightness_is_a_factor_within_its_limits() -> None:
    recipe = replace(NOTHING, brightness=0.2, intensity_probability=1)
    changed, mask = augment(blobs(64), recipe)
    factors = changed.sum((1, 2, 3)) / blobs(64).sum((1, 2, 3))
    assert 0.8 <= factors.min() < 0.85 and 1.15 < factors.max() <= 1.2001
    assert torch.equal(mask, (blobs(64)[:, 0] > 0.5).to(torch.uint8))


def test_contrast_keeps_the_mean_and_scales_the_spread() -> None:
    recipe = replace(NOTHING, contrast=0.2, intensity_probability=1)
    changed, _ = augment(blobs(64), recipe)
    torch.testing.assert_close(changed.mean((1, 2, 3)), blobs(64).mean((1, 2, 3)))
    factors = changed.std((1, 2, 3)) / blobs(64).std((1, 2, 3))
    assert 0.799 <= factors.min() < 0.85 and 1.15 < factors.max() <= 1.201


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_noise_is_a_share_of_the_intensity_range(value_range: float) -> None:
    recipe = replace(NOTHING, noise_std=0.04, noise_probability=1)
    pixel_values = value_range * blobs(8)
    changed, _ = augment(pixel_values, recipe, value_range=value_range)
    noise = changed - pixel_values
    assert noise.std().item() == pytest.approx(0.04 * value_range, rel=0.05)


def test_noise_happens_to_some_slices_only() -> None:
    changed, _ = augment(blobs(400), replace(NOTHING, noise_std=0.04, noise_probability=0.7))
    noisy = (changed - blobs(400)).std((1, 2, 3)) > 0.02
    assert noisy.float().mean().item() == pytest.approx(0.7, abs=0.08)


def test_what_a_rotation_uncovers_is_black_also_after_normalisation() -> None:
    recipe = replace(NOTHING, rotation_degrees=45, rotation_probability=1, brightness=0.2)
    plain, _ = augment(blobs(), recipe)
    normalised, _ = augment((blobs() - 0.3) / 0.2, recipe)
    torch.testing.assert_close(normalised, (plain - 0.3) / 0.2, atol=1e-4, rtol=0)
    assert plain[:, :, 0, 0].abs().max() < 1e-6


def test_gamma_moves_tissue_between_black_and_white_which_stay() -> None:
    recipe = replace(NOTHING, gamma=1.0, intensity_probability=1.0)
    images = blobs() + 0.5  # black is not 0
    changed, mask = augment(images, recipe)
    black, white = images.amin((2, 3)), images.amax((2, 3))
    torch.testing.assert_close(changed.amin((2, 3)), black)
    torch.testing.assert_close(changed.amax((2, 3)), white)
    unit, before = ((x - x.amin((2, 3), keepdim=True)) / (white - black)[..., None, None]
                    for x in (changed, images))  # fmt: skip
    inside = (before > 0.1) & (before < 0.9)
    for one, was, used in zip(unit, before, inside, strict=True):
        exponents = one[used].log() / was[used].log()
        assert exponents.std() < 1e-3 and 0.5 <= exponents.mean() <= 2
    assert torch.equal(mask, (images[:, 0] > 0.5).to(torch.uint8))
    spread = [
        (u[i].log() / b[i].log()).mean() for u, b, i in zip(unit, before, inside, strict=True)
    ]
    assert torch.stack(spread).std() > 0.1  # another exponent for each slice


def test_gamma_leaves_a_blank_slice_blank() -> None:
    recipe = replace(NOTHING, gamma=1.0, intensity_probability=1.0)
    changed, _ = augment(torch.full((2, 1, 8, 8), 3.0), recipe)
    assert torch.equal(changed, torch.full((2, 1, 8, 8), 3.0))
