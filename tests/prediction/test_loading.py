"""The network that only scores is the model that was saved, in everything but what it imports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_rasalore import make_input, make_model, small_config

from modeling_rasalore import DdptConfig, DdptModel, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.models.network_rasalore import RasaloreNetwork
from modeling_rasalore.prediction.loading import describe_model, load_model, load_network

VARIANTS: list[dict[str, Any]] = [
    {},
    {"encoder": "pyramid", "num_channels": 4, "temperature": 2.5},
    {"attention_head_dim": 16, "value_noise": "learned", "location_embeddings": "learned"},
]


def save(folder: Path, **fields: Any) -> str:
    model = make_model(**fields)
    model.save_pretrained(folder)
    RasaloreImageProcessor(16, model.config.num_channels).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("fields", VARIANTS)
@torch.no_grad()
def test_it_scores_as_the_model_does_to_the_last_bit(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    folder = save(tmp_path / "saved", **fields)
    (network, processor), (model, usual) = load_network(folder), load_model(folder)
    assert type(network) is RasaloreNetwork and type(model) is RasaloreModel
    assert list(network.state_dict()) == list(model.state_dict())
    pixel_values = make_input(model.config)
    theirs, ours = model(pixel_values), network(pixel_values)
    assert torch.equal(ours.logits, theirs.logits) and theirs.logits.std() > 0
    assert torch.equal(ours.point_activations, theirs.point_activations)
    assert describe_model(network) == describe_model(model)
    assert processor.to_dict() == usual.to_dict()
    assert not network.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_keep_their_float_type(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(folder)
    make_model().to(dtype).save_pretrained(folder)
    kinds = [
        {parameter.dtype for parameter in load(str(folder))[0].parameters()}
        for load in (load_network, load_model)
    ]
    assert kinds == [{dtype}, {dtype}]


def test_another_kind_of_model_is_refused_by_both(tmp_path: Path) -> None:
    DdptModel(DdptConfig.preset("tiny")).save_pretrained(tmp_path)
    RasaloreImageProcessor(16).save_pretrained(tmp_path)
    for load in (load_network, load_model):
        with pytest.raises(ValueError, match=r"needs a RASALoRE model \(stage 2\), got DdptModel"):
            load(str(tmp_path))


def test_a_missing_tensor_is_named_by_both(tmp_path: Path) -> None:
    folder, model = save(tmp_path / "saved"), make_model()
    state = {k: v for k, v in model.state_dict().items() if k != "refiner.skip.bias"}
    model.save_pretrained(folder, state_dict=state)
    for load in (load_network, load_model):
        with pytest.raises(ValueError, match=r"are incomplete: refiner\.skip\.bias are missing"):
            load(folder)


def test_weights_of_another_size_are_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved")
    small_config(grid_size=4, architectures=["RasaloreModel"]).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"do not fit its config\.json: .* \(64, 16\), not \(16,"):
        load_network(folder)
