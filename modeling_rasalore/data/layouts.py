"""Find which scans, masks and slice labels a folder holds, by one table of known layouts."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..files import some, walk
from ..remote_files import is_remote, read_bytes
from ..scans.finding import nifti_files
from ..scans.naming import (
    MODALITIES,
    MSD_CHANNELS,
    MSD_FOLDER,
    ending_of,
    file_stem,
    is_doubtful,
    read_channels,
    role_by_words,
    sequence_of,
    tells_no_finding,
)
from ..scans.reading import read_role, role_by_content
from ..scans.volume_writing import find_own_results, is_marked
from ..scans.volumes import VolumeError, read_facts, read_volume
from .labels import LABELS_FILE, add_slice_labels
from .patient import Patient, PreparedSlices
from .persons import patient_id_of_path, tell_persons

logger = logging.getLogger(__name__)

SLICES_FILE = "slices.json"  # what a folder of prepared slices holds
INDEX_FILE = "index.parquet"
SLICES_FORMAT = "rasalore slices 1"


@dataclass(frozen=True)
class Layout:
    """A data set whose patients match one pattern.

    Attributes:
        pattern: glob below the root; one match per patient.
        endings: how a file's name ends before .nii or .nii.gz -> its role (modality or "mask").
        channels: modality -> channel, for matches that are themselves 4-D scans.
        masks: folder below the root with one mask of the same name per 4-D scan.
    """

    name: str
    pattern: str
    endings: dict[str, str] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    masks: str = ""


# One BraTS20 patient (355) has its mask named by another rule, ending in "_Segm".
BRATS_ENDINGS = {"_t1": "t1", "_t1ce": "t1ce", "_t2": "t2", "_flair": "flair", "_seg": "mask"}
GLI_ENDINGS = {"-t1n": "t1", "-t1c": "t1ce", "-t2w": "t2", "-t2f": "flair", "-seg": "mask"}
BRATS23_FAMILIES = ("GLI-*", "MET-*", "PED-*", "SSA-*", "MEN-[0-9]*")  # MEN-RT has other names
LAYOUTS = (
    Layout("BraTS20", "BraTS20_Training_*", {**BRATS_ENDINGS, "_Segm": "mask"}),
    Layout("BraTS21", "BraTS2021_*", BRATS_ENDINGS),
    *(Layout("BraTS23", f"BraTS-{family}", GLI_ENDINGS) for family in BRATS23_FAMILIES),
    Layout(
        "MSD Task01",
        f"{MSD_FOLDER}/*.nii.gz",
        channels=MSD_CHANNELS,
        masks="labelsTr",
    ),
)


def find_patients(
    root: str | Path, same_person: str | Path = "", some_may_lack_labels: bool = False
) -> list[Patient]:
    """Return the patients below `root`, sorted by patient_id.

    Known layouts: BraTS20, BraTS21, BraTS23, MSD Task01, nnU-Net; else any folder of patient
    folders, with or without one per visit in them (as BIDS sessions), or of plain files, whose
    names tell the sequence. `slice_labels.csv` (columns volume = patient_id, slice_index, label =
    healthy or unhealthy, or 0 or 1) in `root` gives the slice labels. Slices of
    train/prepare_slices.py are read from a folder, a web address or a data set's repo id.

    Args:
        same_person: table of persons who are in another data set as well; "" for none. See
            `tell_persons`: they are in the list, and `left_out` says who has no part.
        some_may_lack_labels: return patients that have neither a mask nor slice labels too, unless
            no other is there.

    Raises:
        ValueError: nothing recognised, two files for one role, a patient with neither a mask nor
            slice labels, a labels file that is malformed or names an unknown patient, or a table
            of persons that is none or leaves nobody.
    """
    patients = _find_patients(root, some_may_lack_labels)
    return tell_persons(patients, same_person) if same_person else patients


def _find_patients(root: str | Path, some_may_lack_labels: bool) -> list[Patient]:
    """Return the patients of scans or of prepared slices."""
    if is_remote(root) or (Path(root) / SLICES_FILE).is_file():
        return _find_prepared(str(root))
    root = Path(root)
    patients = find_scanned_patients(root)
    labels_path = root / LABELS_FILE
    if labels_path.is_file():
        return add_slice_labels(patients, labels_path)
    unlabelled = [patient.patient_id for patient in patients if patient.mask is None]
    if unlabelled and (not some_may_lack_labels or len(unlabelled) == len(patients)):
        raise ValueError(
            f"every patient needs a mask or slice labels, but {some(unlabelled)} in {root} have "
            f"no mask; add the mask files, or a {LABELS_FILE} with the columns volume, "
            "slice_index, label (healthy or unhealthy)."
        )
    return patients


def find_scanned_patients(root: Path) -> list[Patient]:
    """Return the patients whose scans lie below a folder, sorted, without labels of any table.

    Raises:
        ValueError: nothing recognised, or two files for one role.
    """
    patients = [patient for layout in LAYOUTS for patient in _match(root, layout)]
    if patients:
        _warn_of_others(root)
    else:
        patients = _match_channels(root) or _match_names(root)
    if not patients:
        raise ValueError(_nothing_found(root))
    return sorted(patients, key=lambda patient: patient.patient_id)


def _find_prepared(root: str) -> list[Patient]:
    """Return the patients of prepared slices; scans that could not be prepared are not there."""
    try:
        content = json.loads(read_bytes(root, SLICES_FILE))
    except FileNotFoundError as error:
        raise ValueError(
            f"the data root must be a folder, or the address or repo id of prepared slices, but "
            f"there is no folder {root} and no {SLICES_FILE} behind that name ({error})."
        ) from error
    if content.get("format") != SLICES_FORMAT:
        raise ValueError(f"{root}/{SLICES_FILE} must say it holds {SLICES_FORMAT!r}.")
    patients = []
    for part in content["parts"]:
        path = Path("data", f"{part['name']}.parquet")
        for row_group, entry in enumerate(part["patients"]):
            prepared = PreparedSlices(
                root,
                part["name"],
                part["bytes"],
                row_group,
                part["mask_bytes"] if entry["has_mask"] else None,
                content["skip_slices"],
            )
            patients.append(
                Patient(
                    patient_id=entry["patient_id"],
                    images=dict.fromkeys(entry["modalities"], path),
                    mask=path if prepared.mask_bytes else None,
                    source=entry["source"],
                    prepared=prepared,
                )
            )
    if not patients:
        raise ValueError(f"{root}/{SLICES_FILE} lists no patient; prepare the slices again.")
    return sorted(patients, key=lambda patient: patient.patient_id)


def _match(root: Path, layout: Layout) -> list[Patient]:
    """Return the patients of one known layout."""
    patients = []
    for match in sorted(root.glob(layout.pattern)):
        if match.name.startswith("."):  # "._name" files are left behind by macOS archives
            continue
        if layout.channels:
            if not _holds_channels(match, layout):
                continue
            mask = root / layout.masks / match.name
            patients.append(
                Patient(
                    patient_id=file_stem(match),
                    images=dict.fromkeys(layout.channels, match),
                    channels=layout.channels,
                    mask=mask if mask.is_file() else None,
                    source=layout.name,
                )
            )
        elif match.is_dir():
            roles = [(_role_by_ending(path, layout), path) for path in nifti_files(match, "*")]
            patients.append(_patient(match.name, roles, layout.name))
    return patients


def _holds_channels(path: Path, layout: Layout) -> bool:
    """Whether a 4-D scan holds what its layout says; one that cannot be read may."""
    try:
        return read_facts(path).channels == len(layout.channels)
    except VolumeError:
        return True


def _match_channels(root: Path) -> list[Patient]:
    """Return the patients of nnU-Net's raw data, one file per sequence, by its dataset.json."""
    folder = root / MSD_FOLDER
    channels = read_channels(_scan_files(folder)) if folder.is_dir() else {}
    untold = [path.name for path, sequence in channels.items() if sequence is None]
    if untold:
        raise ValueError(
            f"{folder} holds several files per patient, such as {some(untold)}, and no "
            "dataset.json beside it tells their sequences; add that file, with channel_names."
        )
    masks = {file_stem(path): path for path in _scan_files(root / "labelsTr")}
    roles: dict[str, list[tuple[str | None, Path]]] = {}
    for path, sequence in channels.items():
        roles.setdefault(file_stem(path)[: -len("_0000")], []).append((sequence, path))
    return [
        _patient(case, [*files, *(("mask", masks[case]) for _ in range(case in masks))], "nnU-Net")
        for case, files in roles.items()
    ]


