"""Tell from names, descriptions and times what a file shows: its sequence or a kind of mask."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.endings import FOUND

SCAN_ENDINGS = (".nii.gz", ".nii", *FOUND)  # of files that are read as scans, in any case
# Endings of images that are not read, so that a folder can say so.
OTHER_FORMATS = (".mnc", ".nii.bz2", ".nii.xz", ".nii.zst", ".head", ".brik", ".par", ".rec")
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's raw data: one file per sequence

MODALITIES = ("t1", "t1ce", "t2", "flair")
MSD_FOLDER = "imagesTr"  # of MSD Task01, whose 4-D scans hold one sequence per volume
MSD_CHANNELS = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
# Words in the file names of any other folder; the first row that fits decides, so that T2_FLAIR is
# a FLAIR and flair_seg a mask.
DRAWN_WORDS = {"mask", "masks", "msk", "seg", "segm", "segmentation", "dseg", "label", "labels"}
DRAWN_WORDS |= {"otmulticlass", "roi", "annotation", "annot", "labelmap", "lesionmask", "probseg"}
DRAWN_WORDS |= {"gt", "aseg", "aparc", "wmparc", "parcellation", "pve", "mixeltype"}
# What a patient has: in the name of a mask, or of a scan.
FINDING_WORDS = {"lesion", "lesions", "tumor", "tumour", "gold", "truth", "groundtruth"}
FINDING_WORDS |= {"consensus", "wmh"}
MASK_WORDS = DRAWN_WORDS | FINDING_WORDS
BRAIN_WORDS = {"brain", "bet", "hdbet", "skullstrip", "skullstripped"}
CONTRAST_WORDS = {"ce", "gd", "gado", "gadolinium", "km", "post", "contrast"}
ROLE_WORDS = {
    "brain_mask": {"brainmask"},
    "mask": MASK_WORDS,
    "flair": {"flair", "t2f", "tirm"},  # scanners call a FLAIR t2_tirm_dark-fluid, too
    "t1ce": {"t1ce", "t1c", "t1gd", "t1post"},
    "t2": {"t2", "t2w"},
    "t1": {"t1", "t1n", "t1w"},
}
SEQUENCE_WORDS = set().union(*(ROLE_WORDS[name] for name in MODALITIES))
# Sequences that are none of the four: these words decide before T1 and T2, as in "t2 star" ...
OTHER_SEQUENCES = {
    "t2star": {"t2star", "t2starw", "t2s", "star"},
    "dwi": {"dwi", "dti", "adc", "ep2d", "diff", "diffusion", "hardi", "tracew"},
    "swi": {"swi", "swan"},
    "bold": {"bold", "fmri"},
    "asl": {"asl", "pcasl"},
    "perfusion": {"perf", "perfusion", "dsc", "dce"},
    "t1map": {"t1map"},
    "t2map": {"t2map"},
    "projection": {"mip", "minip"},
}
MAP_WORDS = {"map", "maps", "mapping"}  # of a time: "T2 map" is no T2
# ... and these only where neither is named.
WEAKER_WORDS = {
    "t1": {"mprage", "mp2rage", "bravo", "spgr", "fspgr", "tfl3d1"},
    "t1ce": {"gado"},
    "dwi": {"colfa", "tensor", "trace"},
    "pd": {"pd", "pdw", "dp"},
    "angiography": {"tof", "mra", "angio"},
    "localizer": {"localizer", "localiser", "scout", "survey", "scanogram"},
    "stir": {"stir"},
}
# Words of DICOM's ImageType, which no plain picture of a sequence has.
IMAGE_KINDS = {
    "dwi": {"ADC", "FA", "TRACEW", "DIFFUSION", "DIFFUSION_ANISO", "TENSOR", "EXP"},
    "perfusion": {"PERFUSION", "CBF", "CBV", "MTT", "TTP", "ASL"},
    "phase": {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"},
    "projection": {"MIP", "MNIP", "MINIP", "PROJECTION IMAGE"},
    "subtraction": {"SUB", "SUBTRACTION", "SUBTRACT"},
    "t1map": {"T1 MAP", "T1_MAP"},
    "t2map": {"T2 MAP", "T2_MAP"},
    "t2star": {"T2_STAR MAP", "T2* MAP", "R2_STAR MAP"},
    "localizer": {"LOCALIZER"},
}
# What is written together with a sequence, as in axT2, T2TSE, 3DFLAIR and ManualSegmentation.
SEQUENCE_INSIDE = re.compile(
    r"(?:ax|axial|tra|cor|sag|[23]d|w?r|w)?(t[12])(w?)(flair|f?se|tse|frfse|haste|space|spc|blade|"
    r"cube|mprage|spgr|bravo|ffe|gre|km|gd|gado|post|weighted|wi|dixon|map|tirm|ax|tra|cor|sag|)"
)
WORDS_INSIDE = ("flair", "mprage", "mp2rage", "segmentation")
NAMING_WORDS = set().union(CONTRAST_WORDS, {"brain"}, *ROLE_WORDS.values())
KNOWN_WORDS = NAMING_WORDS.union(BRAIN_WORDS, *OTHER_SEQUENCES.values(), *WEAKER_WORDS.values())


def channels_of(path: Path) -> dict[str, int]:
    """Return modality -> volume of a 4-D scan in a known layout, else nothing."""
    return MSD_CHANNELS if path.parent.name == MSD_FOLDER else {}


def ending_of(path: Path, endings: tuple[str, ...] = SCAN_ENDINGS) -> str:
    """Return which of these endings a file's name has, in any case; "" if none."""
    name = path.name.lower()
    return max((end for end in endings if name.endswith(end)), key=len, default="")


