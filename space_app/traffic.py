"""What passes between browsers and Gradio's own routes, watched for files that must not stay."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gradio_client.utils import is_http_url_like
from uploads import UploadRegister, delete_with_folder

FILE_ROUTE, UPLOAD_ROUTE = "/file=", "/upload"


class HandedOver:
    """Results that wait on disk for the program that asked for them."""

    def __init__(self) -> None:
        self._paths: set[str] = set()

    def add(self, path: str) -> None:
        """Note a file that is to be fetched once."""
        self._paths.add(path)

    def fetched(self, path: str) -> None:
        """Delete the file, if it is one of these."""
        if path in self._paths:
            self._paths.discard(path)
            delete_with_folder(path)


class FileWatch:
    """ASGI middleware: tells the register what was stored, deletes results once they were fetched.

    It also closes the route by which Gradio would fetch any address for anyone.
    """

    def __init__(self, app: Any, register: UploadRegister, handed_over: HandedOver):
        self.app = app
        self.register = register
        self.handed_over = handed_over

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path.endswith(UPLOAD_ROUTE):
            await self.watch_upload(scope, receive, send)
        elif FILE_ROUTE in path:
            await self.watch_file(scope, receive, send, path.partition(FILE_ROUTE)[2])
        else:
            await self.app(scope, receive, send)

    async def watch_upload(self, scope: Any, receive: Any, send: Any) -> None:
        """Count the files of an upload before anyone learns their names."""
        body = b""
        with ExitStack() as stack:

            async def read() -> Any:
                message = await receive()
                if not message.get("more_body"):  # Gradio has it all and stores it now
                    stack.enter_context(self.register.storing())
                return message

            async def listen(message: Any) -> None:
                nonlocal body
                if message["type"] == "http.response.body":
                    body += message.get("body", b"")
                    if not message.get("more_body"):
                        self.register.add(stored_paths(body))
                await send(message)

            await self.app(scope, read, listen)

    async def watch_file(self, scope: Any, receive: Any, send: Any, path: str) -> None:
        """Refuse addresses; delete a result that was sent whole."""
        if is_http_url_like(unquote(path)):
            await refuse(send)
            return
        status = 0

        async def listen(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await self.app(scope, receive, listen)
        if scope["method"] == "GET" and status == 200:
            self.handed_over.fetched(path)


async def refuse(send: Any) -> None:
    """Answer 403."""
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b"No address is fetched."})


def stored_paths(body: bytes) -> list[str]:
    """The paths in an answer of the upload route; none where it is an error."""
    try:
        paths = json.loads(body)
    except ValueError:
        return []
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def sweep(folder: Path, age: float) -> None:
    """Delete every file and empty folder in `folder` that is older than `age` seconds."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside comes first
        with suppress(OSError):  # gone meanwhile, or a folder that holds something
            if time.time() - path.lstat().st_ctime > age:
                path.rmdir() if path.is_dir() else path.unlink()


def sweeping(folder: Path, age: float) -> Any:
    """Return a lifespan of the server during which its folder is swept ten times per `age`."""

    async def forever() -> None:
        while True:
            await asyncio.to_thread(sweep, folder, age)
            await asyncio.sleep(age / 10)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(forever())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
