"""Every competing system: its key mechanism on toy slices, and what all of them share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import SHAPE, make_blobs
from torch import Tensor, nn

# isort: split
from baselines.ae import Ae, AeSettings
from baselines.ame_cam import AmeCam, AmeCamSettings, fusion_loss
from baselines.anofpdm import Anofpdm, AnofpdmSettings, signed
from baselines.cae import Cae, CaeSettings
from baselines.classifier import grad_cam, rise, rise_masks
from baselines.dae import Dae, DaeSettings, coarse_noise
from baselines.frames import eroded_brain, from_grid, to_grid
from baselines.gp_unet import GpUnet, GpUnetSettings, pool
from baselines.interface import LearnedSystem
from baselines.la_gan import LaGan, LaGanSettings
from baselines.networks import resnet_classifier
from baselines.ts_cam import TsCam, TsCamSettings, coupled_map
from baselines.vqvae import Vqvae, VqvaeSettings
from baselines.yoo import (
    SuperpixelNetwork,
    YooAll,
    YooSettings,
    YooT2,
    compactness_loss,
    seed_loss,
)

from modeling_rasalore.evaluation.metrics import average_precision

PIXELS = 32
YOO = YooSettings(PIXELS, (4, 8), 4, 2, 4, 4, 2, 4)
TINY: dict[type[LearnedSystem], Any] = {
    Ae: AeSettings(PIXELS, (8, 8), 8, 2, 4, 1e-3),
    Dae: DaeSettings(PIXELS, (4, 8), 2, 4, 1e-3, noise_grid=4),
    Vqvae: VqvaeSettings(PIXELS, (8, 8, 8), 4, 8, 2, 4, 1e-3),
    TsCam: TsCamSettings(PIXELS, 8, 12, 2, 2, 2, 4, 1e-3),
    GpUnet: GpUnetSettings(PIXELS, (4, 8), 2, 4, 1e-3),
    Cae: CaeSettings(PIXELS, 4, 1, 2, 4, 1e-3, bank=8),
    LaGan: LaGanSettings(PIXELS, 4, 2, 1, (4, 8), 2, 4, 1e-3),
    AmeCam: AmeCamSettings(PIXELS, 4, False, 2, 2, 4, 1e-3),
    YooT2: YOO,
    YooAll: YOO,
    Anofpdm: AnofpdmSettings(PIXELS, (8, 8), 1, 2, 4, 1e-3, 3, average=0.5),
}


def fitted(
    system: type[LearnedSystem], count: int = 8, **changes: Any
) -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    """A system after `fit` on blobs, with unseen unhealthy slices and their masks."""
    channels = 4 if system.ALL_SEQUENCES else 1
    slices, labels, _ = make_blobs(count, sequences=channels)
    built = system(replace(TINY[system], **changes))
    built.fit(slices, labels)
    unseen, _, masks = make_blobs(16, seed=1, sequences=channels)
    return built, unseen[1::2], masks[1::2]


def mean_precision(scores: list[np.ndarray], masks: list[np.ndarray]) -> float:
    return float(np.mean([average_precision(*pair) for pair in zip(scores, masks, strict=True)]))


# --- What all systems share ---------------------------------------------------------------------
@pytest.mark.parametrize("system", list(TINY), ids=lambda system: system.__name__)
def test_scores_lie_in_the_slices_frame_and_survive_saving(
    system: type[LearnedSystem], tmp_path: Path
) -> None:
    built, slices, _ = fitted(system)
    scores = built.score(slices[:2])
    for score, image in zip(scores, slices, strict=False):
        assert score.shape == SHAPE and score.dtype == np.float32
        assert score.min() >= 0 and score.max() <= 1
        assert not score[image.reshape(-1, *SHAPE)[0] == 0].any()
    built.save(tmp_path / "system")
    again = system.load(tmp_path / "system", built.settings)
    assert again.weights == built.weights == "trained"
    assert all(map(np.array_equal, again.score(slices[:2]), scores))


def test_a_restored_system_draws_the_noise_of_its_seed(tmp_path: Path) -> None:
    slices, labels, _ = make_blobs(8)
    built = Anofpdm(TINY[Anofpdm], seed=3)
    built.fit(slices, labels)
    built.save(tmp_path)
    again = Anofpdm.load(tmp_path, built.settings, seed=3)
    other = Anofpdm.load(tmp_path, built.settings, seed=0)
    (scores,) = built.score(slices[1:2])
    np.testing.assert_array_equal(again.score(slices[1:2])[0], scores)
    assert not np.array_equal(other.score(slices[1:2])[0], scores)


@pytest.mark.parametrize("system", list(TINY), ids=lambda system: system.__name__)
def test_both_sizes_are_settings_of_the_same_class(system: type[LearnedSystem]) -> None:
    assert set(system.SIZES) == {"small", "paper"}
    assert {type(settings) for settings in system.SIZES.values()} == {type(TINY[system])}
    assert system.SIZES["small"].pixels < system.SIZES["paper"].pixels


def test_unlabelled_slices_are_refused() -> None:
    slices, _, _ = make_blobs(4)
    with pytest.raises(ValueError, match="needs the label 0 or 1"):
        Ae(TINY[Ae]).fit(slices, [0, 1, -1, 0])
    with pytest.raises(ValueError, match=r"TsCam needs slices labelled \{1\}"):
        TsCam(TINY[TsCam]).fit(slices, [0, 0, 0, 0])


@pytest.mark.parametrize("system", [Ae, Dae, Vqvae])
def test_unhealthy_slices_teach_a_healthy_only_system_nothing(
    system: type[LearnedSystem],
) -> None:
    slices, labels, _ = make_blobs(8)
    with_all, healthy_only = system(TINY[system]), system(TINY[system])
    with_all.fit(slices, labels)
    healthy_only.fit(slices[::2], [0] * 4)
    pairs = zip(with_all.networks.parameters(), healthy_only.networks.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_map_returns_to_the_place_it_came_from() -> None:
    image = np.zeros(SHAPE, np.float32)
    image[5:9, 20:26] = 1
    there = to_grid([image], 64)
    back = from_grid(there[0, 0], SHAPE).numpy()
    assert there.shape == (1, 1, 64, 64)
    assert np.abs(back - image).max() < 0.5
    assert np.array_equal(back > 0.5, image > 0.5)


def test_the_rim_of_the_brain_is_left_out() -> None:
    brain = torch.zeros(1, 1, 20, 20)
    brain[..., 4:16, 4:16] = 1
    eroded = eroded_brain(brain)
    assert eroded[0, 6:14, 6:14].all()
    assert int(eroded.sum()) == 8 * 8


# --- Healthy slices only ------------------------------------------------------------------------
def test_an_autoencoder_of_healthy_slices_does_not_reproduce_a_blob() -> None:
    built, slices, masks = fitted(Ae, count=32, steps=150, rate=3e-3, batch_size=16)
    assert mean_precision(built.score(slices), masks) > 0.6


def test_a_residual_s_native_threshold_becomes_the_score_one_half() -> None:
    built, _, _ = fitted(Ae, count=32)
    healthy = make_blobs(32)[0][::2]
    inside = np.concatenate([s[h > 0] for s, h in zip(built.score(healthy), healthy, strict=True)])
    assert 0 < np.mean(inside > 0.5) < 0.03  # the 0.98 quantile, up to resampling


def test_dae_noise_is_coarse_and_has_the_asked_strength() -> None:
    torch.manual_seed(0)
    noise = coarse_noise(torch.zeros(64, 1, 64, 64), 16, 0.2)
    neighbours = torch.corrcoef(torch.stack([noise[..., 1:], noise[..., :-1]]).flatten(1))
    assert neighbours[0, 1] > 0.8
    assert 0.08 < float(noise.std()) < 0.2


def test_the_denoiser_removes_its_noise_from_healthy_slices() -> None:
    built, _, _ = fitted(Dae, count=32, steps=250, rate=5e-3, noise_grid=4)
    healthy = to_grid(make_blobs(16, seed=2)[0][::2], PIXELS)
    torch.manual_seed(1)
    noise = coarse_noise(healthy, 4, 0.2) * (healthy > 0.01)
    left = (built.networks["unet"](healthy + noise).detach() - healthy) * (healthy > 0.01)
    assert left.square().mean() < 0.5 * noise.square().mean()


def test_the_codebook_is_used() -> None:
    built, slices, _ = fitted(Vqvae, count=32, steps=30, batch_size=8, revive_every=5)
    indices = built.code_indices(to_grid(slices, PIXELS))
    shares = torch.bincount(indices.flatten(), minlength=8) / indices.numel()
    assert int((shares > 0).sum()) >= 4
    assert float(shares.max()) < 0.9


# --- Slice labels -------------------------------------------------------------------------------
def test_ts_cam_is_hot_only_where_both_factors_are() -> None:
    attention, semantic = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    attention[0, 0, 0] = attention[0, 3, 3] = 1  # a salient place, and the lesion
    semantic[0, 3, 3] = semantic[0, 0, 3] = 1  # the lesion, and what looks like it
    heat = coupled_map(attention, semantic, 4)[0]
    assert heat[3, 3] == 1
    assert float(heat.sum()) == 1


def test_ts_cam_attention_is_of_the_class_token_summed_over_layers() -> None:
    built, slices, _ = fitted(TsCam)
    semantic, attention = built.networks["classifier"](to_grid(slices[:2], PIXELS))
    assert semantic.shape == (2, 2, 4, 4)
    to_patches = attention.flatten(1).sum(1)  # of 2 layers, less what goes to the token itself
    assert ((to_patches > 1) & (to_patches < 2)).all()


def test_slice_labels_alone_draw_the_blob_through_the_pooling() -> None:
    built, slices, masks = fitted(
        GpUnet, count=32, steps=120, widths=(8, 16), batch_size=16, rate=5e-3
    )
    assert mean_precision(built.score(slices), masks) > 0.8


def test_before_any_label_every_pixel_is_almost_certainly_healthy() -> None:
    built = GpUnet(TINY[GpUnet])
    assert float(built.raw_maps(torch.rand(2, 1, PIXELS, PIXELS)).mean()) < 0.1


def test_the_pooling_sees_the_highest_share_of_the_brain_alone() -> None:
    logits = torch.arange(16.0).view(1, 4, 4)
    brain = torch.zeros(1, 4, 4, dtype=torch.bool)
    brain[0, :2] = True  # 8 pixels, 0 to 7; the higher ones lie outside
    assert pool(logits, brain, 0.25).tolist() == [6.5]
    assert pool(logits, brain, 1.0).tolist() == [3.5]
    assert pool(logits, brain, 0.0).tolist() == [7.0]  # GP-UNet's global maximum
    assert pool(logits, ~brain & False, 0.25).tolist() == [0.0]


def test_slices_of_different_brains_are_pooled_by_their_own_size() -> None:
    logits = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    brain = torch.ones(2, 6, 6, dtype=torch.bool)
    brain[1, 2:] = False
    together = pool(logits, brain, 0.2)
    expected = [
        float(values[inside].sort(descending=True).values[:count].mean())
        for values, inside, count in zip(logits, brain, (7, 2), strict=True)
    ]
    assert together.tolist() == pytest.approx(expected)


def test_the_counterfactual_of_an_unhealthy_slice_is_classified_healthy() -> None:
    built, slices, _ = fitted(Cae, count=32, steps=200, batch_size=8, rate=2e-3)
    grid = to_grid(slices, PIXELS)
    with torch.no_grad():
        before = built.unhealthy_probability(2 * grid.clamp(0, 1.5) / 1.5 - 1)
        after = built.unhealthy_probability(built.counterfactual(grid))
    assert (before > 0.5).float().mean() >= 0.75
    assert (after < 0.5).float().mean() >= 0.75


def test_the_lesion_aware_generator_changes_the_blob_most() -> None:
    built, slices, masks = fitted(
        LaGan, count=32, classifier_steps=120, steps=150, batch_size=16, rate=2e-3
    )
    grid = to_grid(slices, PIXELS)
    change = (built.pseudo_healthy(grid) - grid).abs().detach()[:, 0]
    blob = to_grid([mask.astype(np.float32) for mask in masks], PIXELS)[:, 0] > 0.5
    assert change[blob].mean() > 2 * change[~blob & (grid[:, 0] > 0)].mean()


@pytest.mark.parametrize("inverted", [False, True])
def test_ame_cam_finds_its_polarity_without_masks(inverted: bool) -> None:
    built = AmeCam(TINY[AmeCam])
    slices, _, _ = make_blobs(8)
    images = to_grid(slices[1::2], PIXELS)

    def intensity(batch: Tensor) -> Tensor:
        return 1 - batch[:, 0] / 1.2 if inverted else batch[:, 0] / 1.2

    built.fused_map = intensity
    built.unhealthy_probability = lambda batch: (batch[:, 0] > 0.9).float().mean((1, 2))
    built.choose_polarity(images)
    assert built.numbers["inverted"] == float(inverted)


def test_the_fusion_prefers_maps_that_part_the_blob_from_the_rest() -> None:
    slices, _, masks = make_blobs(8)
    images = to_grid(slices[1::2], PIXELS)
    blob = to_grid([mask.astype(np.float32) for mask in masks[1::2]], PIXELS)[:, 0]
    assert fusion_loss(images, blob) < fusion_loss(images, torch.full_like(blob, 0.5))


def test_superpixels_partition_the_slice() -> None:
    torch.manual_seed(0)
    network = SuperpixelNetwork(1, (4, 8), PIXELS).eval()
    association = network(torch.rand(2, 1, PIXELS, PIXELS))
    assert association.shape == (2, 64, PIXELS, PIXELS)
    assert torch.allclose(association.sum(1), torch.ones(2, PIXELS, PIXELS), atol=1e-5)
    assert (association >= 0).all()


def test_compact_superpixels_of_one_colour_cost_less_than_scattered_ones() -> None:
    cells = torch.arange(4).repeat_interleave(8)
    blocks = nn.functional.one_hot(4 * cells[:, None] + cells[None], 16).movedim(-1, 0)[None]
    image = blocks[:, 5:6].float()
    scattered = blocks.flatten(2)[..., torch.randperm(32 * 32)].unflatten(2, (32, 32))
    assert compactness_loss(image, blocks.float()) < compactness_loss(image, scattered.float()) / 2


def test_the_seed_loss_looks_at_seeds_only() -> None:
    mask = torch.tensor([[[0.9, 0.1, 0.5]]])
    positive, negative = torch.tensor([[[1.0, 0, 0]]]), torch.tensor([[[0, 1.0, 0]]])
    expected = -(2 * np.log(0.9) + 1) / 3
    assert float(seed_loss(mask, positive, negative)) == pytest.approx(expected, abs=1e-6)
    assert seed_loss(1 - mask, positive, negative) > seed_loss(mask, positive, negative)


class BlobJudge(nn.Module):
    """A perfect classifier: unhealthy where something is brighter than any healthy tissue."""

    def forward(self, images: Tensor) -> Any:
        bright = (images > 0.9).float().mean((1, 2, 3)) * 200 - 4
        return type("Output", (), {"logits": torch.stack([-bright, bright], 1)})


def test_rise_points_at_what_the_classifier_looks_at() -> None:
    slices, _, masks = make_blobs(8)
    heat = rise(BlobJudge(), to_grid(slices[1::2], PIXELS), rise_masks(300, PIXELS, seed=0))
    back = [from_grid(one, SHAPE).numpy() for one in heat]
    chance = float(np.mean([mask.mean() for mask in masks[1::2]]))
    assert mean_precision(back, masks[1::2]) > 5 * chance


def test_grad_cam_is_one_map_per_slice_from_0_to_1() -> None:
    torch.manual_seed(0)
    heat = grad_cam(resnet_classifier(1, 4), torch.rand(3, 1, PIXELS, PIXELS), stage=2)
    assert heat.shape == (3, PIXELS, PIXELS)
    assert float(heat.min()) == 0 and float(heat.max()) == pytest.approx(1, abs=1e-5)


def knowing_noise(built: Anofpdm, images: Tensor, healthy: Tensor) -> Callable[..., Any]:
    """Noise of a perfect model: the healthy class explains the healthy slice, null the seen one."""

    def estimate(state: Tensor, time: int) -> tuple[Tensor, Tensor]:
        share = built.scheduler.alphas_cumprod[time]
        pair = [(state - share.sqrt() * x) / (1 - share).sqrt() for x in (healthy, images)]
        return pair[0], pair[1]

    return estimate


def test_guided_and_unguided_paths_differ_most_inside_the_lesion() -> None:
    built = Anofpdm(TINY[Anofpdm])
    slices, _, masks = make_blobs(8)
    seen = to_grid(slices[1::2], PIXELS)
    blob = to_grid([mask.astype(np.float32) for mask in masks[1::2]], PIXELS) > 0.5
    unit = signed(seen)
    healthy = torch.where(blob, 0.0, unit)
    built.noise_estimates = knowing_noise(built, unit, healthy)
    guided, unguided = built.forward_process(unit)
    apart = (guided - unguided).square().mean(0)
    assert apart[blob].mean() > 10 * apart[~blob].mean()
    heat = built.maps(seen)
    assert heat[blob[:, 0]].mean() > 10 * heat[~blob[:, 0]].mean()
