"""Offer models by the sequences that they read, and open each when a scan first needs it."""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import Analyst
from scan_reading import REFUSE, Scan, offer_ways, pick_series, read_scan, strip_of
from thresholds import offer_presets

from modeling_rasalore.brains.sequences import LOOKS, recognise_sequence
from modeling_rasalore.packaged import packaged_model, packaged_sequences
from modeling_rasalore.precision import choose_for_model
from modeling_rasalore.prediction.loading import load_model, name_folder
from modeling_rasalore.prediction.options import DEFAULT_OPTIONS
from modeling_rasalore.prediction.saved_options import complete_options
from modeling_rasalore.remote_files import read_model_config
from modeling_rasalore.scans.naming import Statement
from modeling_rasalore.scans.volumes import Volume

BY_SEQUENCE = "by the scan's sequence"


@dataclass(frozen=True)
class Offer:
    """A model that can be asked for, and need not be open yet.

    Attributes:
        title: what people call it; no folder of this machine is in it.
        source: folder or repo id.
        revision: of a repo id.
        sequence: that it reads; None: not recorded.
    """

    title: str
    source: str
    revision: str
    sequence: str | None


class Models:
    """The models of the page; each is opened once, and kept.

    Attributes:
        offers: by their titles, in the order in which they were named.
        ways: what can be done with a scan that shows more than a brain.
    """

    def __init__(self, offers: Sequence[Offer]):
        self.offers = {offer.title: offer for offer in offers}
        self.ways = offer_ways(self.sequences)
        self._analysts: dict[str, Analyst] = {}
        self._lock = threading.Lock()

    @property
    def sequences(self) -> tuple[str, ...]:
        """Those that the models read, each once."""
        return tuple(dict.fromkeys(o.sequence for o in self.offers.values() if o.sequence))

    @property
    def first(self) -> Offer:
        """The model that was named first."""
        return next(iter(self.offers.values()))

    @property
    def titles(self) -> list[str]:
        """What can be asked for; of several models, the scan may choose."""
        return [BY_SEQUENCE] * (len(self.offers) > 1) + list(self.offers)

    def offer_for(self, sequences: Collection[str]) -> Offer | None:
        """Return the first model that reads one of these sequences; None where none does."""
        return next((o for o in self.offers.values() if o.sequence in sequences), None)

    def open(self, offer: Offer) -> Analyst:
        """Return a model, which may have to be loaded first."""
        with self._lock:
            if offer.title not in self._analysts:
                self._analysts[offer.title] = open_model(offer.source, offer.revision)
            return self._analysts[offer.title]

    def read(
        self,
        path: Path,
        title: str | None = None,
        brain_mask: Path | None = None,
        way: str = REFUSE,
    ) -> tuple[Offer, Scan]:
        """Return a scan and the model that reads it.

        Args:
            path: file of the scan.
            title: the model to be used; None: of several, the one of the scan's sequence.
            brain_mask: file of the brain's mask.
            way: one of `ways`.

        Raises:
            ValueError: as `read_scan`, an unknown model or way, or a sequence that is not read.
        """
        strip = strip_of(way, self.ways, brain_mask)
        offer = self._asked(title or self.titles[0])
        trained_on = offer.sequence if offer else pick_series(path, self.sequences)
        scan = read_scan(path, trained_on, brain_mask, strip, self.ways)
        return (offer, scan) if offer else self._choose_for(scan)

    def _asked(self, title: str) -> Offer | None:
        """Return the model of a title; None where the scan chooses."""
        if title not in self.titles:
            raise ValueError(f"model must be one of {', '.join(self.titles)}, got {title}.")
        return self.offers.get(title)

    def _choose_for(self, scan: Scan) -> tuple[Offer, Scan]:
        """Return the model that reads a scan, and the scan, with a note where its image told.

        Raises:
            ValueError: the sequence is not told, or not read.
        """
        told, by_image = tell_sequence(scan.volume)
        name, reads = scan.volume.path.name, " and ".join(s.upper() for s in self.sequences)
        if told is None:
            raise ValueError(
                f"{name}: neither name nor header nor image tells the scan's sequence, and the "
                f"models read {reads}; choose the model yourself if it is one of these."
            )
        offer = self.offer_for(told.fits)
        if offer is None:
            raise ValueError(
                f"{name}: the models read {reads}, but {told.words}; give a scan of one of these."
            )
        note = f"{told.words}, and nothing else tells; choose the model if that is wrong."
        warnings = [*scan.source["warnings"], *[note] * by_image]
        return offer, replace(scan, source=scan.source | {"warnings": warnings})


def tell_sequence(volume: Volume) -> tuple[Statement | None, bool]:
    """Return what tells a scan's sequence, None where nothing does; and whether its image does."""
    source = volume.sequence_source
    if not source or source.startswith(LOOKS):
        image = recognise_sequence(volume)
        return image, image is not None
    if volume.sequence is None:
        return None, False
    return Statement(source, frozenset({volume.sequence})), False


def open_model(name: str, revision: str = "main") -> Analyst:
    """Return a model with what is saved with it: how its masks are made, and its thresholds.

    Args:
        name: folder or repo id.
        revision: of a repo id.

    Raises:
        ValueError: no such model, or a file beside it that is damaged.
    """
    model, processor = load_model(name, revision, "auto")
    options = replace(DEFAULT_OPTIONS, precision=choose_for_model(model).name)
    options = complete_options(options, (), model, name, revision)
    presets = offer_presets(options, name, model, revision)
    return Analyst(model, processor, options, presets)


def offer_models(sources: Sequence[str] = (), revisions: Sequence[str] = ("main",)) -> Models:
    """Return the models of these folders and repo ids; without any, those of the package.

    Args:
        sources: folders and repo ids.
        revisions: of the repo ids: one for all, or one for each.

    Raises:
        ValueError: one of them cannot be read, or the package has none.
    """
    if not sources:
        sources = [str(packaged_model(s)) for s in packaged_sequences() or (None,)]
    if len(revisions) not in (1, len(sources)):
        raise ValueError(
            f"there must be one revision, or one for each of the {len(sources)} models, got "
            f"{len(revisions)}; name them in the order of the models."
        )
    offers: list[Offer] = []
    for number, source in enumerate(sources):
        revision = revisions[number % len(revisions)]
        sequence = read_model_config(source, revision).get("modality")
        title = name_folder(Path(source)) if Path(source).exists() else source
        if title in (offer.title for offer in offers):
            title += f" ({number + 1})"
        offers.append(Offer(title, source, revision, sequence))
    return Models(offers)
