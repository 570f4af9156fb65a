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

import hypothesis
import pytest

# The same cases every run, so that a change fails for its own reasons; new ones with
# --hypothesis-profile=explore.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold a slow test, so that no worker ends alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SAM of 40 thousand random parameters that looks at 64 x 64 pixels."""
    import torch
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    torch.manual_seed(0)
    side = {"image_size": 64, "patch_size": 8}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = {
        **small,
        **side,
        "hidden_size": 32,
        "output_channels": 16,
        "mlp_dim": 64,
    }
    vision |= {"window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8}
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, **side, "mask_input_channels": 4},
        mask_decoder_config={**small, "mlp_dim": 32, "iou_head_hidden_dim": 16},
    )
    processor = SamImageProcessorPil(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    setattr(processor, "target_size", 64)  # noqa: B010 - not a declared attribute
    folder = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# --- The Space: one model and one server per file of its tests ------------------------------------
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights."""
    from space import save_model

    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Gradio keeps what it must have on disk."""
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def address(model: Path, cache: Path) -> Iterator[str]:
    """Where the Space is served."""
    from space import serving

    with serving(cache, model) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for a file of tests."""
    from space_pages import browsing_with_webgl

    with browsing_with_webgl() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The Space in a browser session of its own."""
    from space_pages import visit

    with visit(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def handlers(model: Path) -> Any:
    """The handlers of the Space, without a server."""
    from space import make_handlers

    return make_handlers(model)


@pytest.fixture(scope="module")
def analyst(handlers: Any) -> Any:
    """The one model of the handlers."""
    return handlers.usual


@pytest.fixture(scope="module")
def analysis(analyst: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small scan through the model."""
    from analysis import say_nothing
    from scan_reading import read_scan
    from space import write_scan

    scan = read_scan(write_scan(tmp_path_factory.mktemp("scan") / "scan.nii.gz"))
    return analyst.analyse(scan, 0.5, say_nothing)


@pytest.fixture
def own_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training in this process computes on the CPU, and leaves no accelerator to the next test."""
    from accelerate.state import AcceleratorState  # here: most tests do without

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
