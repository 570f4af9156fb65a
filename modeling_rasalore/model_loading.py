"""A model and its image processor, from a folder or the Hub, complete and on a device."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel

from .modeling_rasalore import RasaloreModel
from .registration import register_models


def load_model(name: str, revision: str = "main", device: str = "auto") -> tuple[Any, Any]:
    """Return model and image processor of a folder or Hub repository, on the device.

    Args:
        name: a folder, or a repo id such as "owner/name".
        revision: commit, tag or branch of a repo id.
        device: "cpu", "cuda", "cuda:1", "mps", ...; "auto" takes an accelerator where there is one.

    Raises:
        ValueError: no folder and no repo id, no stage-2 model, or weights that lack a tensor.
    """
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"--model needs an existing folder or a repo id (owner/name), got {name}.")
    register_models()
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        device = accelerator.type if accelerator else "cpu"
    loaded = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
    model, report = loaded[0], loaded[1]
    if not isinstance(loaded[0], RasaloreModel):
        raise ValueError(f"--model needs a RASALoRE model (stage 2), got {type(model).__name__}.")
    if report["missing_keys"]:  # the library would go on with random numbers in their place
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"the weights of {name} are incomplete: {missing} are missing.")
    return model.to(device).eval(), AutoImageProcessor.from_pretrained(name, revision=revision)
