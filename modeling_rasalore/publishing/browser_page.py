"""Complete the page that runs in a browser alone with the package's models and the viewer."""

import shutil
from pathlib import Path
from typing import Any

from ..brains.sequences import load_table
from ..files import write_json
from ..models.scan_view_rasalore import CHANNELS
from ..packaged import EXAMPLE_SCAN, packaged_model
from ..prediction.free_map import Polarity, polarity_of
from ..prediction.loading import describe_model, load_model
from ..prediction.options import PredictionOptions
from ..prediction.saved_options import at_false_alarms, complete_options
from ..provenance import DISCLAIMER
from .onnx_export import export_network

SEQUENCES = ("flair", "t2")  # that the page offers
# What the page shares with the Space that has a server, and lies there.
SHARED = (
    "niivue",
    *(f"browser/{name}" for name in ("viewer.html", "viewer.js", "controls.js", "page.css")),
)
EXAMPLE = "example"  # folder of the page with a scan to try
MODELS = "models"  # folder of the page
MODELS_FILE = "models.json"  # there: what the page has to know of each model


def complete_page(source: Path, out: Path) -> Path:
    """Return `out` with all that the page in `source` needs: nothing is fetched from elsewhere.

    Args:
        source: `space_app/static` of a clone.
        out: a new folder.

    Raises:
        ValueError: the package brings no model, or one that the page's script cannot prepare for.
        ImportError: the extra [onnx] is not installed.
    """
    shutil.copytree(source, out, dirs_exist_ok=True)
    for name in SHARED:
        shared, target = source.parent / name, out / name
        if shared.is_dir():
            shutil.copytree(shared, target)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(shared, target)
    (out / EXAMPLE).mkdir()
    shutil.copy(EXAMPLE_SCAN, out / EXAMPLE)
    models = {sequence: export_model(sequence, out / MODELS) for sequence in SEQUENCES}
    table = {name: values.tolist() for name, values in vars(load_table()).items()}
    facts = {"disclaimer": DISCLAIMER, "table": table, "models": models}
    write_json(out / MODELS / MODELS_FILE, facts)
    return out


def export_model(sequence: str, folder: Path) -> dict[str, Any]:
    """Write the network of the package's model for a sequence; return what a page has to know.

    Raises:
        ValueError: it is prepared for, or its masks made, in a way that the page does not know.
    """
    source = str(packaged_model(sequence))
    model, processor = load_model(source, device="cpu")
    options = complete_options(PredictionOptions(), (), model)
    require_known_way(sequence, processor, options)
    folder.mkdir(exist_ok=True)
    network = export_network(model, folder / f"{sequence}.onnx")
    return {
        "file": network.name,
        "bytes": network.stat().st_size,
        **{name: describe_model(model)[name] for name in ("name", "weights_sha256")},
        **{"size": processor.size, "neighbour_mm": processor.neighbour_mm},
        **{name: getattr(options, name) for name in ("smooth_mm", "free_map", "smallest_ml")},
        "threshold": options.threshold,
        "presets": list_presets(options, source, model),
    }


def list_presets(options: PredictionOptions, source: str, model: Any) -> list[dict[str, Any]]:
    """Return the calibrated thresholds, the lowest rate of false alarms first."""
    presets = []
    for rate in sorted(map(float, options.thresholds_at_rates)):
        chosen = at_false_alarms(options, rate, "voxels", source, model)
        facts = {"threshold": chosen.threshold, "source": chosen.threshold_source}
        presets.append({"rate": rate, **facts})
    return presets


def require_known_way(sequence: str, processor: Any, options: PredictionOptions) -> None:
    """Raise ValueError unless the page's script prepares slices and finishes scores in this way."""
    is_known = (
        processor.view == "scan"
        and tuple(processor.scan_channels) == CHANNELS
        and not processor.image_mean
        and not options.flips
        and polarity_of(sequence) is Polarity.BRIGHT
    )
    if not is_known:
        raise ValueError(
            f"the page reads sequences with bright lesions, in the channels {', '.join(CHANNELS)} "
            f"of whole scans and without mirror images, got another model of {sequence}; publish "
            "it as a Space with a server."
        )
