"""Load a model and its image processor, from a folder or the Hub, complete and on a device."""

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file, logging

from ..files import first_line
from ..models.configuration_rasalore import RasaloreConfig
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.network_rasalore import RasaloreNetwork
from ..packaged import WEIGHTS, packaged_model
from ..remote_files import read_model_config, require_model_source, without_waiting_for_hub


def load_model(
    name: str | None = None,
    revision: str = "main",
    device: str = "auto",
    *,
    modality: str | None = None,
) -> tuple[Any, Any]:
    """Return model and image processor of a folder or Hub repository, on the device.

    Args:
        name: a folder, or a repo id such as "owner/name"; None: the package's own.
        revision: commit, tag or branch of a repo id.
        modality: sequence that the package's own model reads; None: that of `packaged_model`.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" takes an accelerator where there is one.

    Raises:
        ValueError: no folder and no repo id, no stage-2 model, weights that lack a tensor, or a
            package whose own weights are missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoModel

    from ..models import register

    register()
    name = str(packaged_model(modality)) if name is None else name
    with complete_files(name):
        loaded = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
        model, report = loaded[0], loaded[1]
        refuse_other_kind(type(model).__name__)
        refuse_missing(name, report["missing_keys"])
        processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    return model.to(find_device(device)).eval(), processor


def load_network(
    name: str, revision: str = "main", device: str = "auto"
) -> tuple[RasaloreNetwork, RasaloreImageProcessor]:
    """Return network and image processor for scoring alone, in half the time of `load_model`.

    Args:
        name, revision, device: as for `load_model`.

    Raises:
        ValueError: as `load_model`.
    """
    with complete_files(name):
        kinds = read_model_config(name, revision).get("architectures")
        refuse_other_kind(*(kinds or ["one of an unknown kind"]))
        config = RasaloreConfig.from_pretrained(name, revision=revision)
        config.name_or_path = name
        network = RasaloreNetwork(config).to(config.dtype or torch.float32)
        weights = load_file(str(cached_file(name, "model.safetensors", revision=revision)))
        fill(network, weights, name)
        processor = RasaloreImageProcessor.from_pretrained(name, revision=revision)
    return network.to(find_device(device)).eval(), processor


def fill(network: RasaloreNetwork, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Give a network its weights; ValueError where they lack a tensor or one has another shape."""
    own = network.state_dict()
    refuse_missing(name, own.keys() - weights.keys())
    if misfits := [key for key, tensor in own.items() if tensor.shape != weights[key].shape]:
        raise ValueError(
            f"the weights of {name} do not fit its config.json: {misfits[0]} has the shape "
            f"{tuple(weights[misfits[0]].shape)}, not {tuple(own[misfits[0]].shape)}; take both "
            "files from one training."
        )
    network.load_state_dict({key: weights[key] for key in own})


@contextmanager
def complete_files(name: str) -> Iterator[None]:
    """Load a model's files in silence; a ValueError tells of one that lacks or is damaged."""
    require_model_source(name)
    with without_waiting_for_hub(name), without_progress_bars():
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"--model {name} is incomplete: it needs config.json, model.safetensors and "
                f"preprocessor_config.json; {first_line(error)}"
            ) from error


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep the bars of libraries away from the lines that a user reads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def refuse_other_kind(kind: str) -> None:
    """Raise ValueError for the name of another model's class."""
    if kind != "RasaloreModel":
        raise ValueError(f"--model needs a RASALoRE model (stage 2), got {kind}.")


def refuse_missing(name: str, missing: Collection[str]) -> None:
    """Raise ValueError for weights that lack tensors: random numbers would take their place."""
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise ValueError(f"the weights of {name} are incomplete: {names} are missing.")


def find_device(device: str) -> str:
    """Return the device; for "auto" an accelerator, where there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"--device must be auto, cpu or an accelerator of this machine, got {device}."
            ) from error
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def pick_device(device: str) -> str:
    """Return the device; for "auto" in a launch of several processes, each one's own GPU."""
    if device == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def name_folder(folder: Path) -> str:
    """Return what people call a model's folder: its name, and of the package's own its family's."""
    return f"{WEIGHTS.name}/{folder.name}" if folder.parent == WEIGHTS else folder.name


def describe_model(model: Any) -> dict[str, str | None]:
    """Return name (repo id or folder name), Hub revision, MRI sequence and the weights' SHA-256.

    Revision and sequence are None where they are not known. The hash covers names and values of
    all tensors, in the order of their names.
    """
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = getattr(model, "config", None)
    return {
        "name": name_folder(Path(name)) if Path(name).exists() else name,
        "revision": getattr(config, "_commit_hash", None),
        "modality": getattr(config, "modality", None),
        "weights_sha256": digest.hexdigest(),
    }