def _match_names(root: Path) -> list[Patient]:
    """Return the patients of a folder of patient folders, or of plain files, by words in names."""
    files: dict[str, list[tuple[str | None, Path]]] = {}
    for path in _scan_files(root):
        parts = path.relative_to(root).parts
        patient_id = patient_id_of_path(parts) or root.resolve().name
        role = role_by_words(path)
        if is_doubtful(path) and read_role(path) == "scan":
            role = sequence_of(file_stem(path))
        files.setdefault(patient_id, []).append((role, path))
    patients = [_patient(patient_id, roles, "folder") for patient_id, roles in files.items()]
    usable = [patient for patient in patients if patient.images]
    if usable and len(usable) < len(patients):
        names = [patient.patient_id for patient in patients if not patient.images]
        logger.warning("%s: no file name tells a sequence of %s; left out", root, some(names))
    return [_settle_mask(patient) for patient in usable]


def _scan_files(folder: Path) -> list[Path]:
    """Return the files with a scan's ending below a folder, without results of earlier runs."""
    files = walk(folder).files if folder.is_dir() else []
    own = find_own_results(files)
    named = [path for path in files if ending_of(path) and path.exists() and path not in own]
    if results := [path for path in named if is_marked(path)]:
        names = some([path.name for path in results])
        logger.warning("%s: %s are results of this software, and left out", folder, names)
    return [path for path in named if path not in results]


