"""Have the brain of a whole head extracted by a program of others that the user installed.

None of them is a dependency. Each gets the scan as NIfTI in a folder of its own and gives a mask
back; where its command is missing, a sentence says how to install it.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ..files import printable
from ..scans.header_guard import VolumeError
from ..scans.naming import own_words, role_by_words
from ..scans.volume_writing import write_volume
from ..scans.volumes import Volume, read_mask, read_volume

NO_STRIP = "none"  # the user's word that the scan shows the brain alone
BRAIN_ML = (900.0, 2000.0)  # of adults, with the fluid around it
WHOLE_MM = 120.0  # along each axis; shorter scans may show a part of a brain
Words = Callable[[Path, Path], list[str]]  # scan, mask -> the words of a command


@dataclass(frozen=True)
class Extractor:
    """A program that makes a mask of the brain.

    Attributes:
        command: the first word of its command; of a Python package, its name.
        install: how to get it, in words.
        words: scan, mask -> the words of its command.
        sequences: those it was made for; empty: all.
        is_package: whether it runs in this Python rather than by a command of its own.
    """

    command: str
    install: str
    words: Words
    sequences: frozenset[str] = frozenset()
    is_package: bool = False

    @property
    def is_installed(self) -> bool:
        if self.is_package:
            return find_spec(self.command) is not None
        return shutil.which(self.command) is not None


DEEPBET = "import sys; from deepbet import run_bet; run_bet(sys.argv[1:2], mask_paths=sys.argv[2:])"
EXTRACTORS = {
    "deepbet": Extractor(
        "deepbet",
        "pip install deepbet",
        lambda scan, mask: [sys.executable, "-c", DEEPBET, str(scan), str(mask)],
        frozenset({"t1"}),
        is_package=True,
    ),
    "hd-bet": Extractor(
        "hd-bet",
        "pip install hd-bet",
        # It adds _bet to the name of the image it would write.
        lambda scan, mask: [
            *("hd-bet", "-i", str(scan), "-o", str(mask).replace("_bet.nii.gz", ".nii.gz")),
            *("-device", _device(), "--disable_tta", "--save_bet_mask", "--no_bet_image"),
        ],
    ),
    "synthstrip": Extractor(
        "mri_synthstrip",
        "install FreeSurfer 7.3 or later, whose mri_synthstrip it is",
        lambda scan, mask: ["mri_synthstrip", "-i", str(scan), "-m", str(mask)],
    ),
    "brainchop": Extractor(
        "brainchop",
        "pip install brainchop",
        lambda scan, mask: [
            *("brainchop", str(scan), "--skull-strip", "--inverse-conform", "--no-optimize"),
            *("--mask", str(mask), "-o", str(mask.with_name("image.nii.gz"))),
        ],
    ),
}


def _device() -> str:
    """Return the kind of device of this machine, as programs that need to be told call it."""
    import torch  # here: not every process computes

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def require_extractor(name: str) -> None:
    """Raise ValueError for an unknown name, and for a program that is not installed."""
    if name == NO_STRIP:
        return
    if name not in EXTRACTORS:
        raise ValueError(f"--strip must be {', '.join(EXTRACTORS)} or {NO_STRIP}, got {name}.")
    extractor = EXTRACTORS[name]
    if not extractor.is_installed:
        raise ValueError(
            f"--strip {name} needs the program {extractor.command}, which is not installed: "
            f"{extractor.install}, or choose another of {', '.join(EXTRACTORS)}."
        )


def extract_brain(volume: Volume, name: str) -> tuple[NDArray[np.bool_], str]:
    """Return where the brain of a head is, (S, H, W) bool, and what told that, for people.

    A program for T1 alone gets the T1 scan of the same person beside a scan of another sequence.

    Args:
        volume: the head.
        name: of the program, one of `EXTRACTORS`.

    Raises:
        ValueError: the program is missing, failed, or gave a mask that can be no brain's.
    """
    require_extractor(name)
    extractor, source = EXTRACTORS[name], f"the mask of {name}"
    head = volume
    if extractor.sequences and volume.sequence not in extractor.sequences:
        head = _find_fitting_scan(volume, name, extractor.sequences)
        source += f" for {head.path.name}"
    brain = _run(extractor, name, head)
    millilitres = np.count_nonzero(brain) * volume.geometry.voxel_mm3 / 1000
    least = BRAIN_ML[0] if min(volume.geometry.extent) >= WHOLE_MM else 0
    if not least < millilitres <= BRAIN_ML[1]:
        raise VolumeError(
            f"{volume.path}: a brain has {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL, but the mask "
            f"of {name} has {millilitres:.0f}; try another program, or give --brain-mask."
        )
    return brain, source


def _run(extractor: Extractor, name: str, volume: Volume) -> NDArray[np.bool_]:
    """Return the mask that a program makes of a scan, (S, H, W) bool."""
    with TemporaryDirectory() as folder:
        scan, mask = Path(folder) / "scan.nii.gz", Path(folder) / "brain_bet.nii.gz"
        write_volume(scan, volume.slices, volume, np.float32)
        words = extractor.words(scan, mask)
        ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode or not mask.is_file():
            lines = (ended.stderr or ended.stdout).strip().splitlines() or ["it wrote no mask"]
            reason = printable(lines[-1]).rstrip(".")
            raise VolumeError(
                f"{volume.path}: --strip {name} failed: {reason}; try another program, or give "
                "--brain-mask."
            )
        return read_mask(mask, volume) > 0


def _find_fitting_scan(volume: Volume, name: str, sequences: frozenset[str]) -> Volume:
    """Return the scan beside another one that a program can strip: same person, same grid."""
    whose, folder = own_words(volume.path), volume.path.absolute().parent
    wanted = " or ".join(sorted(sequences))
    paths = [
        path
        for path in sorted(folder.iterdir())
        if role_by_words(path) in sequences and own_words(path) == whose
    ]
    if len(paths) != 1:
        own = f"say --modality {wanted} if this is one, " * (volume.sequence is None)
        raise VolumeError(
            f"{volume.path}: --strip {name} is made for {wanted}; it needs one such scan of the "
            f"same person beside this one, got {len(paths)}; {own}choose another program, or give "
            "--brain-mask."
        )
    head = read_volume(paths[0])
    same_shape = head.slices.shape == volume.slices.shape
    if not same_shape or head.geometry.offset_from(volume.geometry) > min(volume.spacing):
        raise VolumeError(
            f"{volume.path}: --strip {name} is made for {wanted}, and {head.path.name} beside it "
            "lies on another grid; resample one of them, or choose another program."
        )
    return head
