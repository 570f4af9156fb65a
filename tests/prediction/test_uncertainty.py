"""Uncertainty maps: the spread of scores over draws of the model's own noise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.uncertainty import (
    draw_doubt,
    drawing_value_noise,
    has_value_noise,
    predict_uncertainty,
)
from modeling_rasalore.prediction.volume import predict_volume
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import Volume, read_volume

PROCESSOR = RasaloreImageProcessor(RasaloreConfig.preset("tiny").image_size)


def make_model(std: float = 0.5, kind: str = "gaussian") -> RasaloreModel:
    torch.manual_seed(0)
    config = RasaloreConfig.preset(
        "tiny", value_noise=kind, value_noise_std=std, initializer_range=0.2
    )
    return RasaloreModel(config).eval()


@pytest.fixture
def image() -> np.ndarray:
    image = np.zeros((40, 32), np.float32)
    image[6:34, 5:28] = np.random.default_rng(0).uniform(20, 200, (28, 23))
    return image


def test_it_is_a_spread_inside_the_brain_and_0_outside(image: np.ndarray) -> None:
    spread = predict_uncertainty(make_model(), PROCESSOR, image)
    assert spread.shape == image.shape
    assert spread.dtype == np.float32
    assert 0 < spread.max() <= 0.5
    assert not spread[image == 0].any()


def test_more_noise_gives_more_spread(image: np.ndarray) -> None:
    little, much = (predict_uncertainty(make_model(std), PROCESSOR, image) for std in (0.01, 1.0))
    assert little.mean() < much.mean() / 5


def test_a_seed_gives_the_same_map_and_leaves_the_random_state_alone(image: np.ndarray) -> None:
    model = make_model()
    state = torch.get_rng_state()
    first, again, other = (
        predict_uncertainty(model, PROCESSOR, image, seed=seed) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_draws_no_noise_afterwards_even_after_an_error() -> None:
    model = make_model()
    with pytest.raises(RuntimeError, match="stop"), drawing_value_noise(model):
        assert model.mask_decoder.noise.sample_in_eval
        raise RuntimeError("stop")
    assert not model.mask_decoder.noise.sample_in_eval


@pytest.mark.parametrize(("kind", "std"), [("learned", 0.1), ("none", 0.1), ("gaussian", 0.0)])
def test_a_model_without_gaussian_noise_is_refused(
    image: np.ndarray, kind: str, std: float
) -> None:
    model = make_model(std, kind)
    assert not has_value_noise(model)
    with pytest.raises(ValueError, match="draws no noise"):
        predict_uncertainty(model, PROCESSOR, image)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    data = np.zeros((32, 40, 4), np.float32)
    data[5:28, 6:34, 1:3] = np.random.default_rng(0).uniform(20, 200, (23, 28, 2))
    return read_volume(write_nifti(tmp_path / "scan.nii", data, np.diag([-1.0, -1.0, 2.0, 1.0])))


def test_a_volumes_spread_is_its_slices_and_blank_slices_cost_nothing(volume: Volume) -> None:
    model = make_model()
    plain = predict_volume(model, PROCESSOR, volume)
    options = PredictionOptions(noise_samples=4)
    prediction = predict_volume(model, PROCESSOR, volume, options)
    assert prediction.spread is not None
    assert np.array_equal(prediction.scores, plain.scores)
    spread = draw_doubt(model, PROCESSOR, volume, options, seed=3).spread
    first = predict_uncertainty(model, PROCESSOR, volume.slices[1], samples=4, seed=3)
    assert spread[1] == pytest.approx(first, abs=1e-6)
    assert not spread[[0, 3]].any()
    assert np.array_equal(prediction.spread, draw_doubt(model, PROCESSOR, volume, options).spread)


def test_the_quality_score_falls_with_the_noise(volume: Volume) -> None:
    scores = []
    for std in (1e-6, 0.3, 3.0):
        model = make_model(std)
        plain = predict_volume(model, PROCESSOR, volume)
        middle = float(np.median(plain.scores[plain.scores > 0]))
        options = PredictionOptions(threshold=middle, noise_samples=4)
        scores.append(predict_volume(model, PROCESSOR, volume, options).quality_score or 0)
    assert scores[0] > 0.99
    assert scores[0] > scores[1] > scores[2] > 0


def test_empty_masks_agree_perfectly(volume: Volume) -> None:
    model = make_model()
    options = PredictionOptions(threshold=1.0, noise_samples=2)
    assert predict_volume(model, PROCESSOR, volume, options).quality_score == 1.0


def test_one_sample_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        predict_uncertainty(make_model(), PROCESSOR, image, samples=1)
