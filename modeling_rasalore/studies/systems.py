"""Says what the benchmark asks of a system and of a row, and keeps the rows of competitors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .running import BenchmarkRecipe

Image = NDArray[np.float32]  # (H, W), or (4, H, W) for a system of all sequences


class System(Protocol):
    """A system that scores slices.

    Attributes:
        ALL_SEQUENCES: whether slices hold all four sequences, (4, H, W), instead of one.
        weights: "trained", "stand-in", "contaminated", "none" or a repo id.
        seconds: wall time that training took, None where nothing is trained.
        peak_mib: peak memory of training, None where nothing is trained.
    """

    ALL_SEQUENCES: ClassVar[bool]
    weights: str
    seconds: float | None
    peak_mib: float | None

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """Learn from slices (H, W) and their labels, 0 healthy and 1 unhealthy; no mask exists."""
        ...

    def score(self, slices: Sequence[Image]) -> list[Image]:
        """Return anomaly scores in [0, 1] of slices (H, W), in their own frame; 0 outside."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was learned into `folder`."""
        ...


class GivenSystem:
    """A system that comes ready: it has no parameters, or a stage's training made it."""

    ALL_SEQUENCES: ClassVar[bool] = False
    weights = "none"
    seconds: float | None = None
    peak_mib: float | None = None

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """Nothing is learned here."""

    def save(self, folder: Path) -> None:
        """Nothing needs to be written."""


class SystemRow(Protocol):
    """A row of the table, which can be sent to another process.

    Attributes:
        name: of the system, in results and among the words of `systems`.
        title: of the system, for readers.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...

    def folders(self, recipe: "BenchmarkRecipe") -> list[str]:
        """Return the folders of trained networks that it needs, "" for one that is not given."""
        ...

    def facts(self, recipe: "BenchmarkRecipe") -> dict[str, Any]:
        """Return all that its scores depend on besides the data, as plain values."""
        ...

    def make(self, recipe: "BenchmarkRecipe") -> System:
        """Return the system, untrained where it learns."""
        ...

    def restore(self, folder: Path, recipe: "BenchmarkRecipe") -> System | None:
        """Return the system that `save` wrote; None where it cannot be read back."""
        ...


COMPETITORS: dict[str, SystemRow] = {}  # by name, in the order of the table


def register(*rows: SystemRow) -> None:
    """Add competing systems to the table; the modules that hold them call this when imported."""
    COMPETITORS.update({row.name: row for row in rows})


def read_runs(name: str, folders: Sequence[str]) -> dict[str, str]:
    """Return folder -> text of its run.json, which changes with the weights; "" is passed over.

    Raises:
        ValueError: a run is not finished.
    """
    texts = {}
    for folder in filter(None, folders):
        summary = Path(folder) / "run.json"
        if not summary.exists():
            raise ValueError(f"{name} needs a finished run, but {folder} holds no run.json.")
        texts[folder] = summary.read_text()
    return texts
