"""Read the labelled axial slices of a patient, one after the other."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from ..scans.background import brain_of, zero_background
from ..scans.naming import MODALITIES
from ..scans.reading import covers_brain, read_scan
from ..scans.volumes import Volume, read_facts, read_mask, read_volume
from .labels import LABELS_FILE, UNKNOWN, label_slices
from .patient import ALL, AUTO, EACH, LabelledSlice, Patient, See, Skip, used_slices
from .shards import read_prepared

logger = logging.getLogger(__name__)


def read_slices(
    patient: Patient,
    modality: str,
    with_mask: bool = False,
    skip: Skip = AUTO,
    labels: Collection[int] | None = None,
    only: Collection[int] | None = None,
    see: See | None = None,
) -> Iterator[LabelledSlice]:
    """Yield the axial slices of a patient that show brain, inferior to superior.

    Args:
        modality: "t1", "t1ce", "t2", "flair" or "all"; "each" for patients of
            `Patient.of_each_sequence`.
        with_mask: also read the true masks, for scoring.
        skip: how many of the first and of the last axial slices are left out, as for
            `used_slices`.
        labels: yield only slices with these labels, such as {0, 1} to train; None yields all.
        only: indices of slices, to read no others; None reads all.
        see: called once with the scan, of which every slice carries its share.

    Raises:
        ValueError: no such modality, "all" where a scan is to be seen, sequences of "all" on
            different grids, no slice that is used, or a labelled slice beyond the scan;
            VolumeError, one of these, for a file that cannot be read.
    """
    if modality == EACH:
        (modality,) = patient.images
    _require(patient, modality)
    if modality == ALL and see:
        raise ValueError(
            "a network that sees whole scans takes one sequence, got modality=all; give t1, t1ce, "
            "t2 or flair, or a preset that sees every slice by itself."
        )
    if modality == ALL:
        yield from _read_all(patient, with_mask, skip, labels, only)
    elif patient.prepared:
        yield from read_prepared(patient, modality, with_mask, skip, labels, only, see)
    else:
        yield from _read_scan(patient, modality, with_mask, skip, labels, only, see)


def _read_scan(
    patient: Patient,
    modality: str,
    with_mask: bool,
    skip: Skip,
    labels: Collection[int] | None,
    only: Collection[int] | None,
    see: See | None,
) -> Iterator[LabelledSlice]:
    """Yield the slices of one sequence, decoded once."""
    volume, images = read_images(patient, modality)
    if volume.replaced_voxels:
        replaced = f"{volume.replaced_voxels} NaN or infinite voxels were set to 0"
        _say_once(logging.WARNING, f"{volume.path}: {replaced}")
    lesion = None
    if patient.mask is not None and (with_mask or patient.slice_labels is None):
        lesion = read_mask(patient.mask, volume) > 0
        if covers_brain(lesion, images > 0):
            raise ValueError(
                f"{patient.mask}: a lesion mask must not cover the whole brain, got "
                f"{np.count_nonzero(lesion)} voxels where the scan shows "
                f"{np.count_nonzero(images)}; name a mask of the brain brain_mask."
            )
    truth = lesion if with_mask else None
    slice_labels = _all_labels(patient, len(images), lesion, volume.spacing[1:])
    used = used_slices(patient.patient_id, len(images), skip)
    with_brain = [index for index in used if brain_of(images[index]).any()]
    if not with_brain:
        nothing = "no slice that is read shows brain; the scan gives nothing to learn from"
        _say_once(logging.WARNING, f"{volume.path}: {nothing}")
    elif blank := len(used) - len(with_brain):
        _say_once(logging.INFO, f"{volume.path}: {blank} slices without brain are skipped")
    scan = see(images, volume.spacing) if see and with_brain else None
    for index in with_brain:
        if (labels is None or slice_labels[index] in labels) and (only is None or index in only):
            yield LabelledSlice(
                # A view would keep the whole volume in memory, as neighbours do anyway.
                image=images[index].copy() if scan is None else images[index],
                label=slice_labels[index],
                mask=None if truth is None else truth[index].astype(np.uint8),
                patient_id=patient.patient_id,
                slice_index=index,
                slice_count=len(images),
                spacing=volume.spacing,
                source=patient.source,
                modality=modality,
                seen=None if scan is None else scan[index],
            )


def read_patient(patient: Patient, modality: str) -> Volume:
    """Return a patient's scan, whatever it says of itself; its brain alone where a mask tells it.

    Raises:
        VolumeError: a scan or brain mask that cannot be read.
    """
    path, channel = patient.images[modality], patient.channels.get(modality)
    scan = read_scan(path, channel, modality, assume=True)
    if patient.brain_mask is None:
        return scan
    brain = read_mask(patient.brain_mask, scan) > 0
    source = f"the mask {patient.brain_mask.name}"
    return replace(scan, slices=zero_background(scan.slices, brain), brain_source=source)


def read_images(patient: Patient, modality: str) -> tuple[Volume, np.ndarray]:
    """Return a sequence as it was read, and its slices (S, H, W) with background 0.

    Raises:
        VolumeError: a scan or brain mask that cannot be read.
    """
    volume = read_volume(patient.images[modality], patient.channels.get(modality))
    brain = None if patient.brain_mask is None else read_mask(patient.brain_mask, volume) > 0
    return volume, zero_background(volume.slices, brain)


def _read_all(
    patient: Patient,
    with_mask: bool,
    skip: Skip,
    labels: Collection[int] | None,
    only: Collection[int] | None,
) -> Iterator[LabelledSlice]:
    """Yield slices with brain in any sequence; one that the patient lacks is 0 everywhere."""
    check_one_grid(patient, MODALITIES)
    slices: dict[int, LabelledSlice] = {}
    for channel, modality in enumerate(MODALITIES):
        if modality not in patient.images:
            continue
        for example in read_slices(patient, modality, with_mask, skip, labels, only):
            if example.slice_index not in slices:
                blank = np.zeros((len(MODALITIES), *example.image.shape), np.float32)
                slices[example.slice_index] = replace(example, image=blank, modality=ALL)
            slices[example.slice_index].image[channel] = example.image
    yield from (slices[index] for index in sorted(slices))


@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)


def _require(patient: Patient, modality: str) -> None:
    if modality not in (*MODALITIES, ALL):
        known = ", ".join((*MODALITIES, ALL))
        raise ValueError(f"modality must be one of {known}, got {modality!r}.")
    needed = set(MODALITIES) if modality == ALL else {modality}
    if not needed & patient.images.keys():
        raise ValueError(
            f"every patient needs a {' or '.join(sorted(needed))} scan, but {patient.patient_id} "
            f"has {', '.join(patient.images) or 'no scan'}."
        )


def _all_labels(
    patient: Patient, count: int, lesion: np.ndarray | None, spacing: tuple[float, float]
) -> list[int]:
    """Return the label of each of the `count` slices: from the labels file, else from the mask."""
    named = patient.slice_labels
    if named is None:
        return [UNKNOWN] * count if lesion is None else label_slices(lesion, spacing)
    if named and max(named) >= count:
        raise ValueError(
            f"{LABELS_FILE} names slice {max(named)} of {patient.patient_id}, whose scan has "
            f"slices 0 to {count - 1}; 0 is the most inferior one."
        )
    return [named.get(index, UNKNOWN) for index in range(count)]


def check_one_grid(patient: Patient, modalities: Sequence[str]) -> None:
    """Refuse sequences that do not share shape and place in space; headers alone are read.

    Those that the patient does not have are passed over; prepared slices were checked when they
    were prepared.

    Raises:
        ValueError: two sequences lie on different grids.
    """
    names = [name for name in modalities if name in patient.images]
    if patient.prepared or patient.channels or len(names) < 2:
        return
    geometries = {name: read_facts(patient.images[name]).geometry for name in names}
    first = geometries[names[0]]
    for name, geometry in geometries.items():
        if geometry.shape == first.shape:
            offset = geometry.offset_from(first)
            if offset <= min(geometry.spacing):
                continue
            difference = f"corners up to {offset:.1f} mm apart"
        else:
            difference = f"{first.shape} and {geometry.shape} voxels"
        raise ValueError(
            f"sequences that are used together must lie on one grid, but {names[0]} and {name} of "
            f"{patient.patient_id} have {difference}; register and resample one onto the other."
        )
