"""RASALoRE: weakly supervised anomaly segmentation in brain MRI, from slice labels alone.

Importing the package registers both models with `AutoConfig`, `AutoModel` and
`AutoImageProcessor`, so that published checkpoints load without remote code, and the pipeline
`brain-anomaly-segmentation`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .configuration_ddpt import DdptConfig
from .configuration_rasalore import RasaloreConfig
from .image_processing_rasalore import RasaloreImageProcessor
from .modeling_ddpt import DdptModel
from .modeling_rasalore import RasaloreModel
from .pipeline_rasalore import BrainAnomalyPipeline

__version__ = "0.1.0"

for _config, _model in ((RasaloreConfig, RasaloreModel), (DdptConfig, DdptModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoImageProcessor.register(
        _config, image_processor_classes={"pil": RasaloreImageProcessor}, exist_ok=True
    )
    # A saved model carries its own files and loads elsewhere with trust_remote_code=True.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModel")
RasaloreImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "BrainAnomalyPipeline",
    "DdptConfig",
    "DdptModel",
    "RasaloreConfig",
    "RasaloreImageProcessor",
    "RasaloreModel",
]
