"""Check an assembled folder: a model runs without this package, a data set streams whole."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..prediction.volume import predict_slices
from .stranger import SPACING

STRANGER = Path(__file__).with_name("stranger.py")


@torch.no_grad()
def check_model(model: Any, processor: Any, folder: Path) -> list[str]:
    """Return which outputs of `folder` are `model`'s in a fresh process without this package.

    Raises:
        ValueError: logits are not finite, the folder does not load, or an output differs.
    """
    images = probe_slices()
    views = list(processor.see(images, SPACING)) if processor.see else None
    inputs = processor(list(images), views=views, return_tensors="pt")
    ours = {"logits": model(**inputs).logits}
    if not ours["logits"].isfinite().all():
        raise ValueError("the model's logits are not finite, so its training went astray.")
    if model.config.model_type == "rasalore":
        scores = predict_slices(model, processor, list(images), views=views)
        ours["scores"] = torch.from_numpy(np.stack(scores))
    theirs = outputs_without_package(folder.resolve(), images)
    for name, expected in ours.items():
        if not torch.allclose(expected, theirs[name], rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"without the package the model's {name} differ by "
                f"{(expected - theirs[name]).abs().max():.2g}; nothing was uploaded."
            )
    return list(ours)


def probe_slices() -> np.ndarray:
    """Return slices (2, 70, 60) float32 of noise in [0, 1), above a border of background."""
    slices = np.random.default_rng(0).random((2, 70, 60), dtype=np.float32)
    slices[:, :10] = 0
    return slices


def outputs_without_package(
    source: str | Path,
    images: np.ndarray,
    revision: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Return what a fresh process gets that knows transformers and `source`, but not this package.

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
            [sys.executable, "-I", str(STRANGER), *words, str(result)],
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


def check_data(folder: Path, counts: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError unless `datasets` streams every slice of every split from `folder`.

    Args:
        counts: split and slices of each, as `write_split_files` returns them.
    """
    from datasets import load_dataset

    for row in counts:
        stream = load_dataset(str(folder), split=row["split"], streaming=True)
        if sum(1 for _ in stream.select_columns("label")) != row["slices"]:
            raise ValueError(f"{row['split']} does not read back whole; nothing was uploaded.")
