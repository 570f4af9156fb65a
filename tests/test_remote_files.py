"""Reading over HTTP: any part of a file, whatever the network does in between."""

import io
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from modeling_rasalore import remote_files
from modeling_rasalore.remote_files import (
    hub_answers,
    is_remote,
    open_file,
    read_bytes,
    read_model_config,
    without_waiting_for_hub,
)

CONTENT = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT; the next answers are taken from `troubles`."""

    protocol_version = "HTTP/1.1"
    ranges = True
    troubles: list[str] = []  # noqa: RUF012 - shared on purpose

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble == "busy" or "absent" in self.path:
            return self.send_error(503 if trouble else 404)
        start, _, end = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        part = CONTENT[int(start) : int(end or len(CONTENT)) + 1]
        part = part if self.ranges and self.headers["Range"] else CONTENT
        self.send_response(206 if len(part) < len(CONTENT) else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if trouble == "cut" else part)
        self.close_connection = bool(trouble)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_files, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(Server, "ranges", True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/folder"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_any_part_of_a_file_can_be_read(
    address: str, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "ranges", ranges)
    with open_file(address, "a.parquet", len(CONTENT)) as file:
        file.seek(-300, io.SEEK_END)
        assert file.read() == CONTENT[-300:]
        file.seek(1000)
        assert file.read(100_000) == CONTENT[1000:101_000]


@pytest.mark.parametrize("troubles", [["busy"], ["cut"], ["cut", "busy", "cut"]])
def test_a_network_that_comes_back_changes_nothing(address: str, troubles: list[str]) -> None:
    Server.troubles = list(troubles)
    assert read_bytes(address, "a.parquet") == CONTENT
    Server.troubles = list(troubles)
    with open_file(address, "a.parquet", len(CONTENT)) as file:
        assert file.read() == CONTENT
    assert Server.troubles == []


def test_a_network_that_stays_away_is_an_error(address: str) -> None:
    Server.troubles = ["busy"] * 9
    with pytest.raises(OSError, match="503"):
        read_bytes(address, "a.parquet")
    Server.troubles = []


def test_an_absent_file_is_not_asked_for_again(address: str, tmp_path: Path) -> None:
    for root in (address, tmp_path):
        with pytest.raises(FileNotFoundError):
            read_bytes(root, "absent.json")


def test_a_folder_wins_over_a_repo_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_remote("me/slices") and is_remote("me/slices@0123abc")
    (tmp_path / "me" / "slices").mkdir(parents=True)
    assert not is_remote("me/slices")
    assert not is_remote(tmp_path) and not is_remote("runs") and not is_remote("a/b/c")


# --- The Hub where it does not answer -------------------------------------------------------------


@pytest.fixture
def dead_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The library thinks there is a network, and nothing answers."""
    from huggingface_hub import constants

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return address


def test_an_unknown_model_without_a_network_is_told_in_seconds(dead_hub: str) -> None:
    from huggingface_hub import constants

    started = time.monotonic()
    with pytest.raises(ValueError, match=r"--model owner/typo is no folder here .* correct the"):
        read_model_config("owner/typo")
    assert time.monotonic() - started < 6
    assert constants.HF_HUB_OFFLINE is False


def test_libraries_do_not_wait_for_a_hub_that_is_away(dead_hub: str, tmp_path: Path) -> None:
    from huggingface_hub import constants

    assert not hub_answers()
    with without_waiting_for_hub("owner/name"):
        assert constants.HF_HUB_OFFLINE is True
    with without_waiting_for_hub(str(tmp_path)):  # of a folder nobody is asked
        assert constants.HF_HUB_OFFLINE is False
    assert constants.HF_HUB_OFFLINE is False


def test_the_configuration_of_a_folder_is_read_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"modality": "t2"}')
    assert read_model_config(str(tmp_path)) == {"modality": "t2"}
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"--model needs a folder with a config\.json, got"):
        read_model_config(str(tmp_path))
