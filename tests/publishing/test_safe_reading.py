"""Files that would run code, and files that are no checkpoints."""

import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_files import ENCODER
from torch import nn

from modeling_rasalore.publishing.safe_reading import read_checkpoint


class Attack:
    """Pickled as a call of `function`, which runs wherever the pickle is believed."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def zipped(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [zipped, legacy, pickle.dumps])
@pytest.mark.parametrize("function", [os.mkdir, eval, torch.save])
def test_a_pickle_that_calls_a_function_is_refused(
    function: Callable[..., Any], write: Callable[[Any], bytes], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    arguments: dict[Any, tuple[Any, ...]] = {
        os.mkdir: (str(trace),),
        eval: (f"open({str(trace)!r}, 'w')",),
        torch.save: (1, str(trace)),
    }
    attack = {"state_dict": {}, "optimizer": Attack(function, *arguments[function])}
    path = tmp_path / "model.pth.tar-1"
    path.write_bytes(write(attack))
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(attack))  # where it is believed, it does run
    assert trace.exists()


def test_a_function_of_a_skipped_library_is_not_called_either(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pth.tar-1", tmp_path / "trace.npy"
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Attack(np.save, str(trace), 1)}, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["a"], torch.ones(1))
    assert not trace.exists()


def test_the_older_file_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(legacy({"a": torch.arange(3)}))
    assert torch.equal(read_checkpoint(path)["a"], torch.arange(3))


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 no archive", zipped({"a": 1})[:-40]]
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / ENCODER
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged or no checkpoint"):
        read_checkpoint(path)


def test_a_whole_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / ENCODER)
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / ENCODER)
