"""Uploaded files: read once, by the request they were sent for, and deleted."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UploadRegister:
    """Counts how often each file was uploaded, and deletes it once it was read as often.

    Gradio stores equal files of different people under one path, so the first reader must not
    delete what the second one waits for.
    """

    def __init__(self) -> None:
        self._uploads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, paths: list[str]) -> None:
        """Note one upload of each of these files."""
        with self._lock:
            self._uploads.update(paths)

    @contextmanager
    def reading(self, path: str) -> Iterator[Path]:
        """Give the path of an uploaded file, which is deleted afterwards, whatever happened.

        Raises:
            ValueError: the file was not uploaded, or was read before.
        """
        with self._lock:
            known = self._uploads[path] > 0
        if not known or not Path(path).is_file():
            raise ValueError("The scan is no longer here: choose the file again.")
        try:
            yield Path(path)
        finally:
            with self._lock:
                self._uploads[path] -= 1
                if self._uploads[path] < 1:
                    del self._uploads[path]
                    Path(path).unlink(missing_ok=True)


class UploadWatch:
    """ASGI middleware that tells an `UploadRegister` what Gradio's upload route has stored."""

    def __init__(self, app: Any, register: UploadRegister):
        self.app = app
        self.register = register

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        body = b""

        async def listen(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body"):
                    self.register.add(stored_paths(body))
            await send(message)

        await self.app(scope, receive, listen)


def stored_paths(body: bytes) -> list[str]:
    """The paths in an answer of the upload route; none where it is an error."""
    try:
        paths = json.loads(body)
    except ValueError:
        return []
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
