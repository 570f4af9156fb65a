"""A saved folder stands on its own: it loads where only torch, transformers and numpy are."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from lean_environment import lean_python
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from modeling_rasalore import (
    DdptConfig,
    DdptModel,
    RasaloreConfig,
    RasaloreImageProcessor,
    RasaloreModel,
)

# What someone runs who has the Hub ring's needs; arguments: number of threads, then the folders.
PROGRAM = """
import sys
from importlib.util import find_spec

absent = ["modeling_rasalore", "nibabel", "scipy", "datasets", "PIL"]
assert not any(find_spec(name) for name in absent)
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

try:
    transformers.AutoImageProcessor.from_pretrained
except ImportError as error:
    open("refusal.txt", "w").write(str(error))

torch.set_num_threads(int(sys.argv[1]))
for folder in sys.argv[2:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert model.config.model_type == config.model_type
    image = load_file(f"{folder}/slices.safetensors")["slices"]
    seen = {"spacing": (5, 1, 1)} if processor.view == "scan" else {}
    inputs = processor(list(image.numpy()), return_tensors="pt", **seen)
    with torch.no_grad():
        result = {"pixel_values": inputs.pixel_values, "logits": model(**inputs).logits}
    if config.model_type == "rasalore":
        result["stored_locations"] = model.location_embeddings.table
        result["seeded_locations"] = model.location_embeddings.make_table()
    else:
        result["heatmaps"] = model.heatmaps(**inputs)
    save_file(result, f"{folder}/result.safetensors")
"""
SLICES = np.random.default_rng(0).random((2, 70, 60), dtype=np.float32)
Result = dict[str, Tensor]


def save(model: PreTrainedModel, processor: RasaloreImageProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file({"slices": torch.from_numpy(SLICES)}, folder / "slices.safetensors")
    return folder


@pytest.fixture(scope="module")
def stage2() -> tuple[RasaloreModel, RasaloreImageProcessor]:
    config = RasaloreConfig.preset("tiny")
    processor = RasaloreImageProcessor(config.image_size, config.num_channels)
    return RasaloreModel(config).eval(), processor


def base() -> tuple[RasaloreModel, RasaloreImageProcessor]:
    """The preset that sees whole scans, smaller and always with the same weights."""
    torch.manual_seed(0)
    config = RasaloreConfig.preset("base", image_size=32, base_channels=4)
    return RasaloreModel(config).eval(), RasaloreImageProcessor(32, 4, view="scan")


@pytest.fixture(scope="module")
def stage1() -> tuple[DdptModel, RasaloreImageProcessor]:
    config = DdptConfig.preset("tiny")
    vision = config.clip_config.vision_config
    channels = vision.num_channels
    processor = RasaloreImageProcessor(
        vision.image_size,
        channels,
        gamma=1,
        image_mean=[0.3] * channels,
        image_std=[0.2] * channels,
    )
    return DdptModel(config).eval(), processor


@pytest.fixture(scope="module")
def elsewhere(
    stage1: tuple[DdptModel, RasaloreImageProcessor],
    stage2: tuple[RasaloreModel, RasaloreImageProcessor],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Folders of both saved models, after a process in a lean environment has used them."""
    root = tmp_path_factory.mktemp("saved")
    folders = {
        "stage1": save(*stage1, root / "ddpt"),
        "stage2": save(*stage2, root / "rasalore"),
        "base": save(*base(), root / "base"),
    }
    python = lean_python(root / "lean")
    arguments = [str(torch.get_num_threads()), *map(str, folders.values())]
    done = subprocess.run(
        [python, "-I", "-c", PROGRAM, *arguments],
        cwd=root,
        env={**os.environ, "HF_HOME": str(root / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folders


def test_only_the_usual_name_of_the_auto_class_asks_for_pillow(elsewhere: dict[str, Path]) -> None:
    # Whatever the class of the processor. Once this fails, README, SECURITY and the card can be
    # shorter, and the program above can import AutoImageProcessor as everyone does.
    refusal = elsewhere["stage2"].with_name("refusal.txt").read_text()
    assert "AutoImageProcessor requires the PIL library" in refusal


def results(folder: Path) -> Result:
    return load_file(folder / "result.safetensors")


@torch.no_grad()
def test_stage_2_gives_the_same_logits_without_the_package(
    stage2: tuple[RasaloreModel, RasaloreImageProcessor], elsewhere: dict[str, Path]
) -> None:
    model, processor = stage2
    theirs, inputs = results(elsewhere["stage2"]), processor(list(SLICES), return_tensors="pt")
    assert torch.equal(theirs["pixel_values"], inputs.pixel_values)
    assert torch.equal(theirs["logits"], model(**inputs).logits)


@torch.no_grad()
def test_a_scan_is_seen_the_same_without_the_package(elsewhere: dict[str, Path]) -> None:
    model, processor = base()
    theirs = results(elsewhere["base"])
    inputs = processor(SLICES, spacing=(5, 1, 1), return_tensors="pt")
    assert torch.equal(theirs["pixel_values"], inputs.pixel_values)
    assert torch.equal(theirs["logits"], model(**inputs).logits)


def test_another_process_makes_and_reads_the_same_location_embeddings(
    stage2: tuple[RasaloreModel, RasaloreImageProcessor], elsewhere: dict[str, Path]
) -> None:
    theirs, table = results(elsewhere["stage2"]), stage2[0].location_embeddings.table
    assert torch.equal(theirs["stored_locations"], table)
    assert torch.equal(theirs["seeded_locations"], table)


@torch.no_grad()
def test_stage_1_gives_the_same_logits_and_heatmaps_without_the_package(
    stage1: tuple[DdptModel, RasaloreImageProcessor], elsewhere: dict[str, Path]
) -> None:
    model, processor = stage1
    theirs, inputs = results(elsewhere["stage1"]), processor(list(SLICES), return_tensors="pt")
    assert torch.equal(theirs["pixel_values"], inputs.pixel_values)
    assert torch.equal(theirs["logits"], model(**inputs).logits)
    assert torch.equal(theirs["heatmaps"], model.heatmaps(**inputs))


def test_a_saved_folder_holds_the_code_of_its_own_model_only(elsewhere: dict[str, Path]) -> None:
    code = {name: {p.stem for p in folder.glob("*.py")} for name, folder in elsewhere.items()}
    processor = {"image_processing_rasalore", "scan_view_rasalore"}
    assert code["stage2"] == processor | {
        "configuration_rasalore",
        "encoder_rasalore",
        "loss_rasalore",
        "modeling_rasalore",
        "network_rasalore",
    }
    assert code["stage1"] == processor | {
        "configuration_ddpt",
        "configuration_rasalore",
        "heatmaps_ddpt",
        "modeling_ddpt",
        "prompts_ddpt",
    }


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_weights_are_one_safetensors_file(stage: str, elsewhere: dict[str, Path]) -> None:
    names = {path.name for path in elsewhere[stage].glob("*model*") if path.suffix != ".py"}
    assert names == {"model.safetensors"}
