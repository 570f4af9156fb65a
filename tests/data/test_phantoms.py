"""Synthetic brains: anatomy, contrast and tumours are plausible and seeded."""

import hashlib
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import rankdata
from small_phantoms import SEEDS, SHAPE, VOXEL, phantom

from modeling_rasalore.data import phantoms
from modeling_rasalore.data.phantom_tumours import draw_tumour, push_away, smooth_field
from modeling_rasalore.data.phantoms import SEQUENCES, Phantom, make_phantom


def lesion_ml(of: Phantom) -> float:
    return np.count_nonzero(of.mask) * abs(float(np.linalg.det(of.affine))) / 1000


def digest(of: Phantom) -> str:
    return hashlib.sha256(b"".join(of.images[s].tobytes() for s in SEQUENCES)).hexdigest()


@cache
def tissue_shares(seed: int) -> dict[str, np.ndarray]:
    """The tissue maps (X, Y, Z) behind `phantom(seed, tumour=False)`."""
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
    template = phantoms.load_template((VOXEL,) * 3)
    axes = tuple((np.arange(n, dtype=np.float32) - (n - 1) / 2) * VOXEL for n in SHAPE)
    brain = phantoms.warp_template(rng, template, axes)
    tissues = phantoms.read_tissues(rng, template, brain, [])
    return {name: brain.volume(getattr(tissues, name)) for name in ("white", "grey", "fluid")}


def tissue_means(seed: int, sequence: str) -> tuple[float, float, float]:
    """White matter, grey matter and CSF, each in voxels that are nearly pure."""
    shares, image = tissue_shares(seed), phantom(seed, tumour=False).images[sequence]
    white, grey, fluid = (float(image[shares[k] > 0.85].mean()) for k in ("white", "grey", "fluid"))
    return white, grey, fluid


def test_same_seed_gives_the_same_volume() -> None:
    again = make_phantom(3, SHAPE, VOXEL)
    assert digest(again) == digest(phantom(3))
    np.testing.assert_array_equal(again.mask, phantom(3).mask)


def test_another_seed_gives_another_brain_and_tumour() -> None:
    assert (phantom(3).mask != phantom(4).mask).any()
    assert ((phantom(3).images["t2"] > 0) != (phantom(4).images["t2"] > 0)).any()


def test_another_process_gives_the_same_volume() -> None:
    code = (
        "import hashlib; from modeling_rasalore.data.phantoms import SEQUENCES, make_phantom; "
        f"images = make_phantom(3, {SHAPE}, {VOXEL}).images; "
        "print(hashlib.sha256(b''.join(images[s].tobytes() for s in SEQUENCES)).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    root = Path(__file__).parents[2]
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=root, env=environment)
    assert printed.decode().strip() == digest(phantom(3))


@pytest.mark.parametrize(
    ("shape", "voxel_size"), [((64, 76, 64), 3.0), ((80, 96, 38), (2.4, 2.4, 5))]
)
def test_one_seed_is_one_patient_at_every_voxel_size(
    shape: tuple[int, int, int], voxel_size: float | tuple[float, float, float]
) -> None:
    other = make_phantom(5, shape, voxel_size)
    assert other.mask.shape == shape
    assert lesion_ml(other) == pytest.approx(lesion_ml(phantom(5)), rel=0.15)
    centres = [p.affine @ [*ndimage.center_of_mass(p.mask > 0), 1] for p in (other, phantom(5))]
    np.testing.assert_allclose(centres[0], centres[1], atol=4)


def test_grid_is_lps_with_the_world_origin_in_its_centre() -> None:
    affine = phantom(0).affine
    np.testing.assert_array_equal(np.diag(affine), [-VOXEL, -VOXEL, VOXEL, 1])
    np.testing.assert_allclose(affine @ [*(np.array(SHAPE) - 1) / 2, 1], [0, 0, 0, 1])


def test_cerebellum_lies_low_and_posterior() -> None:
    _, rows, levels = np.nonzero(phantom(0, tumour=False).images["t1"])
    low = levels < np.quantile(levels, 0.1)
    assert rows[low].mean() > rows[~low].mean() + 3


