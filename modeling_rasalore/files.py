"""Write files that appear complete or not at all, and look through folders."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCAN_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)  # of one scan; the others go on
PLANS = ("settings.json", "split.json", "study.yaml")  # what a run writes before its first result


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beyond them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def printable(text: str) -> str:
    """Return one line that any UTF-8 file or terminal takes: odd bytes of names as \\udce9."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def common_folder(folders: Iterable[Path]) -> Path:
    """Return the folder that all of them lie in; ValueError for folders on several drives."""
    try:
        return Path(os.path.commonpath(list(folders)))
    except ValueError as error:
        raise ValueError(
            "scans of one run must lie on one drive; start one run for each drive."
        ) from error


def replace_file(path: Path, write: Callable[[Path], Any]) -> Path:
    """Return `path` after `write` filled a file beside it that then took its place.

    The draft keeps the end of the name, which many writers choose their format by.
    """
    draft = path.with_name(f".{secrets.randbelow(10**12)}-{path.name}")  # for any machine
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Return `path`, holding `content` as JSON for people to read; NaN and infinity are refused."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def remove_drafts(folder: Path, but: Collection[str] = ()) -> None:
    """Delete what killed processes left half written below a folder nobody else writes to.

    Args:
        but: names of files that somebody else may be writing; their drafts stay.
    """
    for path in folder.rglob(".*"):
        draft = re.fullmatch(r"\.\d+-(.+)", path.name)
        if draft and draft[1] not in but and path.is_file():
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hash of a file, or of the names and contents of the files right in a folder."""
    if path.is_dir():
        return sha256_of_files([p for p in path.iterdir() if p.is_file()])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the hash of the names and contents of files, in any order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(os.fsencode(f"{path.name}\0{sha256_of(path)}\n"))
    return digest.hexdigest()


def learned_hash(folder: Path) -> str:
    """Return the hash of what a run left for others in its folder: its weights, or its masks."""
    masks = (folder / "masks").glob("*.parquet")
    return sha256_of_files(p for p in (folder / "model.safetensors", *masks) if p.is_file())


def require_writable(folder: Path, option: str = "--out") -> Path:
    """Return `folder`, made where it is not there; it takes files.

    Args:
        option: how people gave it.

    Raises:
        ValueError: it cannot be made, or takes no file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / ".writable", lambda draft: draft.touch()).unlink()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ValueError(
            f"{option} needs a folder that takes files, got {folder}: {reason}; name another one."
        ) from error
    return folder


def claim_folder(folder: Path, settings: dict[str, Any], held: str) -> Path:
    """Return `folder`, made where it is not there, holding settings.json.

    A folder where a run of other settings left nothing but its plans is taken over.

    Args:
        held: what it holds, in words, such as "masks".

    Raises:
        ValueError: results of other settings are in it, and would be mixed with these.
    """
    path = require_writable(folder, "out=") / "settings.json"
    same = not path.exists() or json.loads(path.read_text(encoding="utf-8")) == settings
    if not same and _holds_results(folder):
        raise ValueError(
            f"{folder} holds {held} made with other settings (see settings.json there); give "
            "out=<another folder> or delete it."
        )
    write_json(path, settings)
    return folder


def _holds_results(folder: Path) -> bool:
    """Whether a folder has files besides the plans and drafts that a failed start leaves."""
    names = (path.name for path in folder.rglob("*") if path.is_file())
    return any(name not in PLANS and not re.match(r"\.\d+-", name) for name in names)


def first_line(error: BaseException) -> str:
    """Return one line about an error: the first of its text, or the name of its class without any.

    What the system says of a file is put into words that begin with the file's name.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}."
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class LeftOut:
    """What is not used of what was given.

    Attributes:
        path: a file or folder.
        reason: one sentence that does not name it.
        files: how many files it stands for.
    """

    path: Path
    reason: str
    files: int = 1


@dataclass
class Tree:
    """The files below a folder.

    Attributes:
        files: sorted, links to files among them, broken ones too.
        left_out: folders that cannot be opened, and links to folders that were looked through.
        hidden: files and folders whose names begin with a dot.
    """

    files: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    hidden: int = 0


def walk(root: Path) -> Tree:
    """Return the files below a folder; folders that are links are followed, each folder once."""
    tree, seen = Tree(), set[str]()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # a folder's own name comes first
        real = os.path.realpath(folder)
        try:
            inside = [] if real in seen else sorted(folder.iterdir())
        except OSError as error:
            tree.left_out.append(LeftOut(folder, f"cannot be opened: {error.strerror}", 0))
            continue
        if real in seen:
            reason = "a link to a folder that is looked through by another name"
            tree.left_out.append(LeftOut(folder, reason, 0))
        seen.add(real)
        for path in inside:
            if path.name.startswith("."):
                tree.hidden += 1
            elif path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            else:
                tree.files.append(path)
    tree.files.sort()
    return tree
