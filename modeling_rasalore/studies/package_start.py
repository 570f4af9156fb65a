"""Put the package's own weights into a study as a run that stage 2 starts from."""

from pathlib import Path

from ..data.splits import write_split
from ..files import write_json
from ..models.configuration_rasalore import RasaloreConfig
from ..models.image_processing_rasalore import RasaloreImageProcessor
from ..models.modeling_rasalore import RasaloreModel
from ..packaged import packaged_model
from ..provenance import provenance


def take_package_weights(modality: str, out: Path) -> Path:
    """Return `out` as a run of stage 2 that holds the package's own weights.

    They learned from synthetic patients alone, so their split names nobody.

    Raises:
        ValueError: there are none, they are damaged, or they know another sequence.
    """
    source = packaged_model()
    known = RasaloreConfig.from_pretrained(source).modality
    if known not in (None, modality):
        raise ValueError(
            f"the package's own weights know {known}, and data.modality is {modality}; give "
            "start=scans."
        )
    if (out / "run.json").is_file():
        return out
    config = RasaloreConfig.from_pretrained(source, modality=modality)
    RasaloreModel.from_pretrained(source, config=config).save_pretrained(out)
    RasaloreImageProcessor.from_pretrained(source).save_pretrained(out)
    write_split({"train": [], "validation": [], "test": []}, out / "split.json")
    facts = {"stage": "rasalore", "modality": modality, "source": "the package's own weights"}
    write_json(out / "run.json", {**provenance(), **facts})
    return out
