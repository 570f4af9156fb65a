"""RASALoRE: weakly supervised anomaly segmentation in brain MRI, from slice labels alone.

Importing the package registers both models with `AutoConfig`, `AutoModel` and
`AutoImageProcessor`, so that published checkpoints load without remote code, and the pipeline
`brain-anomaly-segmentation`. Only the command `rasalore` puts this off until it loads a model,
because it takes seconds.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_ddpt import DdptConfig
    from .configuration_rasalore import RasaloreConfig
    from .image_processing_rasalore import RasaloreImageProcessor
    from .modeling_ddpt import DdptModel
    from .modeling_rasalore import RasaloreModel
    from .pipeline_rasalore import BrainAnomalyPipeline

__version__ = "0.1.0"

__all__ = [
    "BrainAnomalyPipeline",
    "DdptConfig",
    "DdptModel",
    "RasaloreConfig",
    "RasaloreImageProcessor",
    "RasaloreModel",
]


def __getattr__(name: str) -> Any:
    """Return a public class, whose module is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".registration", __name__), name)


def _is_command_line() -> bool:
    """Whether this process is `rasalore` or `python -m modeling_rasalore.cli`."""
    program = Path(sys.argv[0]).stem if sys.argv else ""
    return program == "rasalore" or (
        program == "-m" and f"{__name__}.cli" in sys.orig_argv
    )  # "-m" while the package of the module is imported


if not _is_command_line():
    import_module(".registration", __name__).register_models()
