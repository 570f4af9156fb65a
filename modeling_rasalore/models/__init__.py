"""Register both networks with transformers; the other files are copied into every model repository.

Importing this package registers them, which imports all of transformers' model code; in a process
that runs one command `rasalore` and nothing else, only asking for a class does.

configuration_rasalore.py      what defines a RASALoRE network, and its presets
encoder_rasalore.py            slice encoder and refiner
network_rasalore.py            points that attend to a slice, mask decoder, RasaloreNetwork
loss_rasalore.py               losses of stage 2
modeling_rasalore.py           RasaloreModel: the network with losses, initialisation, saving
scan_view_rasalore.py          a scan seen as one: square, scale, neighbours, hemispheres
image_processing_rasalore.py   slices into the network's frame, its maps back
pipeline_rasalore.py           slices in, maps and masks out
configuration_ddpt.py          what defines a DDPT network, and its presets
prompts_ddpt.py                text, visual and class-aware prompts
heatmaps_ddpt.py               attention, rollout, relevance, turned copies
modeling_ddpt.py               DdptModel: prompts around a frozen CLIP
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_ddpt import DdptConfig
    from .configuration_rasalore import RasaloreConfig
    from .image_processing_rasalore import RasaloreImageProcessor
    from .modeling_ddpt import DdptModel
    from .modeling_rasalore import RasaloreModel
    from .pipeline_rasalore import BrainAnomalyPipeline

__all__ = [
    "BrainAnomalyPipeline",
    "DdptConfig",
    "DdptModel",
    "RasaloreConfig",
    "RasaloreImageProcessor",
    "RasaloreModel",
]


def __getattr__(name: str) -> Any:
    """Return a public class, after registering."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return globals()[name]


def register() -> None:
    """Register both networks, so that transformers' Auto classes and pipelines know them."""
    from transformers import IMAGE_PROCESSOR_MAPPING, AutoConfig, AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from ..packaged import WEIGHTS, packaged_sequences
    from .configuration_ddpt import DdptConfig
    from .configuration_rasalore import RasaloreConfig
    from .image_processing_rasalore import RasaloreImageProcessor
    from .modeling_ddpt import DdptModel
    from .modeling_rasalore import RasaloreModel
    from .pipeline_rasalore import TASK, BrainAnomalyPipeline

    stage1, stage2 = (DdptConfig, DdptModel), (RasaloreConfig, RasaloreModel)
    processors: Any = {"pil": RasaloreImageProcessor}
    for config, model in (stage1, stage2):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        # AutoImageProcessor.register writes here too, but takes subclasses of BaseImageProcessor.
        IMAGE_PROCESSOR_MAPPING.register(config, processors, exist_ok=True)
    if known := packaged_sequences():  # of the pipeline's model, where none is named
        default = {"model": (str(WEIGHTS / known[0]), "main")}
        PIPELINE_REGISTRY.supported_tasks[TASK]["default"] = default
    classes = (*stage1, *stage2, RasaloreImageProcessor, BrainAnomalyPipeline)
    globals().update({public.__name__: public for public in classes})


if not sys.modules["modeling_rasalore"].runs_one_command:
    register()
