"""The Space as tests use it: its modules, a tiny random model, small scans, a running server."""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_rasalore import RasaloreConfig, RasaloreImageProcessor, RasaloreModel
from modeling_rasalore.scans.volume_writing import write_nifti

SPACE = Path(__file__).parents[2] / "space_app"
sys.path.insert(0, str(SPACE))  # as in the Space, where app.py lies in the root
AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])


def save_model(folder: Path, modality: str = "flair") -> Path:
    """A saved model of one sequence with random weights, whose scores lie on both sides of 0.5.

    It is so narrow that every processor computes it in float32.
    """
    torch.manual_seed(0)
    sizes = {"image_size": 48, "base_channels": 8, "grid_size": 12, "refiner_grid": 12}
    looks = {"initializer_range": 0.2, "value_noise_std": 0.5, "modality": modality}
    config = RasaloreConfig.preset("tiny", **looks, **sizes)
    RasaloreModel(config).save_pretrained(folder)
    RasaloreImageProcessor(config.image_size).save_pretrained(folder)
    return folder


def write_scan(path: Path, seed: int = 0, slices: int = 6, scale: int = 1) -> Path:
    """A brain of random tissue, 24 x 28 voxels per slice, times `scale`."""
    voxels = np.zeros((24 * scale, 28 * scale, slices), np.int16)
    inside = (slice(4, 20 * scale), slice(5, 23 * scale), slice(1, slices - 1))
    tissue = np.random.default_rng(seed).integers(20, 200, voxels[inside].shape)
    voxels[inside] = tissue
    return write_nifti(path, voxels, AFFINE)


def make_handlers(*models: Path) -> Any:
    """The handlers of an app with these models."""
    from handlers import Handlers
    from model_choice import offer_models

    return Handlers(offer_models([str(model) for model in models]))


def unpack(packed: dict[str, str] | None, folder: Path) -> Path:
    """The path of a file after it was saved as the page does."""
    assert packed
    path = folder / packed["name"]
    path.write_bytes(base64.b64decode(packed["content"]))
    return path


def read_numbers(handlers: Any, analysis: Any, threshold: float) -> dict[str, Any]:
    """The report for programs."""
    packed = handlers.pack(analysis, threshold, "Numbers (JSON)")
    assert packed
    return json.loads(base64.b64decode(packed["content"]))


@contextmanager
def serving(cache: Path, *models: Path) -> Iterator[str]:
    """Serve the app on loopback, with Gradio's files in `cache`; gives its address."""
    from app import WAITING, build_app, launch_options

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        handlers = make_handlers(*models)
        blocks = build_app(handlers).queue(max_size=WAITING)
        options = launch_options(handlers) | {"prevent_thread_lock": True, "quiet": True}
        _, address, _ = blocks.launch(**options, server_name="127.0.0.1")
        try:
            yield address
        finally:
            blocks.close()


def stored(folder: Path) -> list[str]:
    """Names of the files and folders that lie in Gradio's folder."""
    return sorted(path.name for path in folder.rglob("*"))


def left_in(folder: Path, patience: float = 5) -> list[str]:
    """What Gradio's folder still holds when the server had `patience` seconds to empty it.

    A mask is deleted when its last byte is sent, so a program has it a moment before it is gone.
    """
    end = time.monotonic() + patience
    while stored(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return stored(folder)


# --- Programs and agents --------------------------------------------------------------------------
def connect(address: str, out: Path | None = None) -> Any:
    """A client that waits longer than its 5 seconds: the machine may be busy."""
    from gradio_client import Client

    return Client(
        address,
        verbose=False,
        download_files=str(out) if out else False,
        httpx_kwargs={"timeout": 120},
    )


def segment(
    address: str,
    scan: Path,
    out: Path,
    threshold: float | None = 0.5,
    brain_mask: Path | None = None,
    **words: Any,
) -> tuple[str, Any]:
    """The path of the mask and the report that a program gets."""
    from gradio_client import handle_file

    given: dict[str, Any] = {"scan": handle_file(scan), "threshold": threshold, **words}
    if brain_mask is not None:
        given["brain_mask"] = handle_file(brain_mask)
    return connect(address, out).predict(api_name="/segment", **given)


def ask_as_agent(address: str, scan: Path, brain_mask: Path | None = None) -> tuple[Any, Any]:
    """The tools of the app, and its answer about a scan."""
    mcp = pytest.importorskip("mcp", reason="the endpoint for agents needs mcp")
    import httpx
    from mcp.client.streamable_http import streamable_http_client

    def send(path: Path) -> str:
        with path.open("rb") as file:
            sent = httpx.post(f"{address}gradio_api/upload", files={"files": file})
        return f"{address}gradio_api/file={sent.json()[0]}"

    async def talk() -> tuple[Any, Any]:
        route = f"{address}gradio_api/mcp/"
        async with (
            streamable_http_client(route) as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            given = {"scan": send(scan)}
            if brain_mask is not None:
                given["brain_mask"] = send(brain_mask)
            return tools, await session.call_tool(tools[0].name, given)

    return asyncio.run(talk())