def file_stem(path: Path) -> str:
    """Return a file's name without the ending of a scan."""
    return path.name[: len(path.name) - len(ending_of(path))]


def scan_stem(scan: Path) -> str:
    """Return the name of a file, archive or folder without the ending of a scan."""
    name = Path(scan.absolute().name)
    return name.stem if name.suffix.lower() in (".zip", ".dcm") else file_stem(name)


def role_by_words(path: Path) -> str | None:
    """Return what words in a file's name say it is: a modality, "mask", "brain_mask" or None.

    A name that has both, such as tumor_007_t2, is a scan's where the sequence comes last; see
    `is_doubtful`.
    """
    words = _words(file_stem(path))
    if {"mask", "masks"} & set(words) and BRAIN_WORDS & set(words) - FINDING_WORDS:
        return "mask" if FINDING_WORDS & set(words) else "brain_mask"
    drawn = DRAWN_WORDS | ROLE_WORDS["brain_mask"]
    names_scan = words and not drawn & set(words) and _last_is_sequence(words)
    roles = MODALITIES if names_scan else ROLE_WORDS
    role = next(
        (role for role in ROLE_WORDS if role in roles and ROLE_WORDS[role] & set(words)), None
    )
    if role in MODALITIES and _other_sequence(set(words)):
        return None
    return "t1ce" if role == "t1" and set(words) & CONTRAST_WORDS else role


def is_doubtful(path: Path) -> bool:
    """Whether a name that has the word of a mask may be a scan's; its voxels tell.

    FreeSurfer's brainmask.mgz, too, is a scan.
    """
    if role_by_words(path) == "brain_mask" and "brainmask" in _words(file_stem(path)):
        return True
    words = [word for word in _words(file_stem(path)) if word in MASK_WORDS | SEQUENCE_WORDS]
    return bool(MASK_WORDS & set(words)) and words[-1] not in DRAWN_WORDS


def own_words(path: Path) -> list[str]:
    """Return the words of a name that tell neither its sequence nor a mask: whose it is."""
    stem = re.sub(r"[_-]desc-[A-Za-z0-9]+", "", scan_stem(path))  # BIDS: how it was made
    telling = set().union(CONTRAST_WORDS, BRAIN_WORDS, *ROLE_WORDS.values())
    return [word for word in _words(stem) if word not in telling]


def tells_no_finding(path: Path) -> bool:
    """Whether the name of a mask, such as p1_mask, does not tell what of: it may be the brain."""
    telling = FINDING_WORDS | DRAWN_WORDS - {"mask", "masks", "msk", "label", "labels"}
    return not telling & set(_words(file_stem(path)))


def _last_is_sequence(words: list[str]) -> bool:
    telling = [word for word in words if word in MASK_WORDS | SEQUENCE_WORDS]
    return bool(telling) and telling[-1] in SEQUENCE_WORDS


def _words(text: str) -> list[str]:
    """Return the words of a text; T2* is t2star, T1+C is t1c, and T2FLAIR is t2 and flair."""
    text = re.sub(r"\bt2\s?\*", "t2star ", text.lower())
    text = re.sub(r"dark[ _-]?fluid", " flair ", text)
    text = re.sub(r"(?<![a-z0-9])t1w?[ _+-]{1,3}c(?![a-z0-9])", "t1c", text)
    return [part for word in re.findall(r"[a-z0-9]+", text) for part in _take_apart(word)]


def _take_apart(word: str) -> list[str]:
    if word in KNOWN_WORDS:
        return [word]
    if match := SEQUENCE_INSIDE.fullmatch(word):
        whole = f"{match[1]}{match[3]}"
        return [whole] if whole in KNOWN_WORDS else [match[1], match[3]]
    if len(word) > 4 and word.endswith("mask"):
        return ["brain"] * word.startswith(("brain", "skull", "bet")) + ["mask"]
    return [part for part in WORDS_INSIDE if part in word] or [word]


def sequence_of(words: str) -> str | None:
    """Return the sequence that a name or description tells, such as "t2" or "dwi"; None if none."""
    names = set(_words(words))
    if other := _other_sequence(names):
        return other
    if "flair" in names and names & ROLE_WORDS["t1"] and not names & ROLE_WORDS["t2"]:
        return "t1ce" if names & CONTRAST_WORDS else "t1"  # T1-FLAIR: dark water, T1 contrast
    role = next(
        (role for role in ROLE_WORDS if role in MODALITIES and ROLE_WORDS[role] & names), None
    )
    role = role or next((key for key, telling in WEAKER_WORDS.items() if names & telling), None)
    return "t1ce" if role == "t1" and names & CONTRAST_WORDS else role


