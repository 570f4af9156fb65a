"""A Hub on this machine: the part of its HTTP protocol that pushing and loading uses.

Commits are kept in memory. Everything huggingface_hub, transformers, datasets and evaluate do here
goes through real sockets.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LARGE = (".safetensors", ".parquet", ".png", ".gz")  # stored by LFS whatever their size
REPO = r"(?P<repo>[^/]+/[^/]+?)"
KIND = r"(?P<kind>models|datasets|spaces)"


@dataclass(frozen=True)
class Blob:
    """One file of a commit, with both names the protocol gives it."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of the file, or of the pointer that stands for it."""
        if self.lfs:
            return hashlib.sha1(self.sha256.encode()).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Commits in order, the newest last; each maps paths to files."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


class LoopbackHub(ThreadingHTTPServer):
    """Serves on a free port of 127.0.0.1 while it is entered as a context.

    repositories: by (kind, "user/name"); requests: method and path of each; refused: SHA-256 of
    large files that its storage does not take; cuts: which requests, counted from 1, end halfway.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = True
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self.cuts: set[int] = set()
        self.shas = (hashlib.sha1(b"%d" % number).hexdigest() for number in count())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def use_hub(hub: LoopbackHub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let this process reach that Hub and no other, and keep what it loads in a cache."""
    # Here: on import it reads the environment.
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", "hf_loopback")


