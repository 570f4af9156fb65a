"""Which modules and libraries each module may import; `test_architecture.py` holds them to it."""

# Which siblings a module may import. A row may only name rows above it, so imports point one way.
# The Hub ring is copied as it is into every model repository.
HUB_RING: dict[str, set[str]] = {
    "configuration_rasalore": set(),
    "configuration_ddpt": {"configuration_rasalore"},  # one check of misspelt fields for both
    "loss_rasalore": set(),
    "image_processing_rasalore": set(),
    "encoder_rasalore": {"configuration_rasalore"},
    "attention_rasalore": {"configuration_rasalore"},
    "modeling_rasalore": {
        *("configuration_rasalore", "encoder_rasalore", "attention_rasalore", "loss_rasalore"),
    },
    "heatmaps_ddpt": set(),
    "prompts_ddpt": {"configuration_ddpt"},
    "modeling_ddpt": {"configuration_ddpt", "heatmaps_ddpt", "prompts_ddpt"},
    "pipeline_rasalore": {"image_processing_rasalore"},
}
# What someone holding scans uses.
USER_RING: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "header_guard": set(),
    "slice_frame": set(),
    "brain_slices": set(),
    "volumes": {"errors", "header_guard", "slice_frame", "brain_slices"},
    "volume_writing": {"files", "slice_frame", "volumes"},
    "metrics": set(),
    "remote_files": set(),
    "layouts": {"remote_files", "volumes"},
    "pseudo_masks": {"volumes"},
    "reports": set(),
    "overlays": {"brain_slices"},
    "results_grid": {"overlays"},
    "phantom_tumours": set(),
    "phantoms": {"volume_writing", "phantom_tumours"},
    "sequence_grid": {"volumes", "layouts"},
    "slice_images": set(),
    "slice_shards": {"layouts", "remote_files", "slice_images"},
    "slices": {"volumes", "layouts", "sequence_grid", "slice_shards"},
    "splits": {"layouts"},
    "mask_3d": set(),
    "provenance": set(),
    "prediction": {"slice_frame", "brain_slices", "volumes", "mask_3d"},
    "prediction_files": {
        *("files", "brain_slices", "overlays", "prediction", "provenance"),
        *("volumes", "volume_writing"),
    },
    "uncertainty": {"volumes", "brain_slices", "prediction"},
    "dicom_series": {"errors", "header_guard"},
    "bids": {"files"},
    "scan_list": {"layouts", "bids", "dicom_series"},
    "scan_source": {"volumes", "layouts", "dicom_series", "scan_list"},
    "scan_inspection": {"volumes", "scan_list", "scan_source"},
    "calibration": {
        *("files", "remote_files", "volumes", "brain_slices", "metrics", "prediction"),
    },
    "run_report": {"files", "overlays"},
    "registration": set(HUB_RING),
    "model_loading": {"modeling_rasalore", "registration", "remote_files"},
    "prediction_run": {
        *("files", "volumes", "bids", "scan_list", "scan_source", "overlays", "prediction"),
        *("prediction_files", "errors", "provenance", "uncertainty", "run_report"),
        "model_loading",
    },
    "archive": {
        *("errors", "files", "volumes", "volume_writing", "scan_list", "scan_source"),
        *("prediction", "prediction_files", "prediction_run"),
    },
    "archive_ray": {"archive", "prediction_run"},
    "onnx_export": {"files", "image_processing_rasalore"},
    "released_checkpoints": {
        "configuration_rasalore",
        "configuration_ddpt",
        "modeling_rasalore",
        "modeling_ddpt",
        "image_processing_rasalore",
    },
}
# What only training and benchmarks use.
TRAIN_RING: dict[str, set[str]] = {
    "recipes": set(),
    "augmentation": {"recipes"},
    "synthetic_lesions": set(),
    "temperature": set(),
    "mask_table": {"files"},
    "mask_free_criteria": {"loss_rasalore", "metrics", "pseudo_masks"},
    "optimizers": {"recipes"},
    "epoch_order": set(),
    "work_list": {"files", "layouts", "remote_files", "slice_shards", "slices"},
    "slice_loader": {"epoch_order", "recipes", "slices", "work_list"},
    "step_statistics": set(),
    "training": {
        "files",
        "layouts",
        "optimizers",
        "provenance",
        "recipes",
        "slice_loader",
        "splits",
        "step_statistics",
        "work_list",
    },
    "patient_scores": {"metrics"},
    "leaks": set(),
    "evaluation": {"files", "leaks", "metrics", "patient_scores"},
    "slice_files": {
        *("errors", "files", "layouts", "sequence_grid", "slice_images", "slice_shards", "slices"),
    },
    "cards": {"overlays", "reports"},
    "publishing": set(),
}
MODULES: dict[str, set[str]] = {**HUB_RING, **USER_RING, **TRAIN_RING}
MODULES["cli"] = set(MODULES)  # above everything, imported by nothing

# The files of the Space lie in one folder, its root, and import each other by name.
SPACE: dict[str, set[str]] = {
    "uploads": set(),
    "analysis": set(),
    "drawing": {"analysis"},
    "page": set(),
    "traffic": {"uploads"},
    "handlers": {"analysis", "drawing", "traffic", "uploads"},
    "controls": {"handlers", "page", "uploads"},
    "wiring": {"controls", "handlers", "page"},
    "app": {"analysis", "controls", "handlers", "page", "traffic", "wiring"},
    "write_example": set(),
}

# Modules that need the `train` extra as soon as they are imported; all others do with less.
NEEDS_TRAIN_EXTRA = {"slice_shards", "slices", *TRAIN_RING}
HUB_LIBRARIES = {"torch", "transformers", "numpy"}
USER_LIBRARIES = {*HUB_LIBRARIES, "huggingface_hub", "safetensors", "scipy", "PIL", "tqdm", "typer"}
OWNERS = {
    "nibabel": {"volumes", "volume_writing", "slice_frame"},  # the only files that know voxel order
    "pydicom": {"dicom_series"},
}
FORBIDDEN = {
    "torchvision": "it replaces the installed torch",
    "timm": "it needs torchvision",
    "pickle": "weights and data are read without running code",
}
