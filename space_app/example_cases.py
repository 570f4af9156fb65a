"""Open the example cases of `examples/`: scan, truth and, made by the model at hand, its scores."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from analysis import Analysis, Analyst, Tell, say_nothing
from model_choice import Models
from scan_reading import read_scan

from modeling_rasalore.prediction.volume import FloatImage, predict_from_scores
from modeling_rasalore.scans.naming import scan_stem, sequence_of
from modeling_rasalore.scans.volume_writing import write_volume
from modeling_rasalore.scans.volumes import Volume, read_mask, read_volume

EXAMPLES = Path(__file__).parent / "examples"
RECORD, SCORES = "case.json", "scores.nii.gz"
SCORE_STEPS = 1000  # scores are stored as thousandths


@dataclass(frozen=True)
class Case:
    """One example on disk.

    Attributes:
        folder: that holds it.
        title: on its button.
        told: what it is, in a sentence.
        scan: name of its scan's file.
        weights_sha256: of the model that made its stored scores; None where there are none.
    """

    folder: Path
    title: str
    told: str
    scan: str
    weights_sha256: str | None

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """Return the case of a folder."""
        record = json.loads((folder / RECORD).read_text("utf-8"))
        weights = record.get("weights_sha256")
        return cls(folder, record["title"], record["told"], record["scan"], weights)

    def analyse(self, analyst: Analyst, tell: Tell) -> Analysis:
        """Return the analysis; the model computes only where no scores of its own are stored."""
        scan = read_scan(self.folder / self.scan, analyst.trained_on)
        if self.weights_sha256 == analyst.facts["weights_sha256"]:
            stored = (read_volume(self.folder / SCORES).slices / SCORE_STEPS).astype(np.float32)
            options = analyst.options
            prediction = predict_from_scores(stored, scan.volume, options, analyst.facts)
            analysis = Analysis.of(scan, prediction, analyst)
        else:
            analysis = analyst.analyse(scan, analyst.options.threshold, tell)
        truth = read_mask(self.folder / "truth.nii.gz", scan.volume)
        return replace(analysis, truth=truth, told=self.told)


def read_cases() -> list[Case]:
    """Return the cases in the order of their folders."""
    return [Case.read(path.parent) for path in sorted(EXAMPLES.glob(f"*/{RECORD}"))]


class Cases:
    """The cases of the page; each is computed once, for all visitors.

    Attributes:
        models: of which the first that reads a case's sequence shows its scores.
        cases: by title.
        first: title of the case that an empty page shows, the first whose scores are stored for the
            model at hand; None where there is none. It is read at once, so that it opens before
            anything that a visitor can ask for.
    """

    def __init__(self, models: Models):
        self.models = models
        self.cases = {case.title: case for case in read_cases()}
        self._analyses: dict[str, Analysis] = {}
        self.first = next(filter(self._is_stored, self.cases), None)
        if self.first is not None:
            self.analyse(self.first, say_nothing)

    def analyst_of(self, title: str) -> Analyst:
        """Return the model of a case: one that reads its sequence, else the first."""
        sequence = sequence_of(scan_stem(Path(self.cases[title].scan)))
        return self.models.open(self.models.offer_for([sequence or ""]) or self.models.first)

    def analyse(self, title: str, tell: Tell) -> Analysis:
        """Return the analysis of a case."""
        if title not in self._analyses:
            self._analyses[title] = self.cases[title].analyse(self.analyst_of(title), tell)
        return self._analyses[title]

    def _is_stored(self, title: str) -> bool:
        weights = self.analyst_of(title).facts["weights_sha256"]
        return self.cases[title].weights_sha256 == weights


def write_scores(folder: Path, scores: FloatImage, like: Volume) -> Path:
    """Return the file of a case's scores (S, H, W) in [0, 1], on the grid of its scan."""
    return write_volume(folder / SCORES, np.rint(scores * SCORE_STEPS), like, np.uint16)
