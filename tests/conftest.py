"""What every test gets: no network, one thread per worker, and the folder of real scans."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch and huggingface_hub are imported; programs started by a test inherit both.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Let a test reach this machine only, whatever the library under it tries."""
    connect = socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise OSError(f"tests must not use the network, tried {address}.")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_to_loopback)
        yield


@pytest.fixture(scope="session")
def brats2021() -> Path:
    """Eight real patients in the BraTS 2021 layout; the test is skipped where they are absent."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "brats2021"
    if not folder.is_dir():
        pytest.skip("needs the real scans of ../shared/data/brats2021")
    return folder
