"""Load a model and its image processor, from a folder or the Hub, complete and on a device."""

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

from ..files import first_line
from ..models import RasaloreModel
from ..packaged import WEIGHTS, packaged_model
from ..remote_files import require_model_source, without_waiting_for_hub


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
    name = str(packaged_model(modality)) if name is None else name
    require_model_source(name)
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    with without_waiting_for_hub(name), without_progress_bars():
        try:
            loaded = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
            model, report = loaded[0], loaded[1]
            refuse_unfit(name, model, report["missing_keys"])
            processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"--model {name} is incomplete: it needs config.json, model.safetensors and "
                f"preprocessor_config.json; {first_line(error)}"
            ) from error
    return model.to(device).eval(), processor


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


def refuse_unfit(name: str, model: Any, missing: Collection[str]) -> None:
    """Raise ValueError for another kind of model, and for weights that lack tensors."""
    if not isinstance(model, RasaloreModel):
        raise ValueError(f"--model needs a RASALoRE model (stage 2), got {type(model).__name__}.")
    if missing:  # the library would go on with random numbers in their place
        names = ", ".join(sorted(missing)[:3])
        raise ValueError(f"the weights of {name} are incomplete: {names} are missing.")


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
