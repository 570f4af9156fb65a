"""Push a folder to a repository of the Hub, in one commit or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

WRITTEN_BY_HUB = {".gitattributes"}  # into every repository


class UploadError(OSError):
    """An upload that did not arrive; the message is one sentence."""


@dataclass(frozen=True)
class Target:
    """A repository of the Hub.

    Attributes:
        repo: "user/name".
        kind: "model", "dataset" or "space".
        private: who sees it, where it is new.
        space_sdk: what a Space runs on.
    """

    repo: str
    kind: str = "model"
    private: bool = True
    space_sdk: str | None = None


@dataclass(frozen=True)
class Pushed:
    """The revision that now holds a folder.

    Attributes:
        revision: a commit's hash.
        is_new: False where the repository held exactly this folder before.
        removed: names of the files that the folder lacks and the revision before had.
    """

    revision: str
    is_new: bool
    removed: list[str]


def local_files(folder: Path) -> dict[str, Path]:
    """Return name in the repository -> file of `folder`, without hidden files and caches."""
    files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
            files["/".join(parts)] = path
    return files


def push_folder(folder: Path, target: Target, message: str) -> Pushed:
    """Make the repository's main branch hold what `folder` holds; return the revision that does.

    All changes are one commit on top of the revision that was there, so a failed upload leaves that
    revision as it is. Remote files that the folder lacks are removed (history keeps them). Nothing
    is committed where nothing changed.

    Raises:
        ValueError: an empty folder, or a public repository where a private one was asked for.
        UploadError: the Hub refused or could not be reached; the repository is as it was.
    """
    files = local_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no file to publish.")
    api = HfApi()
    before = open_repository(api, target)
    with one_sentence(f"the upload failed, {target.repo} still stands at {before}"):
        remote = api.list_repo_files(target.repo, revision=before, repo_type=target.kind)
        removed = sorted(set(remote) - files.keys() - WRITTEN_BY_HUB)
        # Not upload_folder, which splits large folders into several commits. Files that the Hub
        # holds already are left out by create_commit, which makes no empty commit either.
        commit = api.create_commit(
            target.repo,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in removed),
            ],
            commit_message=message,
            repo_type=target.kind,
            parent_commit=before,
        )
    return Pushed(commit.oid, commit.oid != before, removed)


def open_repository(api: HfApi, target: Target) -> str:
    """Return the revision of a repository's main branch; the repository is made if it is not there.

    Raises:
        ValueError: it is public, and a private one was asked for.
        UploadError: the Hub refused or could not be reached.
    """
    with one_sentence(f"{target.repo} could not be opened, nothing was uploaded"):
        api.create_repo(
            target.repo,
            repo_type=target.kind,
            private=target.private,
            exist_ok=True,
            space_sdk=target.space_sdk,
        )
        info = api.repo_info(target.repo, repo_type=target.kind)
    if target.private and not info.private:
        raise ValueError(f"{target.repo} is public; say private=false to publish there.")
    assert info.sha is not None  # the Hub names a revision of every repository that it has created
    return info.sha


@contextmanager
def one_sentence(failure: str) -> Iterator[None]:
    """Turn whatever goes wrong into an UploadError that says so in one line.

    Network, Hub and storage each raise classes of their own.
    """
    try:
        yield
    except Exception as error:
        raise UploadError(f"{failure}: {' '.join(str(error).split())}") from error
