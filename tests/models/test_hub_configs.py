"""Every published configuration is exactly its preset, and its processor fits its model."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from modeling_rasalore import DdptConfig, RasaloreConfig, RasaloreImageProcessor

HUB_CONFIGS = Path(__file__).parents[2] / "hub_configs"
PRESETS: dict[str, PreTrainedConfig] = {
    "rasalore": RasaloreConfig.preset("poster"),
    "rasalore-released": RasaloreConfig.preset("released"),
    "rasalore-base": RasaloreConfig.preset("base"),
    "rasalore-tiny": RasaloreConfig.preset("tiny"),
    "ddpt": DdptConfig.preset("poster"),
    "ddpt-released": DdptConfig.preset("released"),
    "ddpt-base": DdptConfig.preset("base"),
    "ddpt-tiny": DdptConfig.preset("tiny"),
}
EVERY_CONFIG = pytest.mark.parametrize("name", PRESETS)


def load_processor(name: str) -> RasaloreImageProcessor:
    return AutoImageProcessor.from_pretrained(HUB_CONFIGS / name)


def test_every_folder_of_a_model_is_known_here() -> None:
    assert {path.parent.name for path in HUB_CONFIGS.glob("*/config.json")} == set(PRESETS)


@EVERY_CONFIG
def test_a_configuration_file_loads_to_its_preset(name: str) -> None:
    loaded, preset = AutoConfig.from_pretrained(HUB_CONFIGS / name), PRESETS[name]
    assert type(loaded) is type(preset)
    loaded.name_or_path = ""
    assert loaded.to_dict() == preset.to_dict()


@EVERY_CONFIG
def test_a_configuration_file_writes_out_every_field_of_its_own(name: str) -> None:
    written = json.loads((HUB_CONFIGS / name / "config.json").read_text("utf-8"))
    assert written.keys() == {"model_type", *type(PRESETS[name]).__annotations__}


@EVERY_CONFIG
def test_a_processor_file_writes_out_known_fields_only(name: str) -> None:
    written = json.loads((HUB_CONFIGS / name / "preprocessor_config.json").read_text("utf-8"))
    assert written.pop("image_processor_type") == "RasaloreImageProcessor"
    known = vars(RasaloreImageProcessor()).keys()
    assert written.keys() <= known
    assert {"size", "num_channels", "gamma", "crop_to_brain", "rescale_factor"} <= written.keys()


@EVERY_CONFIG
def test_a_processor_makes_what_its_model_takes(name: str) -> None:
    config: Any = PRESETS[name]
    takes = config.clip_config.vision_config if isinstance(config, DdptConfig) else config
    processor = load_processor(name)
    assert (processor.size, processor.num_channels) == (takes.image_size, takes.num_channels)
    for statistic in (processor.image_mean, processor.image_std):
        assert statistic is None or len(statistic) == takes.num_channels


@pytest.mark.parametrize(
    ("name", "gamma", "rescale_factor"),
    [("rasalore", 2, 1), ("rasalore-released", 2, 255), ("ddpt", 1, 1), ("ddpt-released", 1, 1)],
)
def test_slices_are_scaled_as_the_method_asks(
    name: str, gamma: float, rescale_factor: float
) -> None:
    processor = load_processor(name)
    assert (processor.gamma, processor.rescale_factor) == (gamma, rescale_factor)
