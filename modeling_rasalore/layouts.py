"""Which scans, masks and slice labels a folder holds: one table for the known data-set layouts."""

import csv
import difflib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .remote_files import is_remote, read_bytes

MODALITIES = ("t1", "t1ce", "t2", "flair")
ALL = "all"  # in place of a modality: all of them as channels, in this order
LABELS_FILE = "slice_labels.csv"
SLICES_FILE = "slices.json"  # what a folder of prepared slices holds
INDEX_FILE = "index.parquet"
SLICES_FORMAT = "rasalore slices 1"
LABEL_WORDS = {"healthy": 0, "0": 0, "unhealthy": 1, "1": 1}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedSlices:
    """Where the slices of one patient lie in a folder of train/prepare_slices.py.

    Attributes:
        root: the folder, web address or repo id.
        part: name of the Parquet file, below data/ and without ending.
        part_bytes: its length.
        row_group: which row group of it is this patient's.
        mask_bytes: length of the file of the same name below masks/; None where there is none.
        skip: how many of the first and of the last slices were left out.
    """

    root: str
    part: str
    part_bytes: int
    row_group: int
    mask_bytes: int | None = None
    skip: int = 0


@dataclass(frozen=True)
class Patient:
    """One patient folder (or file) of a data set; nothing is opened until slices are read.

    Attributes:
        patient_id: the folder's name, or the file's name without sequence and ending.
        images: modality ("t1", "t1ce", "t2", "flair") -> scan.
        channels: modality -> channel, where one 4-D file holds all modalities; else empty.
        mask: label map, any value above 0 being lesion; None if there is none.
        brain_mask: 1 inside the brain; None where the scans' background is known otherwise.
        slice_labels: slice index (0 = most inferior) -> 1 unhealthy, 0 healthy; None without a
            labels file, and then the mask decides.
        source: name of the layout.
        prepared: where the slices are, for patients without scans; `images` and `mask` then only
            say what there is.
    """

    patient_id: str
    images: dict[str, Path]
    channels: dict[str, int] = field(default_factory=dict)
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: dict[int, int] | None = None
    source: str = "folder"
    prepared: PreparedSlices | None = None

    @property
    def person(self) -> str:
        """Who was scanned: BraTS23 folders end in a time point, so one person may have several."""
        return (
            re.sub(r"-\d{3}$", "", self.patient_id) if self.source == "BraTS23" else self.patient_id
        )


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
LAYOUTS = (
    Layout("BraTS20", "BraTS20_Training_*", {**BRATS_ENDINGS, "_Segm": "mask"}),
    Layout("BraTS21", "BraTS2021_*", BRATS_ENDINGS),
    Layout("BraTS23", "BraTS-GLI-*", GLI_ENDINGS),
    Layout(
        "MSD Task01",
        "imagesTr/*.nii.gz",
        channels={"flair": 0, "t1": 1, "t1ce": 2, "t2": 3},
        masks="labelsTr",
    ),
)

# Words in the file names of any other folder; the first row that fits decides, so that T2_FLAIR is
# a FLAIR and flair_seg a mask.
MASK_WORDS = {"mask", "seg", "segm", "segmentation", "dseg", "label", "labels", "lesion", "lesions"}
MASK_WORDS |= {"tumor", "tumour", "gold", "truth", "otmulticlass"}
CONTRAST_WORDS = {"ce", "gd", "gadolinium", "post", "contrast"}
ROLE_WORDS = {
    "brain_mask": {"brainmask"},
    "mask": MASK_WORDS,
    "flair": {"flair", "t2f", "tirm"},  # scanners call a FLAIR t2_tirm_dark-fluid, too
    "t1ce": {"t1ce", "t1c", "t1gd", "t1post"},
    "t2": {"t2", "t2w"},
    "t1": {"t1", "t1n", "t1w"},
}
NAMING_WORDS = set().union(CONTRAST_WORDS, {"brain"}, *ROLE_WORDS.values())


def find_patients(root: str | Path) -> list[Patient]:
    """Return the patients below `root`, sorted by patient_id.

    Known layouts: BraTS20, BraTS21, BraTS23, MSD Task01; else any folder of patient folders (or of
    plain files) whose names tell the sequence. `slice_labels.csv` (columns volume = patient_id,
    slice_index, label = healthy or unhealthy, or 0 or 1) in `root` gives the slice labels. Slices
    of train/prepare_slices.py are read from a folder, a web address or a data set's repo id.

    Raises:
        ValueError: nothing recognised, two files for one role, a patient with neither a mask nor
            slice labels, or a labels file that is malformed or names an unknown patient.
    """
    if is_remote(root) or (Path(root) / SLICES_FILE).is_file():
        return _find_prepared(str(root))
    root = Path(root)
    patients = [patient for layout in LAYOUTS for patient in _match(root, layout)]
    patients = patients or _match_names(root)
    if not patients:
        raise ValueError(_nothing_found(root))
    patients.sort(key=lambda patient: patient.patient_id)
    labels_path = root / LABELS_FILE
    if labels_path.is_file():
        return _with_labels(patients, labels_path)
    unlabelled = [patient.patient_id for patient in patients if patient.mask is None]
    if unlabelled:
        raise ValueError(
            f"every patient needs a mask or slice labels, but {some(unlabelled)} in {root} have "
            f"no mask; add the mask files, or a {LABELS_FILE} with the columns volume, "
            "slice_index, label (healthy or unhealthy)."
        )
    return patients


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
            place = PreparedSlices(
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
                    mask=path if place.mask_bytes else None,
                    source=entry["source"],
                    prepared=place,
                )
            )
    return sorted(patients, key=lambda patient: patient.patient_id)


