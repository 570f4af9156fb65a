"""Run a published model as someone does who has transformers, but not this package.

A program, started by `checks.py` in a process of its own:

    python -I stranger.py <folder or repo id> <revision or ""> <threads> <slices> <result>

Slices and result are safetensors files.
"""

import sys
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, pipeline

PACKAGE = "modeling_rasalore"
SPACING = (5.0, 1.0, 1.0)  # mm between the slices, rows and columns of a scan


class HidePackage:
    """An import finder before all others, for which this package is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"{name} is hidden")


@torch.no_grad()
def run_model(source: str, revision: str, images: list[Any]) -> dict[str, Tensor]:
    """Return the logits of `AutoModel`, and of a stage-2 model the scores of the pipeline."""
    words: dict[str, Any] = {"trust_remote_code": True, "revision": revision or "main"}
    config = AutoConfig.from_pretrained(source, **words)
    processor = AutoImageProcessor.from_pretrained(source, **words)
    model = AutoModel.from_pretrained(source, **words).eval()
    assert model.config.model_type == config.model_type
    whole = processor.view == "scan"  # then the images are one
    seen = {"spacing": SPACING} if whole else {}
    logits = model(**processor(images, return_tensors="pt", **seen)).logits
    outputs = {"logits": logits.contiguous()}
    if config.model_type == "rasalore":
        segment = pipeline("brain-anomaly-segmentation", model=source, device="cpu", **words)
        if whole:
            scores = segment(np.stack(images), **seen)["scores"]
        else:
            scores = np.stack([row["scores"] for row in segment(images, batch_size=2)])
        outputs["scores"] = torch.from_numpy(scores)
    return outputs


def main(source: str, revision: str, threads: str, slices: str, result: str) -> None:
    sys.meta_path.insert(0, HidePackage())
    torch.set_num_threads(int(threads))
    images = list(load_file(slices)["slices"].numpy())
    save_file(run_model(source, revision, images), result)
    assert PACKAGE not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
