"""Says what the benchmark asks of a system and of a row, and keeps the rows of competitors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..data.patient import See, stack_slices

if TYPE_CHECKING:
    from .recipe import BenchmarkRecipe

Image = NDArray[np.float32]  # (H, W), or (4, H, W) for a system of all sequences


@dataclass(frozen=True, eq=False)
class SeenSlices(Sequence[Image]):
    """Slices of any scans, with what a system's `see` says of each.

    Attributes:
        images: as of `ScanSlices`.
        views: one per image; None without `see`.
    """

    images: Sequence[Image]
    views: Sequence[Any] | None = None

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | Sequence[Image]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


def select(slices: Sequence[Image], numbers: Sequence[int]) -> SeenSlices:
    """Return some of the slices, with their views where they have any."""
    views = getattr(slices, "views", None)
    seen = None if views is None else [views[number] for number in numbers]
    return SeenSlices([slices[number] for number in numbers], seen)


@dataclass(frozen=True, eq=False)
class ScanSlices(SeenSlices):
    """Slices of one scan, ascending: a list of images that knows where they lie.

    Attributes:
        images: (H, W) each, or (4, H, W); 0 in the background and above 0 in the brain.
        indices: which slices of the scan they are; one without brain may be missing.
        spacing: mm between slices, rows and columns.
        modality: the sequence.
        views: what a system's `see` says of each slice; None without it.
    """

    indices: Sequence[int] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    modality: str = ""

    def stack(self) -> NDArray[np.float32]:
        """Return the slices at their distances, (S, H, W) of one sequence; 0 where one is missing.

        Slice number `indices[i] - indices[0]` is image i.
        """
        return stack_slices(self.images, self.indices)


class System(Protocol):
    """A system that scores slices.

    Attributes:
        ALL_SEQUENCES: whether slices hold all four sequences, (4, H, W), instead of one.
        whole_scans: whether a slice's scores depend on its scan's other slices, so that all of them
            are scored where healthy ones alone are wanted.
        weights: "trained", "stand-in", "contaminated", "none" or a repo id.
        seconds: wall time that training took, None where nothing is trained.
        peak_mib: peak memory of training, None where nothing is trained.
        see: as `read_slices` takes it, of a system that sees slices as part of their scan: what it
            says of each are the `views` of what is scored; None for any other.
    """

    ALL_SEQUENCES: ClassVar[bool]
    whole_scans: bool
    weights: str
    seconds: float | None
    peak_mib: float | None
    see: See | None

    def fit(self, slices: Sequence[Image], labels: Sequence[int]) -> None:
        """Learn from slices (H, W) and their labels, 0 healthy and 1 unhealthy; no mask exists."""
        ...

    def score(self, slices: ScanSlices) -> list[Image]:
        """Return anomaly scores in [0, 1] of one scan's slices, in their own frame; 0 outside."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was learned into `folder`."""
        ...


class GivenSystem:
    """A system that comes ready: it has no parameters, or a stage's training made it."""

    ALL_SEQUENCES: ClassVar[bool] = False
    whole_scans: bool = False
    weights = "none"
    seconds: float | None = None
    peak_mib: float | None = None
    see: See | None = None

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
