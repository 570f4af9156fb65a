"""Painted lesions: inside the brain, visible, varied, the same for the same seed, and fast."""

import time

import pytest
import torch
from torch import Tensor

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.training.painted_lesions import paint_lesions


def brains(count: int = 64, size: int = 64, channels: int = 1, level: float = 0.4) -> Tensor:
    """Round brains with fine texture, black outside."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, size)
    inside = (axis[:, None].square() + axis.square()) < 0.8
    texture = 0.02 * torch.randn(count, channels, size, size, generator=generator)
    return (level + texture).clamp(0.1, 1) * inside


def paint(images: Tensor, seed: int = 0, darker_share: float = 0.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return paint_lesions(images, darker_share)


def shrink(masks: Tensor) -> Tensor:
    """Masks at twice the slices' resolution -> those pixels that are lesion altogether."""
    return torch.nn.functional.avg_pool2d(masks[:, None].float(), 2) == 1


def test_lesions_lie_inside_the_brain_and_the_background_stays_black() -> None:
    images = brains()
    painted, masks = paint(images)
    assert masks.shape == (64, 128, 128)
    assert masks.dtype == torch.uint8
    black = torch.nn.functional.max_pool2d(images, 5, stride=1, padding=2) == 0
    assert not painted[black].any()
    outside = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear") <= 0.02
    assert not masks[:, None][outside].any()


def test_slices_change_where_the_mask_is_and_nowhere_far_from_it() -> None:
    images = brains(level=0.15)  # dark enough that no lesion exceeds 1
    painted, masks = paint(images)
    fine = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    change = (painted - torch.nn.functional.avg_pool2d(fine, 2)).abs()
    within = shrink(masks)
    near = torch.nn.functional.max_pool2d(masks[:, None].float(), 97, stride=2, padding=48) > 0
    assert change[within].mean() > 10 * change[~near].mean()


@pytest.mark.parametrize(("darker_share", "sign"), [(0.0, 1), (1.0, -1)])
def test_lesions_are_brighter_or_darker_as_asked(darker_share: float, sign: int) -> None:
    images = brains()
    painted, masks = paint(images, darker_share=darker_share)
    differences = [
        sign * float(image[lesion].mean() - image[~lesion & (before > 0)].mean())
        for image, lesion, before in zip(painted, shrink(masks), images, strict=True)
        if lesion.sum() > 20
    ]
    assert len(differences) > 30
    assert sum(d > 0 for d in differences) > 0.9 * len(differences)


def test_sizes_range_over_two_decades() -> None:
    _, masks = paint(brains(256))
    areas = masks.flatten(1).sum(1)
    present = areas[areas > 0].float()
    assert len(present) > 220
    assert present.quantile(0.98) > 100 * present.quantile(0.02)


def test_one_seed_gives_one_set_of_lesions_and_another_seed_others() -> None:
    first, second, third = (paint(brains(4), seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], third[1])


def test_fluid_that_outshines_an_oedema_is_not_lesion() -> None:
    """Half of each slice is fluid, three times as bright as brain: only a core may enter it."""
    images = brains(256, level=0.3)
    images[..., 32:] = images[..., 32:].clamp(max=0.32) * 3.1
    _, masks = paint(images)
    left, right = masks[..., :60].sum(), masks[..., 68:].sum()
    assert right < 0.7 * left  # where nothing is refused, they are equal


def test_a_slice_without_brain_stays_black_without_a_lesion() -> None:
    painted, masks = paint(torch.zeros(3, 1, 32, 32))
    assert torch.equal(painted, torch.zeros(3, 1, 32, 32))
    assert not masks.any()


def test_sequences_of_a_slice_get_one_lesion_with_contrasts_of_their_own() -> None:
    painted, masks = paint(brains(channels=2))
    within = shrink(masks)[:, 0]
    assert masks.shape == (64, 128, 128)
    levels = torch.stack([painted[:, c][within].mean() for c in range(2)])
    single = [painted[i, :, within[i]].mean(1) for i in range(64) if within[i].any()]
    assert (levels > 0.4).all()
    assert torch.stack(single).diff(dim=1).abs().mean() > 0.03


def test_the_processor_turns_intensities_into_pixel_values_and_back() -> None:
    processor = RasaloreImageProcessor(size=64, gamma=2.0, image_mean=[0.2], image_std=[0.1])
    images = brains(2)
    torch.testing.assert_close(
        processor.to_intensities(processor.from_intensities(images)), images, atol=1e-5, rtol=0
    )
    assert float(processor.from_intensities(torch.tensor([[[0.5]]]))) == pytest.approx(0.5)


def test_painting_is_no_bottleneck_of_training() -> None:
    images = brains(16)
    paint(images)
    started = time.process_time()
    for seed in range(4):
        paint(images, seed)
    assert 64 / (time.process_time() - started) > 20  # slices per second; alone on a core: 120