def _match(root: Path, layout: Layout) -> list[Patient]:
    patients = []
    for match in sorted(root.glob(layout.pattern)):
        if match.name.startswith("."):  # "._name" files are left behind by macOS archives
            continue
        if layout.channels:
            mask = root / layout.masks / match.name
            patients.append(
                Patient(
                    patient_id=_stem(match),
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


def _match_names(root: Path) -> list[Patient]:
    """Return the patients of a folder of patient folders, or of plain files, by words in names."""
    found: dict[str, list[tuple[str | None, Path]]] = {}
    levels = ("*", "*/*", "*/*/*", "*/*/*/*")  # "**" would not enter linked folders
    for path in (path for level in levels for path in nifti_files(root, level)):
        parts = path.relative_to(root).parts
        patient_id = parts[0] if len(parts) > 1 else _name_before_role(path)
        found.setdefault(patient_id, []).append((role_by_words(path), path))
    patients = [_patient(patient_id, roles, "folder") for patient_id, roles in found.items()]
    return [patient for patient in patients if patient.images]


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


def nifti_files(folder: Path, pattern: str) -> list[Path]:
    """Return the .nii and .nii.gz files that match, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.glob(pattern))
        if path.name.endswith((".nii", ".nii.gz"))
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _role_by_ending(path: Path, layout: Layout) -> str | None:
    stem = _stem(path)
    return next((role for ending, role in layout.endings.items() if stem.endswith(ending)), None)


def role_by_words(path: Path) -> str | None:
    """Return what words in a file's name say it is: a modality, "mask", "brain_mask" or None."""
    words = set(re.findall(r"[a-z0-9]+", _stem(path).lower()))
    if {"brain", "mask"} <= words:
        return "brain_mask"
    role = next((role for role, names in ROLE_WORDS.items() if words & names), None)
    return "t1ce" if role == "t1" and words & CONTRAST_WORDS else role


def _name_before_role(path: Path) -> str:
    """Return what comes before (else after) the words that tell the sequence: case7_t2 -> case7."""
    stem = _stem(path)
    words = list(re.finditer(r"[A-Za-z0-9]+", stem))
    roles = [word for word in words if word.group().lower() in NAMING_WORDS]
    if not roles:
        return stem
    return (stem[: roles[0].start()] or stem[roles[-1].end() :]).strip("_-. ")


def _with_labels(patients: Sequence[Patient], path: Path) -> list[Patient]:
    labels = _read_labels(path)
    known = [patient.patient_id for patient in patients]
    for volume in labels:
        if volume not in known:
            nearest = difflib.get_close_matches(volume, known, n=1, cutoff=0) or known[:1]
            raise ValueError(
                f"{path}: volume {volume!r} is no patient in this folder; the nearest known one "
                f"is {nearest[0]!r}."
            )
    unnamed = [patient_id for patient_id in known if patient_id not in labels]
    if unnamed:
        logger.warning("%s names no slice of %s", path, some(unnamed))
    return [
        replace(patient, slice_labels=labels.get(patient.patient_id, {})) for patient in patients
    ]


def _read_labels(path: Path) -> dict[str, dict[int, int]]:
    """Return volume -> slice index -> label; every slice may be named once."""
    labels: dict[str, dict[int, int]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"volume", "slice_index", "label"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: the first line must name the columns volume, slice_index and label; "
                f"{', '.join(sorted(missing))} not found in {rows.fieldnames}."
            )
        for row in rows:
            index, label = row["slice_index"] or "", LABEL_WORDS.get(str(row["label"]).lower())
            if label is None or not index.isdecimal():
                raise ValueError(
                    f"{path}, line {rows.line_num}: a row needs a slice_index counted from 0 and "
                    f"a label healthy or unhealthy (or 0 or 1), got {list(row.values())}."
                )
            slices = labels.setdefault(row["volume"], {})
            if slices.setdefault(int(index), label) != label:
                raise ValueError(
                    f"{path}, line {rows.line_num}: slice {index} of {row['volume']} is both "
                    "healthy and unhealthy; keep one of the two rows."
                )
    return labels


def _nothing_found(root: Path) -> str:
    if not root.is_dir():
        return f"the data root must be a folder, got {root}, which is not there."
    found = sorted(path.name for path in root.iterdir())
    patterns = ", ".join(layout.pattern for layout in LAYOUTS)
    return (
        f"no known layout in {root}: looked for {patterns}, and for .nii or .nii.gz files named by "
        f"sequence (flair, t1ce, t1, t2, ...); found {some(found) if found else 'nothing'}."
    )


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beyond them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