def _other_sequence(words: set[str]) -> str | None:
    """Return which sequence that is none of the four some words tell, or None."""
    for sequence in ("t1", "t2"):
        if words & MAP_WORDS and words & ROLE_WORDS[sequence]:
            return f"{sequence}map"
    return next((name for name, telling in OTHER_SEQUENCES.items() if words & telling), None)


def kind_of_image(image_type: Sequence[str]) -> str | None:
    """Return what DICOM's ImageType says a picture is, such as "phase"; None: a plain picture."""
    words = {value.strip().upper() for value in image_type[2:]}  # DERIVED, PRIMARY say less
    return next((kind for kind, telling in IMAGE_KINDS.items() if words & telling), None)


def read_channels(paths: Iterable[Path]) -> dict[Path, str | None]:
    """Return the sequences of nnU-Net's files, such as case_0003.nii.gz, by their dataset.json.

    None where several files belong together and nothing tells their sequences.
    """
    groups: dict[tuple[Path, str], dict[Path, str]] = defaultdict(dict)
    for path in paths:
        if (match := CHANNEL.fullmatch(file_stem(path))) and sequence_of(match[1]) is None:
            groups[path.parent, match[1]][path] = match[2]
    channels: dict[Path, str | None] = {}
    for (folder, _), numbers in groups.items():
        names = read_channel_names(folder)
        if names is None and not folder.name.startswith("images"):
            continue  # patients with numbers
        told = {path: sequence_of((names or {}).get(int(n), "")) for path, n in numbers.items()}
        if len(told) > 1 or all(told.values()):
            channels |= told
    return channels


def read_channel_names(folder: Path) -> dict[int, str] | None:
    """Return number -> name of the channels in nnU-Net's dataset.json; None without that file."""
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = content.get("channel_names") or content.get("modality")
            return {int(number): str(name) for number, name in names.items()}
        except (OSError, ValueError, AttributeError):
            continue
    return None


@dataclass(frozen=True)
class Statement:
    """What a file says of its sequence.

    Attributes:
        words: for people, such as "its name says flair".
        fits: the sequences that agree with it.
    """

    words: str
    fits: frozenset[str]


@dataclass(frozen=True)
class Times:
    """Echo, repetition and inversion time of a scan in ms; None where a file does not tell."""

    echo: float | None = None
    repetition: float | None = None
    inversion: float | None = None


def say_sequence(source: str, sequence: str | None) -> list[Statement]:
    """Return the statement that `source`, such as "its name", tells a sequence; none for None."""
    return [Statement(f"{source} says {sequence}", frozenset({sequence}))] if sequence else []


# Bounds in ms, chosen wide around usual protocols at 1.5 and 3 T: what lies between them tells
# nothing.
LONGEST_T1_ECHO, SHORTEST_T2_ECHO = 30.0, 60.0
SHORTEST_T2_REPETITION = 1000.0
SHORTEST_FLAIR_INVERSION = 1300.0
T1_KINDS, T2_KINDS = frozenset({"t1", "t1ce"}), frozenset({"t2", "flair"})


def say_times(times: Times) -> list[Statement]:
    """Return what echo, repetition and inversion time tell of the sequence."""
    echo, inversion, said = times.echo or 0, times.inversion or 0, []
    if 1 <= echo <= LONGEST_T1_ECHO:
        said.append(Statement(f"its echo time of {echo:g} ms is that of a t1", T1_KINDS))
    elif echo >= SHORTEST_T2_ECHO:
        said.append(Statement(f"its echo time of {echo:g} ms is that of a t2 or flair", T2_KINDS))
    if 0 < (repetition := times.repetition or 0) < SHORTEST_T2_REPETITION:
        said.append(
            Statement(f"its repetition time of {repetition:g} ms is that of a t1", T1_KINDS)
        )
    if inversion and not 1 <= echo <= LONGEST_T1_ECHO:  # some T1 are inverted for as long
        long = inversion >= SHORTEST_FLAIR_INVERSION
        kinds = frozenset({"flair"}) if long else T1_KINDS | {"t2"}
        words = f"its inversion time of {inversion:g} ms is {'' if long else 'not '}that of a flair"
        said.append(Statement(words, kinds))
    return said


def times_in(text: str) -> Times:
    """Return the times in ms in a text such as TR=2300ms/TE=2.98ms, as converters write it."""
    found = dict(re.findall(r"\b(T[ERI])\s?=\s?([0-9]{1,6}(?:\.[0-9]{1,6})?)", text))
    echo, repetition, inversion = (float(found.get(name, 0)) for name in ("TE", "TR", "TI"))
    return Times(echo, repetition if repetition >= 100 else None, inversion)  # a 9 may be seconds