class Answer(Exception):  # noqa: N818 - not an error: ends the handling of a request
    """What a request gets: status, content (JSON unless bytes) and headers."""

    def __init__(self, status: int, content: Any = b"", **headers: str):
        self.status, self.content = status, content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    """Finds the first route that fits a request; `missing` explains where none does."""

    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None: ...

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        self.query, self.body = parse_qs(parts.query), self.read_body()
        self.server.requests.append((self.command, parts.path))
        try:
            for pattern, handler in ROUTES:
                if match := re.fullmatch(pattern, unquote(parts.path)):
                    handler(self, **match.groupdict())
            missing("NotImplemented")
        except Answer as answer:
            self.reply(answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815 - names of the base class

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, answer: Answer) -> None:
        raw = isinstance(answer.content, bytes)
        content = answer.content if raw else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"}
        headers |= {"Content-Length": str(len(content)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if len(self.server.requests) in self.server.cuts:
            self.server.cuts.remove(len(self.server.requests))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(content)

    # --- Routes: each ends with an Answer -----------------------------------------------------
    def create(self) -> None:
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = (kind, repo) in self.server.repositories
        if not known:
            first = {next(self.server.shas): {".gitattributes": Blob(b"* text\n", False)}}
            self.server.repositories[kind, repo] = Repository(
                asked.get("visibility") == "private", first
            )
        raise Answer(409 if known else 200, {"url": f"{self.server.url}/{repo}", "name": repo})

    def validate_card(self) -> None:
        errors = [{"message": text} for text in card_problems(json.loads(self.body)["content"])]
        raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        _, files = self.find(kind, repo, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], file["path"].endswith(LARGE)
            known = files.get(path)
            oid = known and (known.sha256 if known.lfs else known.oid)
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            answers.append({"path": path, "oid": oid, **mode})
        raise Answer(200, {"files": answers})

    def lfs_batch(self, kind: str | None, repo: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.server.large_files:
                upload = {"href": f"{self.server.url}/large/{wanted['oid']}"}
                wanted["actions"] = {"upload": upload}
            objects.append(wanted)
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if oid in self.server.refused:
            raise Answer(403, {"error": "storage is closed"})
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large_files[oid] = self.body
        raise Answer(200)

    def commit(self, kind: str, repo: str, revision: str) -> None:
        parent, files = self.find(kind, repo, revision)
        files = dict(files)
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit", parent) != parent:
                raise Answer(412, {"error": "the branch moved on"})
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                files[value["path"]] = Blob(self.server.large_files[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
        sha = next(self.server.shas)
        self.server.repositories[kind, repo].commits[sha] = files
        raise Answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})

    def tree(self, kind: str, repo: str, revision: str, folder: str | None) -> None:
        _, files = self.find(kind, repo, revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in sorted(files.items()) if path.startswith(prefix)}
        entries = {}
        for path, blob in inside.items():
            child, _, deeper = path.removeprefix(prefix).partition("/")
            if deeper:
                oid = hashlib.sha1(child.encode()).hexdigest()
                directory = {"type": "directory", "path": prefix + child, "size": 0, "oid": oid}
                entries[prefix + child] = directory
            if not deeper or self.query.get("recursive", [""])[0].lower() in ("1", "true"):
                entries[path] = blob.entry(path)
        if prefix and not entries:
            missing("EntryNotFound")
        raise Answer(200, list(entries.values()))

    def paths(self, kind: str, repo: str, revision: str) -> None:
        _, files = self.find(kind, repo, revision)
        form = "json" in self.headers.get("Content-Type", "")
        asked = (json.loads if form else parse_qs)(self.body.decode())["paths"]
        raise Answer(200, [files[path].entry(path) for path in asked if path in files])

    def info(self, kind: str, repo: str, revision: str | None) -> None:
        sha, files = self.find(kind, repo, revision or "main")
        private = self.server.repositories[kind, repo].private
        siblings = [{"rfilename": path} for path in sorted(files)]
        raise Answer(200, {"id": repo, "sha": sha, "private": private, "siblings": siblings})

    def resolve(self, kind: str | None, repo: str, revision: str, path: str) -> None:
        sha, files = self.find(kind or "models", repo, revision)
        if path not in files:
            raise Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        blob, status, headers = files[path], 200, {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        headers["ETag"] = f'"{blob.sha256 if blob.lfs else blob.oid}"'
        data = blob.data
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            status, data = 206, data[start : end + 1]
        raise Answer(status, data, **headers)

    def find(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, Blob]]:
        """Commit and files of a revision, a branch or a commit."""
        repository = self.server.repositories.get((kind, repo))
        if repository is None:
            missing("RepoNotFound")
        sha = repository.head if revision == "main" else revision
        if sha not in repository.commits:
            missing("RevisionNotFound")
        return sha, repository.commits[sha]


def card_problems(content: str) -> list[str]:
    """What the Hub would not take in a README's metadata: licence, Space header, `model-index`."""
    header = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    metadata = yaml.safe_load(header[1]) if header else None
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping between two lines of ---"]
    problems = []
    if not re.fullmatch("[a-z0-9][a-z0-9.-]*", str(metadata.get("license", "other"))):
        problems.append(f"license must be an identifier, got {metadata['license']}")
    for entry in metadata.get("model-index", []):
        if not isinstance(entry.get("name"), str) or not entry.get("results"):
            problems.append("model-index needs a name and results")
        for result in entry.get("results", []):
            needed = [(result.get("task"), ("type",)), (result.get("dataset"), ("name", "type"))]
            needed += [(metric, ("type", "value")) for metric in result.get("metrics") or [None]]
            problems += [f"a result lacks {key}" for part, keys in needed for key in keys
                         if (part or {}).get(key) in (None, "")]  # fmt: skip
    return problems


def missing(code: str) -> Any:
    """Answer 404 with the code that clients tell the cases apart by."""
    raise Answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)


API = f"/api/{KIND}/{REPO}"
PAGE = f"(?:/(?P<kind>datasets|spaces))?/{REPO}"
ROUTES = [
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.validate_card),
    ("/large/(?P<oid>[0-9a-f]+)", Handler.lfs_upload),
    (rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (f"{API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (f"{API}/commit/(?P<revision>[^/]+)", Handler.commit),
    (f"{API}/paths-info/(?P<revision>[^/]+)", Handler.paths),
    (f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (f"{API}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    (f"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
