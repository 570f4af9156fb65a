"""Painted lesions: inside the brain, of the stated sizes and strengths, seeded, and fast."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_rasalore import RasaloreImageProcessor
from modeling_rasalore.training.lesion_recipes import LOOKS, LesionRecipe, lesion_recipe
from modeling_rasalore.training.lesion_shapes import (
    Draw,
    Healthy,
    Shapes,
    draw_diameters,
    measure_ellipsoids,
)
from modeling_rasalore.training.painted_lesions import (
    PaintedSlices,
    blend,
    paint_lesions,
    paint_unit_range,
)

SIZE, PIXEL = 64, 2.0
EVERY = [*LOOKS, "all"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(size: int = SIZE) -> Tensor:
    axis = torch.linspace(-1, 1, size)
    return (axis[:, None].square() + axis.square()) < 0.8


def brains(count: int = 64, planes: int = 3, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Round brains with fine texture around 1, black outside; their masks; mm per pixel."""
    brain = disc(size).expand(count, planes, size, size)
    texture = 0.05 * torch.randn(brain.shape, generator=seeded())
    return (1 + texture) * brain, brain, torch.full((count,), PIXEL)


def plain(modality: str, **options: Any) -> LesionRecipe:
    """Lesions without a field of brightness, on every slice."""
    return replace(lesion_recipe(modality, blank_share=0.0), bias=0.0, **options)


def paint(modality: str, count: int = 64, seed: int = 0, **options: Any) -> PaintedSlices:
    return paint_lesions(*brains(count), plain(modality, **options), seeded(seed))


def is_marked(masks: Tensor) -> Tensor:
    """Which slices have a lesion, (B,) bool."""
    return masks.flatten(1).amax(1) > 0


def lesions_of(painted: PaintedSlices) -> Tensor:
    """Clear and faint lesions."""
    return torch.maximum(painted.target, painted.faint)


def change_at(painted: PaintedSlices, before: Tensor) -> Tensor:
    """Largest change in each middle slice, of means of 3 x 3 pixels so that noise counts less."""
    return F.avg_pool2d((painted.x - before)[:, 1:2].abs(), 3, stride=1, padding=1).amax((1, 2, 3))


# --- What changes and what does not -------------------------------------------------------------
@pytest.mark.parametrize("modality", LOOKS)
def test_a_mask_is_empty_if_and_only_if_nothing_changed(modality: str) -> None:
    before, painted = brains(128)[0], paint(modality, 128)
    empty = ~is_marked(lesions_of(painted))
    same = (painted.x == before).flatten(1).all(1)
    assert torch.equal(empty, same)
    assert (change_at(painted, before)[~empty] > 0.003).all()


@pytest.mark.parametrize("modality", LOOKS)
def test_outside_the_brain_nothing_changes(modality: str) -> None:
    x, brain, pixel_mm = brains()
    x = torch.where(brain, x, 0.3)  # not even where something lies there
    painted = paint_lesions(x, brain, pixel_mm, lesion_recipe(modality), seeded())
    assert torch.equal(painted.x[~brain], x[~brain])
    edge = F.interpolate(brain[:, 1:2].float(), scale_factor=2, mode="bilinear")[:, 0] == 0
    assert not lesions_of(painted)[edge].any()


def test_far_from_a_lesion_nothing_changes_but_the_field_of_brightness() -> None:
    before, painted = brains()[0], paint("flair", softness=(0.05, 0.1))
    near = F.max_pool2d(lesions_of(painted)[:, None].float(), 33, stride=2, padding=16)[:, 0] > 0
    change = (painted.x - before)[:, 1].abs()
    assert change[~near].mean() < 0.01 * change[near].mean()
    blank = paint_lesions(*brains(), lesion_recipe("flair", blank_share=1.0), seeded())
    ratio = (blank.x / before)[brains()[1]]
    assert not lesions_of(blank).any() and 0.05 < ratio.log().std() < 0.2


@pytest.mark.parametrize("modality", ["t2", "flair", "t1"])
def test_fluid_stays_fluid(modality: str) -> None:
    x, brain, pixel_mm = brains()
    begin, end = LOOKS[modality].fluid
    x[..., 40:] = torch.where(brain[..., 40:], 2 * end - begin, 0.0)
    painted = paint_lesions(x, brain, pixel_mm, plain(modality), seeded())
    assert torch.equal(painted.x[..., 44:], x[..., 44:])
    assert lesions_of(painted)[..., :76].any() and not lesions_of(painted)[..., 88:].any()


