"""A folder becomes a revision of a Hub repository: checked first, in one commit, or not at all."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

LEFT_ALONE = {".gitattributes"}  # the Hub writes it into every repository


class UploadError(Exception):
    """An upload that did not arrive; the message is one sentence."""


@dataclass(frozen=True)
class Target:
    """A repository of the Hub.

    repo: "user/name"; kind: "model", "dataset" or "space"; private: who sees a new one; space_sdk:
    what a Space runs on.
    """

    repo: str
    kind: str = "model"
    private: bool = True
    space_sdk: str | None = None


@dataclass(frozen=True)
class Pushed:
    """The revision that now holds the folder, and what had to change for it."""

    revision: str
    added: list[str]  # new and changed files
    removed: list[str]


def local_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file of `folder`; hidden files and caches stay behind."""
    files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in parts):
            files["/".join(parts)] = path
    return files


def push_folder(folder: Path, target: Target, message: str) -> Pushed:
    """Make the repository's main branch hold what `folder` holds; no commit where it does already.

    All changes are one commit on top of the revision they were compared with, so a failed upload
    leaves that revision as it is. Remote files that the folder lacks are removed (history keeps
    them).

    Raises:
        ValueError: an empty folder, or a public repository where a private one was asked for.
        UploadError: the upload failed; the repository is as it was.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused before that, for instance the token.
    """
    files = local_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no file to publish.")
    api = HfApi()
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
    added, removed = compare(api, target, files, info.sha)
    if not added and not removed:
        return Pushed(info.sha, [], [])
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, files[name]) for name in added),
        *(CommitOperationDelete(name) for name in removed),
    ]
    try:
        commit = api.create_commit(
            target.repo,
            operations,
            commit_message=message,
            repo_type=target.kind,
            parent_commit=info.sha,
        )
    except Exception as error:  # of the network, the Hub or its storage, each with its own class
        raise UploadError(
            f"the upload failed, {target.repo} still stands at {info.sha}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if any(compare(api, target, files, commit.oid)):
        raise ValueError(f"{target.repo} at {commit.oid} differs from {folder}; push again.")
    return Pushed(commit.oid, added, removed)


def compare(
    api: HfApi, target: Target, files: Mapping[str, Path], revision: str
) -> tuple[list[str], list[str]]:
    """Files to add or change, and files to remove, to make a revision equal to `files`."""
    tree = api.list_repo_tree(target.repo, recursive=True, revision=revision, repo_type=target.kind)
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    added = [n for n, path in files.items() if n not in remote or not same(path, remote[n])]
    return added, sorted(remote.keys() - files.keys() - LEFT_ALONE)


def same(path: Path, entry: RepoFile) -> bool:
    """True where a local file has the bytes of a remote one, by size and then by hash."""
    if path.stat().st_size != entry.size:
        return False
    if entry.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == entry.blob_id
