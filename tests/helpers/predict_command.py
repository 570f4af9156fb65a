"""Call `rasalore predict` as a function, and save models for it."""

from collections.abc import Sequence
from pathlib import Path

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.cli import main


def predict(*scans: Path | str, model: Path, out: Path, options: Sequence[str] = ()) -> int:
    """Return the exit code of `rasalore predict`."""
    return main(["predict", *map(str, scans), "--model", str(model), "--out", str(out), *options])


def save_tiny_model(folder: Path, modality: str | None = None) -> Path:
    """Return `folder`, holding a tiny model with random weights, of one sequence or of any."""
    config = RasaloreConfig.preset("tiny", modality=modality)
    RasaloreModel(config).save_pretrained(folder)
    RasaloreImageProcessor(size=config.image_size).save_pretrained(folder)
    return folder