def test_a_slice_without_brain_stays_as_it_is() -> None:
    black = torch.zeros(3, 3, SIZE, SIZE)
    painted = paint_lesions(black, black > 0, torch.full((3,), PIXEL), plain("t2"), seeded())
    assert torch.equal(painted.x, black) and not lesions_of(painted).any()


def test_a_share_of_the_slices_stays_blank() -> None:
    painted = paint_lesions(*brains(800, 1), lesion_recipe("flair"), seeded())
    blank = ~is_marked(lesions_of(painted))
    assert float(blank.float().mean()) == pytest.approx(0.25, abs=0.06)  # and a few come out empty


def test_intensities_end_where_those_of_scans_end() -> None:
    x, brain, pixel_mm = brains()
    x = torch.where(brain, 3.9, 0.0)
    for modality in LOOKS:
        painted = paint_lesions(x, brain, pixel_mm, lesion_recipe(modality), seeded()).x
        assert painted.min() >= 0 and 3.9 < painted.max() <= 4


# --- Randomness ---------------------------------------------------------------------------------
def test_one_generator_gives_one_set_of_lesions_and_touches_no_other() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (paint("t1ce", 8, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(lesions_of(first), lesions_of(third))


@pytest.mark.parametrize("modality", LOOKS)
def test_one_slice_alone_is_the_middle_one_of_three(modality: str) -> None:
    x, brain, pixel_mm = brains()
    three = paint_lesions(x, brain, pixel_mm, lesion_recipe(modality), seeded())
    one = paint_lesions(x[:, 1:2], brain[:, 1:2], pixel_mm, lesion_recipe(modality), seeded())
    torch.testing.assert_close(one.x, three.x[:, 1:2], rtol=0, atol=1e-5)
    assert (one.target != three.target).float().mean() < 1e-4
    assert (one.faint != three.faint).float().mean() < 1e-4


# --- Sizes and forms ----------------------------------------------------------------------------
def healthy(count: int, pixel: float = PIXEL) -> Healthy:
    x, brain, _ = brains(count)
    return Healthy.of(x[:, None], brain, torch.full((count,), pixel), (LOOKS["flair"],))


def diameters(first: bool = True, scattered: bool = False, pixel: float = 1.8) -> Tensor:
    """2,000 diameters in mm in a frame of 96 pixels."""
    which = torch.full((2000,), scattered)
    pixel_mm = torch.full((2000, 1, 1, 1, 1), pixel)
    draw = Draw(pixel_mm.device, seeded())
    sizes = draw_diameters(draw, pixel_mm, 96, lesion_recipe("flair"), which, first)
    return sizes.flatten() * pixel


def test_sizes_are_log_uniform_between_the_stated_ends() -> None:
    frame = 96 * 1.8
    first, least = diameters(), 1.5 * 1.8  # 1.5 pixels are more than 2 mm
    small = first < 0.06 * frame
    assert float(small.float().mean()) == pytest.approx(0.1, abs=0.03)
    for sizes, low, high in (
        (first[small], least, 0.06 * frame),
        (first[~small], 0.06 * frame, 0.6 * frame),
        (diameters(first=False), 0.03 * frame, 0.25 * frame),
        (diameters(scattered=True), least, 12.0),
    ):
        assert low <= sizes.min() and sizes.max() <= high * 1.0001
        middle = float(sizes.median())
        assert middle == pytest.approx((low * high) ** 0.5, rel=0.12)


def test_the_smallest_lesions_measure_two_millimetres_where_the_pixels_allow() -> None:
    assert 2.0 <= diameters(pixel=1.0).min() < 2.1
    assert 2.7 <= diameters(pixel=1.8).min() < 2.8
    painted = paint_lesions(*brains(128, 1, 128)[:2], torch.full((128,), 1.0), plain("flair"))
    areas = lesions_of(painted).flatten(1).sum(1)[is_marked(lesions_of(painted))] / 4
    assert 2 * (areas.quantile(0.016) / torch.pi).sqrt() < 3.5


def test_sections_are_smaller_the_further_they_are_from_the_middle_of_an_ellipsoid() -> None:
    count = 200
    start = torch.full((count,), SIZE // 2 * SIZE + SIZE // 2)
    radius = torch.linspace(3, 12, count).view(-1, 1, 1, 1, 1)
    draw, recipe = Draw(radius.device, seeded()), replace(plain("flair"), crossing=1.0)
    distance = measure_ellipsoids(draw, healthy(count), recipe, radius, start)[:, 0]
    height = distance[:, :, SIZE // 2, SIZE // 2]  # at the ellipsoid's axis, in radii
    area = (distance < 1).sum((-1, -2))
    order = height.argsort(1)
    assert (area.gather(1, order).diff(dim=1) <= 0).all()
    assert (height[:, 0] < height[:, 1] - 0.01).any() and (area[:, 1] > 0).all()
    expected = torch.pi * radius.flatten()[:, None] ** 2 * (1 - height**2).clamp(min=0)
    torch.testing.assert_close(area.float(), expected, rtol=0.05, atol=8)


def test_lesions_reach_into_the_neighbouring_slices() -> None:
    before, painted = brains()[0], paint("flair", sizes=(0.3, 0.3), small_share=0.0, further=())
    changed = ((painted.x - before).abs() > 0.02).flatten(2).sum(2)
    large = changed[:, 1] > 60
    assert ((changed[large] > 0).float().mean(0) > 0.6).all()
    assert not torch.equal(changed[:, 0], changed[:, 2])


def test_most_lesions_stop_at_the_midline() -> None:
    paint_large = partial(paint, "flair", 200, sizes=(0.4, 0.4), small_share=0.0, further=())
    halves = [
        lesions_of(paint_large(crossing=share, scattered_share=0.0))
        .unflatten(2, (2, SIZE))
        .sum((1, 3))
        for share in (0.0, 1.0)
    ]
    smaller = [float((half.amin(1) / half.sum(1).clamp(min=1)).mean()) for half in halves]
    assert smaller[0] < 0.8 * smaller[1]


def test_scattered_lesions_are_many_and_small() -> None:
    few, many = (lesions_of(paint("flair", 64, scattered_share=share)) for share in (0.0, 1.0))

    def largest_and_edges(masks: Tensor) -> tuple[float, float]:
        area = masks.flatten(1).sum(1).float()
        outline = (masks[:, 1:] != masks[:, :-1]).flatten(1).sum(1)
        return float(area.max()), float((outline / area.clamp(min=1)).mean())

    assert largest_and_edges(many)[0] < 0.3 * largest_and_edges(few)[0]
    assert largest_and_edges(many)[1] > 1.4 * largest_and_edges(few)[1]


# --- Strengths ----------------------------------------------------------------------------------
def strengths(modality: str, core: float = 0.0, rim: float = 0.0, **options: Any) -> Tensor:
    """What is added to 2,000 flat slices by a lesion that covers them, in medians."""
    flat = torch.ones(2000, 1, 1, 16, 16)
    here = Healthy.of(flat, flat[:, 0] > 0, torch.full((2000,), 2.0), (LOOKS[modality],))
    one = torch.ones(2000, 1, 1, 16, 16)
    shapes = Shapes(one, core * one, rim * one, one, torch.full((2000, 1, 1, 1, 1), 50.0))
    recipe = replace(plain(modality), blended=0.0, **options)
    return blend(Draw(flat.device, seeded()), flat, here, shapes, recipe)[0][:, 0, 0, 8, 8] - 1


@pytest.mark.parametrize("modality", LOOKS)
def test_strengths_are_spread_evenly_over_the_stated_range(modality: str) -> None:
    low, high = LOOKS[modality].strength
    quantiles = strengths(modality).quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = torch.linspace(low, high, 5)
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.04 * (high - low))


@pytest.mark.parametrize("modality", LOOKS)
def test_cores_and_rims_are_as_common_and_as_bright_as_stated(modality: str) -> None:
    look = LOOKS[modality]
    sure = replace(look, strength=(3.0, 3.0), core_share=1.0, rim_share=1.0)
    for name, rim in (("core", 0.0), ("rim", 1.0)):
        low, high = getattr(look, name)
        factors = 1 + strengths(modality, 1.0, rim, looks=(sure,))
        ends = torch.tensor([low, (low + high) / 2, high])
        quantiles = factors.quantile(torch.tensor([0.0, 0.5, 1.0]))
        torch.testing.assert_close(quantiles, ends, rtol=0, atol=0.04 * (high - low))
    marked = replace(look, strength=(3.0, 3.0))
    share = (strengths(modality, 1.0, looks=(marked,)) < 2.9).float().mean()
    assert float(share) == pytest.approx(look.core_share, abs=0.04)


def test_lesions_are_bright_in_t2_and_flair_and_dark_in_t1() -> None:
    for modality, sign in (("t2", 1), ("flair", 1), ("t1", -1)):
        before, painted = (
            brains()[0],
            paint(modality, looks=(replace(LOOKS[modality], core_share=0.0),)),
        )
        where = F.avg_pool2d(lesions_of(painted)[:, None].float(), 2) == 1
        change = (painted.x - before)[:, 1:2][where]
        assert sign * float(change.mean()) > 0.03


def test_faint_lesions_are_neither_asked_for_nor_denied() -> None:
    def paint_strong(strength: float) -> PaintedSlices:
        look = replace(LOOKS["flair"], strength=(strength, strength), core_share=0.0)
        return paint("flair", looks=(look,), mottle=0.0, further=(), scattered_share=0.0)

    faint, clear = paint_strong(0.05), paint_strong(0.5)
    assert is_marked(faint.faint).float().mean() > 0.6 and not faint.target.any()
    assert is_marked(clear.target).float().mean() > 0.6 and not clear.faint.any()
    assert not torch.equal(faint.x, brains()[0])  # they are there


def test_what_nobody_could_see_is_not_asked_for() -> None:
    look = replace(LOOKS["t1"], strength=(0.0, 0.02), core_share=0.0)
    painted = paint("t1", looks=(look,))
    assert torch.equal(painted.x, brains()[0]) and not lesions_of(painted).any()


# --- Several sequences, other callers -----------------------------------------------------------
def test_sequences_of_a_slice_get_one_lesion_with_looks_of_their_own() -> None:
    x, brain, pixel_mm = brains()
    four = x[:, None].repeat(1, 4, 1, 1, 1)
    painted = paint_lesions(four, brain, pixel_mm, plain("all"), seeded())
    assert painted.x.shape == four.shape and lesions_of(painted).shape == (64, 128, 128)
    changes = (painted.x - four)[:, :, 1].abs().mean((-1, -2))  # of each slice and sequence
    assert (changes > 0).float().mean() > 0.9 and changes.std(1).mean() > 0.001
    with pytest.raises(ValueError, match="t1, t1ce, t2, flair or all, got pd"):
        lesion_recipe("pd")


@pytest.mark.parametrize("modality", EVERY)
def test_slices_in_the_unit_range_stay_there_and_their_background_black(modality: str) -> None:
    channels = 4 if modality == "all" else 1
    images = (0.4 * brains(planes=channels)[0]).clamp(0, 1)
    torch.manual_seed(0)
    painted, target, faint = paint_unit_range(images, modality)
    masks = torch.maximum(target, faint)
    assert painted.shape == images.shape and masks.dtype == torch.uint8
    assert painted.min() == 0 and painted.max() <= 1
    assert not painted[~disc().expand_as(painted)].any()
    assert is_marked(masks).float().mean() > 0.6


def test_the_processor_turns_intensities_into_pixel_values_and_back() -> None:
    processor = RasaloreImageProcessor(size=64, gamma=2.0, image_mean=[0.2], image_std=[0.1])
    images = 0.4 * brains(2, 1)[0]
    torch.testing.assert_close(
        processor.to_intensities(processor.from_intensities(images)), images, atol=1e-5, rtol=0
    )
    assert float(processor.from_intensities(torch.tensor([[[0.5]]]))) == pytest.approx(0.5)


def test_painting_is_no_bottleneck_of_training() -> None:
    x, brain, pixel_mm = brains(32, 3, 96)
    paint_lesions(x, brain, pixel_mm, lesion_recipe("flair"))
    started = time.process_time()
    for seed in range(3):
        paint_lesions(x, brain, pixel_mm, lesion_recipe("flair"), seeded(seed))
    assert 96 / (time.process_time() - started) > 50  # slices per second; alone on a core: 200