def _settle_mask(patient: Patient) -> Patient:
    """Return the patient whose "mask" covers the brain with that as its brain mask.

    Only masks whose names do not tell what they show are opened.
    """
    if patient.mask is None or not tells_no_finding(patient.mask):
        return patient
    try:
        scan = read_volume(next(iter(patient.images.values())))
        role = role_by_content(read_volume(patient.mask), scan)
    except VolumeError:  # said when the patient is read
        return patient
    if role != "brain_mask":
        return patient
    logger.warning("%s is a mask of the brain by its voxels, not of a lesion", patient.mask)
    return replace(patient, mask=None, brain_mask=patient.brain_mask or patient.mask)


def _warn_of_others(root: Path) -> None:
    """Say which folders with scans stand beside the patients of known layouts, and are not used."""
    matches = {path for layout in LAYOUTS for path in root.glob(layout.pattern)}
    used = {path.relative_to(root).parts[0] for path in matches} | {lay.masks for lay in LAYOUTS}
    scans = [path.relative_to(root).parts for path in _scan_files(root)]
    folders = {parts[0] for parts in scans if len(parts) == 2}
    if others := sorted(folders - used):
        logger.warning(
            "%s: %s left out, whose names are not those of the layout of the others; give folders "
            "with other names a data root of their own",
            root,
            some(others),
        )


def _patient(patient_id: str, roles: Iterable[tuple[str | None, Path]], source: str) -> Patient:
    files: dict[str, Path] = {}
    for role, path in roles:
        if role in files:
            raise ValueError(
                f"patient {patient_id} must have one {role} file, got {files[role]} and {path}; "
                "keep one, and give the folder that holds one folder per patient."
            )
        if role is not None:
            files[role] = path
    images = {modality: files[modality] for modality in MODALITIES if modality in files}
    return Patient(
        patient_id=patient_id,
        images=images,
        mask=files.get("mask"),
        brain_mask=files.get("brain_mask"),
        source=source,
    )


def _role_by_ending(path: Path, layout: Layout) -> str | None:
    stem = file_stem(path)
    return next((role for ending, role in layout.endings.items() if stem.endswith(ending)), None)


def _nothing_found(root: Path) -> str:
    if not root.is_dir():
        what = "a file" if root.is_file() else "not there"
        return f"the data root must be a folder, got {root}, which is {what}."
    names = sorted(path.name for path in root.iterdir())
    patterns = ", ".join(layout.pattern for layout in LAYOUTS)
    return (
        f"no known layout in {root}: looked for {patterns}, and for .nii or .nii.gz files named by "
        f"sequence (flair, t1ce, t1, t2, ...); found {some(names) if names else 'nothing'}."
    )
