"""A model that sees whole scans: every way of asking it gives the same scores."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.models.pipeline_rasalore import BrainAnomalyPipeline
from modeling_rasalore.prediction.options import PredictionOptions
from modeling_rasalore.prediction.uncertainty import predict_uncertainty
from modeling_rasalore.prediction.volume import predict_slices, predict_volume
from modeling_rasalore.publishing.checks import check_model
from modeling_rasalore.scans.volume_writing import write_nifti
from modeling_rasalore.scans.volumes import Volume, read_volume

SPACING = (6.0, 1.5, 1.5)


@pytest.fixture(scope="module")
def network() -> tuple[RasaloreModel, RasaloreImageProcessor]:
    torch.manual_seed(0)
    config = RasaloreConfig.preset("base", image_size=32, base_channels=4, initializer_range=0.3)
    return RasaloreModel(config).eval(), RasaloreImageProcessor(32, 4, view="scan")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    places = np.indices((48, 56, 9)).astype(np.float32)
    centre = np.array([20, 28, 4])[:, None, None, None]
    radii = np.array([24, 24, 6])[:, None, None, None]
    inside = (((places - centre) / radii) ** 2).sum(0) < 1  # cut by an edge of the picture
    voxels = np.where(inside, np.random.default_rng(0).uniform(50, 150, inside.shape), 0)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_nifti(path, voxels.astype(np.float32), np.diag([*SPACING[:0:-1], SPACING[0], 1]))
    return read_volume(path)


def test_scan_slices_and_pipeline_agree(
    network: tuple[RasaloreModel, RasaloreImageProcessor], volume: Volume
) -> None:
    model, processor = network
    expected = predict_volume(model, processor, volume).scores
    assert expected.max() > 0 and not expected[volume.slices == 0].any()
    views = list(processor.see_scan(volume.slices, volume.spacing))
    slices = predict_slices(model, processor, list(volume.slices), views=views)
    assert np.array_equal(np.stack(slices), expected)
    order = [5, 2]
    some = predict_slices(
        model, processor, [volume.slices[i] for i in order], views=[views[i] for i in order]
    )
    np.testing.assert_allclose(np.stack(some), expected[order], atol=1e-5)
    pipe = BrainAnomalyPipeline(model=model, image_processor=processor, device="cpu")
    found = pipe(volume.slices, spacing=volume.spacing, threshold=0.4)
    np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
    assert np.array_equal(found["mask"], found["scores"] > 0.4)
    (again,) = pipe([volume.slices], spacing=volume.spacing)
    assert np.array_equal(again["scores"], found["scores"])


def test_a_scan_twice_as_bright_has_the_same_scores(
    network: tuple[RasaloreModel, RasaloreImageProcessor], volume: Volume, tmp_path: Path
) -> None:
    voxels = (volume.slices * np.float32(2)).transpose(2, 1, 0)
    write_nifti(tmp_path / "x.nii", voxels, np.diag([-1.5, -1.5, 6, 1]))
    first, second = (
        predict_volume(*network, scan).scores for scan in (volume, read_volume(tmp_path / "x.nii"))
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_slice_without_its_scan_is_refused(
    network: tuple[RasaloreModel, RasaloreImageProcessor], volume: Volume
) -> None:
    with pytest.raises(ValueError, match="sees a slice as part of its scan"):
        predict_slices(*network, list(volume.slices))
    model, processor = network
    pipe = BrainAnomalyPipeline(model=model, image_processor=processor, device="cpu")
    with pytest.raises(ValueError, match=r"sees whole scans: pass an array \(S, H, W\)"):
        pipe(volume.slices[4])


def test_noise_is_drawn_for_a_slice_with_its_scan(
    network: tuple[RasaloreModel, RasaloreImageProcessor], volume: Volume
) -> None:
    model, processor = network
    view = processor.see_scan(volume.slices, volume.spacing)[4]
    spread = predict_uncertainty(model, processor, volume.slices[4], samples=3, view=view)
    assert spread.any() and not spread[volume.slices[4] == 0].any()
    drawn = predict_volume(model, processor, volume, PredictionOptions(noise_samples=3))
    assert drawn.spread is not None and drawn.spread[4].any()


def test_a_saved_folder_gives_the_same_scores_without_the_package(
    network: tuple[RasaloreModel, RasaloreImageProcessor], tmp_path: Path
) -> None:
    model, processor = network
    BrainAnomalyPipeline(model=model, image_processor=processor).save_pretrained(tmp_path)
    assert check_model(model, processor, tmp_path) == ["logits", "scores"]
