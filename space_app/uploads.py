"""Uploaded files: only they are read, once, by the request they were sent for, and then deleted."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import gradio as gr
from gradio_client.utils import is_http_url_like, is_valid_file

from modeling_rasalore.formats.endings import ALONE

TYPES = [".nii", ".nii.gz", ".zip", ".dcm", *ALONE]
ENDINGS = ", ".join(TYPES)
FILE_ROUTE = "/gradio_api/file="  # in the address that the app gives to a file of its own


class UploadRegister:
    """Counts how often each file was uploaded, and deletes it once it was read as often.

    Gradio stores equal files of different people under one path, so the first reader must not
    delete what the second one waits for, nor what is being stored for a third.
    """

    def __init__(self) -> None:
        self._uploads: Counter[str] = Counter()
        self._storing = 0  # uploads that are complete, but not yet counted
        self._read: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Delete nothing while an upload is being stored that is not counted yet."""
        with self._lock:
            self._storing += 1
        try:
            yield
        finally:
            with self._lock:
                self._storing -= 1
                self._delete_read()

    def add(self, paths: Sequence[str]) -> None:
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
                self._read.add(path)
                self._delete_read()

    def _delete_read(self) -> None:
        """Delete what was read as often as it was uploaded; the lock is held."""
        if self._storing:
            return  # for milliseconds
        for path in self._read:
            if self._uploads[path] < 1:
                del self._uploads[path]
                delete_with_folder(path)
        self._read.clear()


def delete_with_folder(path: str) -> None:
    """Delete a file, and the folder that was made for it alone."""
    with suppress(OSError):
        Path(path).unlink(missing_ok=True)
        Path(path).parent.rmdir()


def take_uploads_only(component: gr.File) -> gr.File:
    """Return a file input that takes what was uploaded to this app, and fetches no address.

    Gradio's own would download an address, and leave an empty file for each request.
    """
    move = component.async_move_resource_to_block_cache

    async def move_own(path: str | Path | None) -> str | None:
        return await move(path and own_upload(str(path), Path(component.GRADIO_CACHE)))

    def name_path(payload: gr.FileData | None) -> str | None:
        if payload is None:
            return None
        if not is_valid_file(payload.path, TYPES):
            raise gr.Error(f"A scan's file must end in one of {ENDINGS}.", print_exception=False)
        return payload.path

    # Of this one component; for a sub-class Gradio would write a .pyi file beside the source.
    vars(component).update(async_move_resource_to_block_cache=move_own, preprocess=name_path)
    return component


def own_upload(given: str, folder: Path) -> str:
    """Return the path in Gradio's folder that is meant by a path, or by its address in this app."""
    path = given
    if is_http_url_like(given):
        path = unquote(given.partition(FILE_ROUTE)[2])
    if not path or not Path(path).resolve().is_relative_to(folder.resolve()):
        raise gr.Error("No address is fetched: upload the scan itself.", print_exception=False)
    return path
