"""Read files of a folder, of a web address or of a data set on the Hub, piece by piece.

Remote files are read with HTTP range requests, each repeated until it succeeds or the network is
gone for good, so that a long run survives a short cut. Nothing is kept on the disk.

fsspec's files behind HTTP need aiohttp, are wrong from servers without ranges, and do not survive a
cut; the client of huggingface_hub reaches no address at all where the Hub is switched off.
"""

import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

WAITS = (0.5, 1, 2, 4, 8, 16, 32)  # seconds before each further attempt
TIMEOUT = 60
PATIENCE = 4  # seconds in which the Hub must answer when a program starts
WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}
REPO_ID = r"[\w.-]+/[\w.-]+"

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def is_remote(root: str | Path) -> bool:
    """Whether a root is a web address, or a repo id that is no folder here.

    A repo id is user/name or user/name@revision.
    """
    text = str(root)
    if text.startswith(("http://", "https://")):
        return True
    return bool(re.fullmatch(rf"{REPO_ID}(@[\w.-]+)?", text)) and not Path(text).exists()


def is_repo_id(text: str) -> bool:
    """Whether a text may name a repository on the Hub, user/name."""
    return bool(re.fullmatch(REPO_ID, text))


def require_model_source(name: str) -> None:
    """Raise ValueError for what names neither a folder nor a repository."""
    if not Path(name).is_dir() and not is_repo_id(name):
        raise ValueError(f"--model needs an existing folder or a repo id (owner/name), got {name}.")


def hub_answers() -> bool:
    """Whether the Hub can be asked; found out once per process, in seconds."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(address: str) -> bool:
    from huggingface_hub.utils import get_session

    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):  # of any library below: no answer is an answer
            answers.append(get_session().head(address, timeout=PATIENCE).status_code)

    # Not longer than this: names are looked up without a limit.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return bool(answers)


@contextmanager
def without_waiting_for_hub(name: str | None) -> Iterator[None]:
    """Let libraries load a repository from its cache alone where the Hub does not answer.

    They would try again for half a minute per file.

    Args:
        name: repo id; for a folder or None nothing is asked.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        if name and not Path(name).is_dir():
            constants.HF_HUB_OFFLINE = not hub_answers()
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def read_model_config(name: str, revision: str = "main") -> dict[str, Any]:
    """Return config.json of a model's folder or repository, in seconds and without torch.

    Raises:
        ValueError: neither a folder nor a repo id, or none that can be read.
    """
    require_model_source(name)
    path = Path(name) / "config.json"
    if not path.parent.is_dir():
        path = _download_config(name, revision)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--model needs a folder with a config.json, got {name}.") from error
    return content if isinstance(content, dict) else {}


def _download_config(name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with without_waiting_for_hub(name):
            return Path(hf_hub_download(name, "config.json", revision=revision))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"--model {name} is no folder here and not among the models downloaded before, and the "
            "Hub does not answer; correct the name, or download the model where there is a network."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"--model {name} is no folder here, and the Hub has no model of this name and revision "
            f"({revision}) that you may read; correct it, or log in with `hf auth login`."
        ) from error


def read_bytes(root: str | Path, name: str) -> bytes:
    """Return a whole file below a root.

    Raises:
        FileNotFoundError: there is none; OSError: it cannot be read, or the network stays away.
    """
    if not is_remote(root):
        return (Path(root) / name).read_bytes()
    return _retry(partial(_fetch, str(root), name, None))


def open_file(root: str | Path, name: str, size: int) -> BinaryIO:
    """Return a file below a root, opened for reading from any place; `size` is its length."""
    if not is_remote(root):
        return (Path(root) / name).open("rb")
    return io.BufferedReader(RemoteFile(str(root), name, size), 2**16)


class RemoteFile(io.RawIOBase):
    """A file behind HTTP: each read is one range request."""

    def __init__(self, root: str, name: str, size: int):
        self.root, self.name, self.size, self.position = root, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.position + len(buffer), self.size)
        if end <= self.position:
            return 0
        span = (self.position, end)
        buffer[: end - self.position] = _retry(partial(_fetch, self.root, self.name, span))
        count, self.position = end - self.position, end
        return count


def _retry(fetch: Callable[[], Result]) -> Result:
    """Return what `fetch` returns once the network lets it; it raises what cannot change."""
    for wait in WAITS:
        try:
            return fetch()
        except (OSError, HTTPException) as error:
            final = isinstance(error, HTTPError) and error.code not in WORTH_RETRYING
            if final or isinstance(error, FileNotFoundError):
                raise
            logger.warning("reading goes on in %g s: %s", wait, error or type(error).__name__)
            time.sleep(wait)
    return fetch()


def _fetch(root: str, name: str, span: tuple[int, int] | None) -> bytes:
    """Return a file or the bytes of it from span[0] to before span[1]."""
    request = Request(_address(root, name))
    for key, value in _headers(root).items():
        request.add_unredirected_header(key, value)  # a token is for the Hub, not for its storage
    if span:
        request.add_header("Range", f"bytes={span[0]}-{span[1] - 1}")
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            content: bytes = answer.read()
            whole = answer.status == 200  # a plain server that does not know ranges
    except HTTPError as error:
        if error.code in (401, 403, 404):
            raise FileNotFoundError(f"{root} has no {name} that may be read: {error}.") from error
        raise
    content = content[slice(*span)] if span and whole else content
    if span and len(content) != span[1] - span[0]:
        raise OSError(f"{root}/{name}: {len(content)} bytes came instead of {span[1] - span[0]}")
    return content


def _address(root: str, name: str) -> str:
    if "://" in root:
        return f"{root.rstrip('/')}/{quote(name)}"
    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise FileNotFoundError(f"HF_HUB_OFFLINE is set, so {root} is not asked for {name}.")
    repo, _, revision = root.partition("@")
    return hf_hub_url(repo, name, repo_type="dataset", revision=revision or None)


def _headers(root: str) -> dict[str, str]:
    if "://" in root:
        return {}
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers()