def test_patient_at_2_mm_takes_less_than_3_seconds() -> None:
    make_phantom(0, tumour=False)  # loads the template
    start = time.process_time()
    make_phantom(1)
    assert time.process_time() - start < 3 * 2  # slack for a busy machine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (48, 48)}, "three whole numbers"),
        ({"shape": (48, 48, 47.5)}, "three whole numbers"),
        ({"voxel_size": 0}, "voxel_size"),
        ({"voxel_size": (2, 2)}, "voxel_size"),
        ({"voxel_size": float("nan")}, "voxel_size"),
        ({"shape": (20, 48, 48), "voxel_size": 2}, "60 mm"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_phantom(**{"seed": 0, **arguments})


def test_background_is_exactly_0_and_brain_at_least_1() -> None:
    images = phantom(0).images
    brain = images["t1"] > 0
    assert 1000 < brain.sum() * VOXEL**3 / 1000 < 2000  # mL
    for image in images.values():
        assert image.dtype == np.float32
        assert (image[~brain] == 0).all() and (image[brain] >= 1).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sequence", ["t1", "t1ce"])
def test_t1_shows_white_above_grey_above_csf(seed: int, sequence: str) -> None:
    white, grey, fluid = tissue_means(seed, sequence)
    assert white > 1.05 * grey > 1.5 * fluid


@pytest.mark.parametrize("seed", range(4))
def test_t2_shows_csf_above_grey_above_white(seed: int) -> None:
    white, grey, fluid = tissue_means(seed, "t2")
    assert fluid > 1.4 * grey > 1.5 * white


@pytest.mark.parametrize("seed", range(4))
def test_flair_shows_dark_csf_and_grey_slightly_above_white(seed: int) -> None:
    white, grey, fluid = tissue_means(seed, "flair")
    assert 1.3 * white > grey > white > 1.5 * fluid


def test_patients_differ_in_brain_size_and_contrast() -> None:
    volumes = [np.count_nonzero(phantom(seed, tumour=False).images["t2"]) for seed in range(8)]
    assert max(volumes) > 1.15 * min(volumes)
    ratios = [tissue_means(seed, "t2")[2] / tissue_means(seed, "t2")[0] for seed in range(4)]
    assert max(ratios) > 1.1 * min(ratios)


def test_ventricles_differ_between_patients_and_sides() -> None:
    shares = [tissue_shares(seed)["fluid"][:, 20:36, 24:32] > 0.5 for seed in range(8)]
    sizes = np.array([[np.count_nonzero(s[:24]), np.count_nonzero(s[24:])] for s in shares])
    assert sizes.sum(axis=1).max() > 1.5 * sizes.sum(axis=1).min()
    assert (np.abs(sizes[:, 0] - sizes[:, 1]) > 0.1 * sizes.sum(axis=1)).any()


def test_labels_are_those_of_brats_and_inside_the_brain() -> None:
    for seed in SEEDS:
        mask = phantom(seed).mask
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1, 2, 4}
        assert (phantom(seed).images["t1"][mask > 0] > 0).all()


def test_healthy_patient_has_an_empty_mask() -> None:
    assert not phantom(0, tumour=False).mask.any()


@cache
def ill_with_white_matter(seed: int) -> Phantom:
    return make_phantom(seed, SHAPE, VOXEL, tumour=False, white_matter_lesions=True)


def test_white_matter_lesions_are_small_many_and_on_both_sides() -> None:
    for seed in range(6):
        mask = ill_with_white_matter(seed).mask
        pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:] * VOXEL**3 / 1000
        assert set(np.unique(mask)) == {0, 2} and count >= 5
        assert np.median(sizes) < 1.0  # mL
        halves = np.count_nonzero(mask[:24]), np.count_nonzero(mask[24:])
        assert min(halves) > 0.1 * sum(halves)


def test_white_matter_lesions_are_bright_in_flair_and_change_nothing_else() -> None:
    for seed in range(4):
        lesion, image = ill_with_white_matter(seed).mask > 0, ill_with_white_matter(seed).images
        healthy = phantom(seed, tumour=False).images
        assert image["flair"][lesion].mean() > 1.15 * healthy["flair"][lesion].mean()
        assert image["t1"][lesion].mean() < healthy["t1"][lesion].mean()
        far = ndimage.distance_transform_edt(~lesion) * VOXEL > 12
        assert (image["t2"][far] == healthy["t2"][far]).mean() > 0.99


def test_a_patient_may_have_both_diseases() -> None:
    both = make_phantom(3, SHAPE, VOXEL, white_matter_lesions=True).mask
    tumour = phantom(3).mask
    np.testing.assert_array_equal(both[tumour > 0], tumour[tumour > 0])
    assert np.count_nonzero(both) > np.count_nonzero(tumour)


