"""The project's own models as systems: stage 1's heatmap, and any stage-2 network.

Native. Both are folders that train/stage1.py and train/stage2.py wrote.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from modeling_rasalore import DdptModel, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.prediction import predict_slices
from modeling_rasalore.pseudo_masks import SCALING, PseudoMaskRule

from .interface import GivenSystem, Image


class Stage1Heatmap(GivenSystem):
    """DDPT alone: what its pseudo-masks are cut from at 0.5.

    Args:
        folder: of train/stage1.py.
        stage2: of train/stage2.py; its run.json says how the pseudo-masks were made. "" for the
            poster's rule.
    """

    weights = "trained"

    def __init__(self, folder: Path, stage2: str = ""):
        self.model = DdptModel.from_pretrained(folder).eval()
        self.rule = PseudoMaskRule(SCALING[self.model.config.heatmap])
        if stage2:
            made = json.loads((Path(stage2) / "run.json").read_text())["pseudo_masks"]
            self.rule = PseudoMaskRule(made["scaling"], made["threshold"], made["guidance"])
        self.processor = RasaloreImageProcessor.from_pretrained(folder)
        self.seconds, self.peak_mib = training_cost(folder)

    def score(self, slices: Sequence[Image]) -> list[Image]:
        maps = []
        for start in range(0, len(slices), 32):
            batch = list(slices[start : start + 32])
            heatmaps = self.model.heatmaps(**self.processor(batch, return_tensors="pt"))
            maps += self.processor.post_process_maps(heatmaps, batch)
        return [self.rule.scores(*pair) for pair in zip(maps, slices, strict=True)]


class Stage2Network(GivenSystem):
    """RASALoRE, or the same network trained on other masks.

    Args:
        folder: of train/stage2.py.
        flips: average over mirror images, as stage 1's heatmap is over its eight turns.
    """

    weights = "trained"

    def __init__(self, folder: Path, flips: bool = False):
        self.flips = flips
        self.model = RasaloreModel.from_pretrained(folder).eval()
        self.processor = RasaloreImageProcessor.from_pretrained(folder)
        self.seconds, self.peak_mib = training_cost(folder)

    def score(self, slices: Sequence[Image]) -> list[Image]:
        return predict_slices(self.model, self.processor, slices, 16, self.flips)


def training_cost(folder: Path) -> tuple[float | None, float | None]:
    """Seconds and peak MiB of the run that wrote a folder, as its run.json states them."""
    summary = json.loads((folder / "run.json").read_text())
    return summary.get("seconds"), summary.get("peak_mib")
