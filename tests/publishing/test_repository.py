"""A folder becomes a revision in one commit, on top of the revision it was compared with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from loopback_hub import Blob, LoopbackHub, Repository, use_hub

from modeling_rasalore.publishing.repository import Pushed, Target, UploadError, push_folder

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the library
DEMO = Target("me/demo")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(hub, tmp_path / "cache", patch)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small text file, and a large one in a folder, with what stays behind beside them."""
    folder = tmp_path / "folder"
    for name in ("a.txt", "inside/b.png", ".hidden", "__pycache__/c.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def push(folder: Path) -> Pushed:
    return push_folder(folder, DEMO, "Publish demo")


def newest(hub: LoopbackHub) -> Repository:
    return hub.repositories["models", "me/demo"]


def test_a_folder_is_one_commit_and_the_same_again_is_none(hub: LoopbackHub, folder: Path) -> None:
    first = push(folder)
    assert newest(hub).head == first.revision and first.is_new
    assert newest(hub).commits[first.revision].keys() == {".gitattributes", "a.txt", "inside/b.png"}
    assert push(folder) == Pushed(first.revision, False, [])
    assert len(newest(hub).commits) == 2  # the empty one of its creation, and this


def test_what_changed_is_sent_and_what_went_is_removed_in_the_same_commit(
    hub: LoopbackHub, folder: Path
) -> None:
    push(folder)
    (folder / "inside" / "b.png").unlink()
    (folder / "a.txt").write_text("other")
    (folder / "[new].txt").write_text("new")
    pushed = push(folder)
    assert (pushed.removed, len(newest(hub).commits)) == (["inside/b.png"], 3)
    files = newest(hub).commits[pushed.revision]
    assert files.keys() == {".gitattributes", "a.txt", "[new].txt"}
    assert files["a.txt"].data == b"other"


def test_a_file_that_only_went_is_a_commit_too(hub: LoopbackHub, folder: Path) -> None:
    push(folder)
    (folder / "a.txt").unlink()
    pushed = push(folder)
    assert (pushed.is_new, pushed.removed) == (True, ["a.txt"])


def test_hundreds_of_files_are_one_commit(hub: LoopbackHub, folder: Path) -> None:
    for number in range(600):
        (folder / f"{number}.txt").touch()
    push(folder)
    assert len(newest(hub).commits) == 2


def test_a_branch_that_moved_on_meanwhile_is_left_alone(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = push(folder).revision
    (folder / "a.txt").write_text("ours")
    create_commit = HfApi.create_commit

    def overtaken(api: HfApi, *words: object, **named: object) -> object:
        newest(hub).commits["f" * 40] = {"a.txt": Blob(b"theirs", False)}
        return create_commit(api, *words, **named)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(UploadError, match=f"me/demo still stands at {before}: .*moved on") as error:
        push(folder)
    assert len(str(error.value).splitlines()) == 1
    assert newest(hub).head == "f" * 40


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopbackHub() as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
    with pytest.raises(UploadError, match="me/demo could not be opened, nothing") as error:
        push(folder)
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no file to publish"):
        push(tmp_path)
