"""Both models made known to transformers, so that checkpoints load without remote code."""

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
    "register_models",
]


def register_models() -> None:
    """Register with AutoConfig, AutoModel and AutoImageProcessor; a second call changes nothing."""
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
