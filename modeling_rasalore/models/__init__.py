"""Register both networks with transformers; the other files are copied into every model repository.

configuration_rasalore.py      what defines a RASALoRE network, and its presets
encoder_rasalore.py            slice encoder and refiner
attention_rasalore.py          location embeddings, region-aware spatial attention
loss_rasalore.py               losses of stage 2
modeling_rasalore.py           point head, mask decoder, RasaloreModel
scan_view_rasalore.py          a scan seen as one: square, scale, neighbours, hemispheres
image_processing_rasalore.py   slices into the network's frame, its maps back
pipeline_rasalore.py           slices in, maps and masks out
configuration_ddpt.py          what defines a DDPT network, and its presets
prompts_ddpt.py                text, visual and class-aware prompts
heatmaps_ddpt.py               attention, rollout, relevance, turned copies
modeling_ddpt.py               DdptModel: prompts around a frozen CLIP
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

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

for config, model in ((RasaloreConfig, RasaloreModel), (DdptConfig, DdptModel)):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoImageProcessor.register(
        config, image_processor_classes={"pil": RasaloreImageProcessor}, exist_ok=True
    )
    # A saved model carries its own files and loads elsewhere with trust_remote_code=True.
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModel")
RasaloreImageProcessor.register_for_auto_class("AutoImageProcessor")
