"""RASALoRE: weakly supervised anomaly segmentation in brain MRI, from slice labels alone.

Importing this package costs nothing: the module of a public name is imported when the name is
first asked for. `import modeling_rasalore.models` (and `load_model`) registers both models with
transformers, so that published checkpoints load without remote code.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import (
        BrainAnomalyPipeline,
        DdptConfig,
        DdptModel,
        RasaloreConfig,
        RasaloreImageProcessor,
        RasaloreModel,
    )
    from .prediction.loading import load_model
    from .prediction.volume import predict_volume
    from .scans.volumes import read_volume

__version__ = "0.1.0"

# Whether this process runs one command `rasalore` and nothing else. Importing `models` then leaves
# both models unregistered until one is asked for: that imports all of transformers' model code.
runs_one_command = False

MODULES = {
    "BrainAnomalyPipeline": "models",
    "DdptConfig": "models",
    "DdptModel": "models",
    "RasaloreConfig": "models",
    "RasaloreImageProcessor": "models",
    "RasaloreModel": "models",
    "load_model": "prediction.loading",
    "predict_volume": "prediction.volume",
    "read_volume": "scans.volumes",
}
__all__ = [
    "BrainAnomalyPipeline",
    "DdptConfig",
    "DdptModel",
    "RasaloreConfig",
    "RasaloreImageProcessor",
    "RasaloreModel",
    "load_model",
    "predict_volume",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    """Return a public name, whose module is imported when it is first asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{MODULES[name]}", __name__), name)
