"""Put the package's own weights into a study as a run that stage 2 starts from."""

from pathlib import Path

import torch

from ..data.splits import write_split
from ..files import write_json
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_rasalore import RasaloreModel
from ..packaged import packaged_model, packaged_sequences
from ..prediction.saved_options import carry_defaults
from ..provenance import provenance


def take_package_weights(modality: str, out: Path) -> Path:
    """Return `out` as a run of stage 2 that holds the package's own weights.

    They learned from synthetic patients alone, so their split names nobody.

    Raises:
        ValueError: there are none, they are damaged, or they know another sequence.
    """
    if modality not in packaged_sequences():
        known = ", ".join(packaged_sequences()) or "no sequence"
        raise ValueError(
            f"the package's own weights know {known}, and data.modality is {modality}; give "
            "start=scans."
        )
    source = packaged_model(modality)
    if (out / "run.json").is_file():
        return out
    RasaloreModel.from_pretrained(source, dtype=torch.float32).save_pretrained(out)
    RasaloreImageProcessor.from_pretrained(source).save_pretrained(out)
    carry_defaults(source, out)
    write_split({"train": [], "validation": [], "test": []}, out / "split.json")
    facts = {"stage": "rasalore", "modality": modality, "source": "the package's own weights"}
    write_json(out / "run.json", {**provenance(), **facts})
    return out