def mirror_difference(of: Phantom, sequence: str) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed relative intensity minus that of the other side, and where both sides are brain."""
    image = of.images[sequence] / np.median(of.images[sequence][of.images[sequence] > 0])
    both = (image > 0) & (image[::-1] > 0)
    smooth = ndimage.gaussian_filter(image, 4 / VOXEL)
    return smooth - smooth[::-1], both


def test_healthy_halves_differ_so_that_a_mirror_image_gives_no_lesion_away() -> None:
    spreads, shifts = [], []
    for seed in SEEDS:
        difference, both = mirror_difference(phantom(seed, tumour=False), "t2")
        spreads.append(difference[both].std())
        right = np.zeros_like(both)
        right[: SHAPE[0] // 2] = True
        shifts.append(abs(np.median(difference[both & right])))
    assert np.mean(spreads) > 0.16 and np.mean(shifts) > 0.055


def test_parts_of_a_tumour_are_as_bright_as_each_sequence_draws_them() -> None:
    tumours = [draw_tumour(np.random.default_rng(seed), np.zeros(3)) for seed in range(200)]
    ratios = [t.levels("t2")[2] / t.levels("flair")[2] for t in tumours if t.brightness > 0.6]
    assert np.std(ratios) > 0.05
    assert np.corrcoef(*[[t.levels(s)[2] for t in tumours] for s in ("t2", "flair")])[0, 1] > 0.5


def test_tumour_sizes_differ_more_than_fivefold() -> None:
    volumes = [lesion_ml(phantom(seed)) for seed in SEEDS]
    assert max(volumes) > 5 * min(volumes)
    ball = np.pi / 6 * np.array([32.0, 70.0]) ** 3 / 1000
    assert min(volumes) > 0.5 * ball[0] and max(volumes) < 2 * ball[1]  # two tumours at most


def test_some_tumours_enhance_and_some_do_not() -> None:
    enhancing = sum((phantom(seed).mask == 4).any() for seed in SEEDS)
    assert 0.25 * len(SEEDS) < enhancing < 0.85 * len(SEEDS)


def test_enhancing_rim_is_bright_in_t1ce_and_dark_in_t1() -> None:
    seed = max(SEEDS, key=lambda s: np.count_nonzero(phantom(s).mask == 4))
    rim = phantom(seed).mask == 4
    white = (tissue_shares(seed)["white"] > 0.85) & (phantom(seed).mask == 0)
    t1ce, t1 = phantom(seed).images["t1ce"], phantom(seed).images["t1"]
    assert t1ce[rim].mean() > 1.1 * t1ce[white].mean()
    assert t1[rim].mean() < t1[white].mean()


def test_lesion_is_brighter_in_flair_than_the_white_matter_around_it() -> None:
    contrasts = []
    for seed in SEEDS:
        lesion, image = phantom(seed).mask > 0, phantom(seed).images["flair"]
        around = ndimage.binary_dilation(lesion, iterations=4) & ~lesion
        white = image[around & (tissue_shares(seed)["white"] > 0.8)]
        contrasts.append(image[lesion].mean() / white.mean())
    assert np.mean(contrasts) > 1.2
    assert min(contrasts) < 1.2  # some are faint


def threshold_dice(sequence: str) -> float:
    """Best single threshold on rank-normalised slices, mean Dice of slices with > 200 mm2."""
    thresholds, scores = np.linspace(0.5, 0.99, 50), []
    for seed in SEEDS:
        image, lesion = phantom(seed).images[sequence], phantom(seed).mask > 0
        for level in np.flatnonzero(lesion.sum(axis=(0, 1)) * VOXEL**2 > 200):
            ranks, truth = np.zeros(SHAPE[:2]), lesion[:, :, level]
            brain = image[:, :, level] > 0
            ranks[brain] = rankdata(image[:, :, level][brain]) / brain.sum()
            found = ndimage.median_filter(ranks, 3)[..., None] > thresholds
            overlap = (found & truth[..., None]).sum(axis=(0, 1))
            scores.append(2 * overlap / (found.sum(axis=(0, 1)) + truth.sum()))
    return float(np.mean(scores, axis=0).max())


def test_t2_threshold_finds_much_less_than_a_flair_threshold() -> None:
    t2, flair = threshold_dice("t2"), threshold_dice("flair")
    assert 0.3 < t2 < flair - 0.05
    assert 0.6 < flair < 0.85


def test_random_fields_are_standard_normal_and_independent_of_the_grid() -> None:
    axis = np.arange(-90, 90, 3, dtype=np.float32)
    field = smooth_field(np.random.default_rng(0), (axis,) * 3, 9.0)
    assert field.mean() == pytest.approx(0, abs=0.05) and field.std() == pytest.approx(1, abs=0.05)
    part = smooth_field(np.random.default_rng(0), (axis[10:20], axis, axis[::2]), 9.0)
    np.testing.assert_array_equal(part, field[10:20, :, ::2])


def test_mass_effect_points_outwards_and_ends() -> None:
    tumour = draw_tumour(np.random.default_rng(0), np.zeros(3), diameter=(40.0, 40.0))
    axis = np.array([-120.0, -10.0, 0.0, 10.0, 120.0], dtype=np.float32)
    shift = push_away(tumour, (axis, np.zeros(1, np.float32), np.zeros(1, np.float32)))[0, :, 0, 0]
    assert shift[0] == shift[2] == shift[4] == 0
    assert shift[3] == -shift[1] > 0
