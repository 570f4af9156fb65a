"""Choose where results go where nobody says so: beside the scans, never over anything."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..files import common_folder, first_line, require_writable
from ..provenance import JOURNALS


def make_results_folder(scans: Sequence[Path], resume: bool) -> Path:
    """Return a folder beside the scans that no results are in, or with `resume` the last run's.

    It is called `<name>_rasalore` after a scan or folder of scans, and `<name>_and_2_more_rasalore`
    after the first of several, then in the folder that holds all of them. Where that name is
    taken, `_2` and so on is added.

    Args:
        scans: as given on the command line.

    Raises:
        ValueError: there is no such scan, or the folder beside it takes no files.
    """
    paths = [Path(os.path.abspath(scan)) for scan in scans if scan.exists()]  # links keep names
    if not paths:
        raise ValueError(f"{scans[0]}: no such file or folder; correct the name.")
    parent = common_folder(path.parent for path in paths)
    more = f"_and_{len(scans) - 1}_more" * (len(scans) > 1)
    return make_new_folder(parent, f"{_name_of(paths[0])}{more}_rasalore", resume)


def make_new_folder(parent: Path, name: str, resume: bool = False) -> Path:
    """Return a new or empty folder `name`, `name_2` and so on, made in `parent`.

    Args:
        resume: return the last of them instead, where a run left its journal in one.

    Raises:
        ValueError: `parent` takes no files.
    """
    taken = list(itertools.takewhile(Path.exists, _numbered(parent, name)))
    begun = [folder for folder in taken if (folder / JOURNALS).is_dir()]
    if resume and begun:
        return require_writable(begun[-1])
    for folder in _numbered(parent, name):
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir() or any(folder.iterdir()):
                continue
        except OSError as error:
            raise ValueError(
                f"results go beside the scan, but {first_line(error)} Say where they go with "
                "--out FOLDER."
            ) from error
        return folder
    raise AssertionError("numbers do not end")


def _name_of(path: Path) -> str:
    from ..scans.naming import scan_stem  # here: it imports numpy

    return path.name if path.is_dir() else scan_stem(path)


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    for number in itertools.count(2):
        yield parent / f"{name}_{number}"
