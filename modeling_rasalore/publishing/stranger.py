"""Load a published model as a stranger does: in a fresh process that lacks this package."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# What someone without the package runs. Words: folder or repo id, revision or "", threads, a file
# with the slices, a file for the result.
STRANGER = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_rasalore":
            raise ModuleNotFoundError(f"{name} is hidden")

sys.meta_path.insert(0, Hide())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

source, revision, threads, slices, result = sys.argv[1:]
torch.set_num_threads(int(threads))
words = {"trust_remote_code": True, "revision": revision or "main"}
config = AutoConfig.from_pretrained(source, **words)
processor = AutoImageProcessor.from_pretrained(source, **words)
model = AutoModel.from_pretrained(source, **words).eval()
assert model.config.model_type == config.model_type
images = list(load_file(slices)["slices"].numpy())
with torch.no_grad():
    logits = model(**processor(images, return_tensors="pt")).logits
outputs = {"logits": logits.contiguous()}
if config.model_type == "rasalore":
    segment = pipeline("brain-anomaly-segmentation", model=source, device="cpu", **words)
    scores = [torch.from_numpy(found["scores"]) for found in segment(images, batch_size=2)]
    outputs["scores"] = torch.stack(scores)
save_file(outputs, result)
assert "modeling_rasalore" not in sys.modules
"""


def outputs_without_package(
    source: str | Path,
    images: np.ndarray,
    revision: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """What a fresh process gets that knows transformers and `source`, but not this package.

    `logits` of `AutoModel`; of a stage-2 model also `scores` (B, H, W) of the pipeline.

    Args:
        source: folder or repo id of a model.
        images: slices (B, H, W) float32.
        revision: of a repo id.
        environment: variables that the process sees beside this one's, such as HF_HUB_OFFLINE.

    Raises:
        ValueError: it could not load or run the model; the last line it printed is quoted.
    """
    with TemporaryDirectory() as scratch:
        slices, result = Path(scratch, "slices.safetensors"), Path(scratch, "result.safetensors")
        save_file({"slices": torch.from_numpy(images)}, slices)
        words = [str(source), revision or "", str(torch.get_num_threads()), str(slices)]
        done = subprocess.run(
            [sys.executable, "-I", "-c", STRANGER, *words, str(result)],
            cwd=scratch,
            # transformers copies remote code there before it runs it
            env={**os.environ, "HF_MODULES_CACHE": scratch, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{source} does not load where rasalore is not installed: {reason}")
        return load_file(result)
