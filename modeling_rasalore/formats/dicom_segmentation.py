"""Write a mask as a DICOM segmentation that refers to the series it was made of.

https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_A.51.html
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .stored_voxels import OWN_MARK, FormatError

SERIES_OFFSET = 9000  # added to the number of the source's series, as viewers sort by it
# What a segmentation takes over of patient and study, which a source may lack and may leave empty.
PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
MASK_RED = (255.0, 60.0, 60.0)


@dataclass(frozen=True)
class Algorithm:
    """What made a mask: the package's version, the model's name and weights, and the threshold."""

    version: str
    model: str
    weights_sha256: str
    threshold: float


def write_segmentation(
    path: Path, mask: np.ndarray, sources: Sequence[Any], algorithm: Algorithm
) -> Path:
    """Return `path` after writing a mask as one segment, an SCT "Lesion" of the brain.

    Patient and study are the source's, as DICOM asks for, so the file names a person if the source
    does.

    Args:
        mask: (slices, rows, columns) of 0 and 1, slice by slice as `sources`.
        sources: the data sets of the series, without their voxels, or one of several slices, whose
            order `mask` has; what they lack of a segmentation's fields is added.
        algorithm: what made the mask.

    Raises:
        FormatError: highdicom is missing, or sources that lack their identifiers.
    """
    highdicom = require_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    name = highdicom.AlgorithmIdentificationSequence(
        name="RASALoRE", family=codes.DCM.ArtificialIntelligence, version=algorithm.version
    )
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=name,
        anatomic_regions=[codes.SCT.Brain],
        display_color=highdicom.color.CIELabColor.from_rgb(*MASK_RED),
    )
    _complete(sources)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what the source says of its patient
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=np.ascontiguousarray(mask, np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=generate_uid(),
            series_number=SERIES_OFFSET + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="RASALoRE contributors",
            manufacturer_model_name=algorithm.model[:64],
            software_versions=f"rasalore {algorithm.version}",
            device_serial_number=algorithm.weights_sha256[:64],
            content_label="ANOMALY",
            content_description=f"threshold {algorithm.threshold:g}; research, no medical device",
            series_description=f"anomaly mask, {OWN_MARK.decode()}",
        )
    segmentation.save_as(path, enforce_file_format=True)
    return path


def require_highdicom() -> Any:
    """Return the library; say how it is installed where it is not."""
    if importlib.util.find_spec("highdicom") is None:
        raise FormatError(
            "masks as DICOM need the extra [dicom-seg]; run pip install 'rasalore[dicom-seg]'"
        )
    import highdicom

    return highdicom


def _complete(sources: Sequence[Any]) -> None:
    """Give sources all that a segmentation must take over, empty where it is not known."""
    from pydicom.uid import generate_uid

    first = sources[0]
    filling = {tag: "" for tag in PATIENT_AND_STUDY if tag not in first}
    for tag in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not first.get(tag):
            filling[tag] = generate_uid(entropy_srcs=[tag, str(first.get("SeriesInstanceUID"))])
    for source in sources:
        if not source.get("SOPInstanceUID") or not source.get("SeriesInstanceUID"):
            raise FormatError("a slice without SOPInstanceUID or SeriesInstanceUID has no name")
        for tag, value in filling.items():
            setattr(source, tag, value)
