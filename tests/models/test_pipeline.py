"""The pipeline: every kind of input, one answer per slice; a saved folder works by itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lean_environment import lean_python
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from modeling_rasalore import (
    BrainAnomalyPipeline,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)
from modeling_rasalore.models.pipeline_rasalore import TASK, soft_dice_confidence
from modeling_rasalore.packaged import packaged_model, packaged_sequences
from modeling_rasalore.prediction.volume import predict_slices

# What someone runs who has torch, transformers and numpy; arguments: number of threads, folder,
# where to write.
PROGRAM = """
import sys
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import pipeline

torch.set_num_threads(int(sys.argv[1]))
folder, out = sys.argv[2:]
pipe = pipeline("brain-anomaly-segmentation", model=folder, trust_remote_code=True)
slices = list(np.load(f"{folder}/slices.npy"))
scores = np.stack([found["scores"] for found in pipe(slices, batch_size=2)])
inferred = pipeline(model=folder, trust_remote_code=True)(f"{folder}/slice.npy")
assert type(inferred["mask"]) is np.ndarray
save_file({"scores": torch.from_numpy(scores)}, out)
"""


def brain(seed: int, shape: tuple[int, int] = (40, 32)) -> np.ndarray:
    """A slice with a brain of random tissue in a background of 0."""
    image = np.zeros(shape, np.float32)
    image[6:34, 5:28] = np.random.default_rng(seed).uniform(20, 200, (28, 23))
    return image


SLICES = [brain(0), brain(1, (40, 30)), np.zeros((24, 24), np.float32)]


@pytest.fixture(scope="module")
def pipe() -> BrainAnomalyPipeline:
    torch.manual_seed(0)
    sizes = {"image_size": 48, "base_channels": 8, "grid_size": 12, "refiner_grid": 12}
    # Scores on both sides of 0.5.
    config = RasaloreConfig.preset("tiny", initializer_range=0.2, **sizes)
    processor = RasaloreImageProcessor(config.image_size)
    return pipeline(TASK, model=RasaloreModel(config), image_processor=processor, device="cpu")


def test_scores_are_those_of_predict_slices(pipe: BrainAnomalyPipeline) -> None:
    expected = predict_slices(pipe.model, pipe.image_processor, SLICES)
    for found, scores in zip(pipe(SLICES), expected, strict=True):
        assert found["scores"].dtype == np.float32
        assert np.allclose(found["scores"], scores, atol=1e-6)


def test_masks_and_labels_follow_the_threshold(pipe: BrainAnomalyPipeline) -> None:
    found = pipe(SLICES[0])
    assert found["label"] == "anomaly"
    assert found["mask"].dtype == np.uint8
    assert np.array_equal(found["mask"], found["scores"] > 0.5)
    nothing = pipe(SLICES[0], threshold=1.0)
    assert not nothing["mask"].any()
    assert (nothing["label"], nothing["quality"]) == ("no anomaly found", None)


def test_a_slice_without_brain_has_no_scores_and_no_anomaly(pipe: BrainAnomalyPipeline) -> None:
    found = pipe(SLICES[2], threshold=0.0)
    assert not found["scores"].any()
    assert found["label"] == "no anomaly found"


def test_batches_of_slices_of_different_sizes_give_what_single_slices_give(
    pipe: BrainAnomalyPipeline,
) -> None:
    for batch_size in (2, 3):
        for found, image in zip(pipe(SLICES, batch_size=batch_size), SLICES, strict=True):
            assert found["scores"].shape == image.shape
            assert np.allclose(found["scores"], pipe(image)["scores"], atol=1e-5)


def test_every_kind_of_input_gives_the_same_scores(
    pipe: BrainAnomalyPipeline, tmp_path: Path
) -> None:
    image = SLICES[0].astype(np.uint8)
    grey = Image.fromarray(image)
    grey.save(tmp_path / "slice.png")
    grey.convert("RGB").save(tmp_path / "colour.png")
    np.save(tmp_path / "slice.npy", image)
    inputs = [
        *(image[None], torch.from_numpy(image), grey, grey.convert("RGBA")),
        *(Image.fromarray(image.astype(np.uint16)), Image.fromarray(image.astype(np.float32))),
        *(str(tmp_path / "slice.png"), tmp_path / "colour.png", tmp_path / "slice.npy"),
    ]
    expected = pipe(image)["scores"]
    for given in inputs:
        assert np.array_equal(pipe(given)["scores"], expected)


def test_a_generator_is_read_slice_by_slice(pipe: BrainAnomalyPipeline) -> None:
    assert len([*pipe(image for image in SLICES)]) == len(SLICES)


def test_the_quality_of_a_mask_by_hand() -> None:
    scores = np.array([[1.0, 0.8], [0.2, 0.0]], np.float32)
    # 2 (1 + 0.8) / ((1 + 0.8 + 0.2) + 2)
    assert soft_dice_confidence(scores, scores > 0.5) == pytest.approx(0.9)
    assert soft_dice_confidence(np.ones((2, 2), np.float32), np.ones((2, 2))) == 1
    assert soft_dice_confidence(scores, scores > 1) is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("https://example.org/slice.png", "existing file"),
        ("absent.png", "existing file"),
        (3, "an array, a PIL image or a path"),
        (np.zeros((2, 3, 4, 5)), "must be"),
        (np.full((4, 4), np.nan), "finite"),
    ],
)
def test_a_bad_slice_is_refused_in_one_sentence(
    pipe: BrainAnomalyPipeline, given: object, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        pipe(given)


@pytest.mark.parametrize(
    ("name", "complaint"), [("scan.nii.gz", "a volume"), ("notes.txt", "cannot be read")]
)
def test_a_file_of_another_kind_is_refused(
    pipe: BrainAnomalyPipeline, tmp_path: Path, name: str, complaint: str
) -> None:
    (tmp_path / name).write_text("no slice")
    with pytest.raises(ValueError, match=complaint):
        pipe(tmp_path / name)


def test_a_threshold_outside_0_to_1_is_refused(pipe: BrainAnomalyPipeline) -> None:
    with pytest.raises(ValueError, match="threshold must lie in"):
        pipe(SLICES[0], threshold=1.5)


def test_without_a_model_that_of_the_package_is_taken() -> None:
    sequence, *_ = packaged_sequences()
    own: BrainAnomalyPipeline = pipeline(TASK)
    assert own.model.config.modality == sequence
    own_weights = load_file(packaged_model(sequence) / "model.safetensors")
    assert all(torch.equal(own.model.state_dict()[k], w.float()) for k, w in own_weights.items())


def test_a_model_in_training_mode_is_put_into_evaluation_mode() -> None:
    config = RasaloreConfig.preset("tiny")
    model = RasaloreModel(config).train()
    BrainAnomalyPipeline(model=model, image_processor=RasaloreImageProcessor(config.image_size))
    assert not model.training


def test_a_saved_pipeline_gives_the_same_scores_with_torch_transformers_and_numpy_alone(
    pipe: BrainAnomalyPipeline, tmp_path: Path
) -> None:
    folder, out = tmp_path / "saved", tmp_path / "scores.safetensors"
    pipe.save_pretrained(folder)
    slices = np.stack([brain(0), brain(1), brain(2)])
    np.save(folder / "slices.npy", slices)
    np.save(folder / "slice.npy", slices[0])
    done = subprocess.run(
        [
            lean_python(tmp_path / "lean"),
            "-I",
            "-c",
            PROGRAM,
            str(torch.get_num_threads()),
            folder,
            out,
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = np.stack([found["scores"] for found in pipe(list(slices), batch_size=2)])
    assert np.array_equal(load_file(out)["scores"].numpy(), expected)
    assert (folder / "pipeline_rasalore.py").read_bytes() == Path(
        sys.modules[BrainAnomalyPipeline.__module__].__file__ or ""
    ).read_bytes()


def test_a_folder_saved_by_training_works_where_the_package_is_installed(
    pipe: BrainAnomalyPipeline, tmp_path: Path
) -> None:
    config = RasaloreConfig.preset("tiny")
    RasaloreModel(config).save_pretrained(tmp_path)
    RasaloreImageProcessor(config.image_size).save_pretrained(tmp_path)
    assert "scores" in pipeline(TASK, model=str(tmp_path), device="cpu")(SLICES[0])
