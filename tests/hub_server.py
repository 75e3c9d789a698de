"""A small Hub on loopback: real HTTP, real files, and the parts of the protocol that huggingface_hub speaks to publish
a model and to load it again (accounts, repositories, preupload, LFS, commits, pull requests, copies, trees, resolve).

It checks what the Hub checks: that a large file is there, whole and of its hash, before a commit may name it; that a
commit is made on the head that it names; that a card's metadata keep to the documented rules. It counts what it is
given, and can hang up after a number of files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# Files that the Hub takes as LFS whatever their size (its default .gitattributes), and the size beyond which all are.
LARGE = {".safetensors", ".bin", ".onnx", ".onnx_data", ".gguf", ".pt", ".npz", ".h5", ".zip", ".pkl"}
LARGE_SIZE = 10 << 20

# Of https://huggingface.co/docs/hub/repositories-licenses, what tests use.
LICENCES = {"apache-2.0", "mit", "llama3.2", "gemma", "cc-by-4.0", "bsd-3-clause", "other", "unknown"}
RELATIONS = {"finetune", "adapter", "quantized", "merge"}
PIPELINES = {"text-generation", "image-text-to-text"}
LIBRARIES = {"transformers", "peft", "transformers.js", "onnx", "sea_bake"}


class RefusedError(Exception):
    """An answer other than 200, with the Hub's own error code where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit: ``key`` is the SHA-256 of a large one, git's hash of a small one."""

    key: str
    size: int
    large: bool


@dataclass
class Repo:
    """Commits are (message, parent, tree); ``heads`` are branches and pull requests by their full or short names."""

    private: bool
    commits: dict[str, tuple[str, str | None, dict[str, Blob]]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)  # large files of this repository, committed or not

    def commit(self, head: str, tree: dict[str, Blob], message: str) -> str:
        parent = self.heads.get(head)
        text = repr((parent, sorted((p, b.key) for p, b in tree.items()), message, len(self.commits)))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = (message, parent, tree)
        self.heads[head] = oid
        return oid


@dataclass
class Counts:
    """What the server was given: SHA-256 of large files received, of files copied, and commits made."""

    uploads: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Hub:
    """One server with its accounts (token -> user) and its store."""

    def __init__(self, folder: Path, accounts: dict[str, str], readers: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """``readers``: tokens that may read but not write."""
        self.folder, self.accounts, self.readers = folder, accounts, readers
        self.repos: dict[str, Repo] = {}
        self.small: dict[str, bytes] = {}
        self.counts = Counts()
        self.before_upload: Callable[[], bool] = lambda: True  # False: hang up instead
        self.copying = True  # whether it copies between repositories
        self.torn = False  # whether requests may break off anywhere, and nothing is to be printed of it
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)

        class Handler(_Handler):
            hub = self

        class Server(ThreadingHTTPServer):
            def handle_error(server, request: Any, client_address: Any) -> None:  # noqa: N805
                if not self.torn:
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Hub]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    # ------------------------------------------------------------------------------------------------ for the tests

    def add(self, repo: str, folder: Path, *, private: bool = False) -> str:
        """Put a folder into a repository, as if it had been there for long; returns the commit."""
        tree = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            tree[name] = self._keep(path.read_bytes(), large=is_large(name, path.stat().st_size))
        made = self.repos.setdefault(repo, Repo(private))
        made.stored |= {blob.key for blob in tree.values() if blob.large}
        return made.commit("main", tree, "initial commit")

    def file(self, repo: str, path: str, head: str = "main") -> bytes:
        blob = self.tree(repo, head)[path]
        return (self.folder / blob.key).read_bytes() if blob.large else self.small[blob.key]

    def tree(self, repo: str, head: str = "main") -> dict[str, Blob]:
        found = self.repos[repo]
        return found.commits[found.heads.get(head, head)][2]

    # ------------------------------------------------------------------------------------------------ the protocol

    def _keep(self, data: bytes, *, large: bool) -> Blob:
        if large:
            key = hashlib.sha256(data).hexdigest()
            (self.folder / key).write_bytes(data)
        else:
            key = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self.small[key] = data
        return Blob(key, len(data), large)

    def user(self, token: str | None) -> str | None:
        if token is not None and token not in self.accounts:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.accounts.get(token) if token else None

    def repo(self, name: str, user: str | None) -> Repo:
        found = self.repos.get(name)
        if found is None or (found.private and owner(name) != user):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def writable(self, name: str, token: str | None) -> Repo:
        user = self.user(token)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        found = self.repo(name, user)
        if owner(name) != user or token in self.readers:
            raise RefusedError(403, "Forbidden: you must use a write token with the right permissions")
        return found

    def head(self, repo: Repo, revision: str) -> str:
        found = repo.heads.get(revision, revision)
        if found not in repo.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found


def owner(name: str) -> str:
    """Of "user/name", or of a Space, "spaces/user/name"."""
    return name.removeprefix("spaces/").partition("/")[0]


def is_large(name: str, size: int) -> bool:
    return Path(name).suffix in LARGE or size > LARGE_SIZE


def complaints(card: str) -> list[str]:
    """What the Hub's documentation does not allow in a card's metadata."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.S)
    if not found:
        return ["the card has no metadata"]
    data = yaml.safe_load(found[1])
    allowed = {
        "license": LICENCES,
        "base_model_relation": RELATIONS,
        "pipeline_tag": PIPELINES,
        "library_name": LIBRARIES,
    }
    wrong = [f"{key}: {data[key]!r}" for key, values in allowed.items() if key in data and data[key] not in values]
    identifier = re.compile(r"[\w.-]+(/[\w.-]+)?")
    for key in ("base_model", "datasets"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        wrong += [f"{key}: {value!r}" for value in values if not identifier.fullmatch(value)]
    if data.get("license") == "other" and not data.get("license_name"):
        wrong.append("license_name is missing")
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        wrong.append("tags")
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            complete = result["task"].get("type") and result["dataset"].keys() >= {"type", "name"}
            if (
                not entry.get("name")
                or not complete
                or not all({"type", "value"} <= m.keys() for m in result["metrics"])
            ):
                wrong.append("model-index")
    return wrong


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    disable_nagle_algorithm = True  # or each answer waits 40 ms for what follows its first part
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 (the names that http.server looks for)

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.path_only, self.query = url.path.replace("/api/spaces/", "/api/models/spaces/"), parse_qs(url.query)
        with self.hub._lock:
            self.hub.counts.requests.append(f"{self.command} {url.path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        self.token: str | None = token or None
        try:
            for method, pattern, name in _ROUTES:
                found = re.fullmatch(pattern, self.path_only)
                if self.command in method and found:
                    if name == "upload":
                        self._upload(*found.groups())
                        return
                    self.body = self._read()
                    with self.hub._lock:
                        getattr(self, f"_{name}")(*map(unquote, found.groups()))
                    return
            self.body = self._read()
            raise RefusedError(404, f"no such endpoint: {self.path_only}")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self._answer({"error": refused.message}, status=refused.status, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _chunks(self) -> Iterator[bytes]:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left and (block := self.rfile.read(min(left, 1 << 20))):
            left -= len(block)
            yield block
        if left:
            raise ConnectionResetError("the rest never came")

    def _read(self) -> bytes:
        return b"".join(self._chunks())

    def _json(self) -> Any:
        return json.loads(self.body)

    def _answer(self, data: Any = None, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ------------------------------------------------------------------------------------------------ accounts, cards

    def _whoami(self) -> None:
        user = self.hub.user(self.token)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        role = "read" if self.token in self.hub.readers else "write"
        token = {"type": "access_token", "accessToken": {"displayName": "here", "role": role}}
        self._answer({"type": "user", "name": user, "orgs": [], "auth": token})

    def _auth(self, name: str) -> None:
        """Whether the token may write there."""
        self.hub.writable(name, self.token)
        self._answer({})

    def _validate(self) -> None:
        wrong = complaints(self._json()["content"])
        if wrong:
            self._answer({"errors": [{"message": w} for w in wrong], "warnings": []}, status=400)
        else:
            self._answer({"errors": [], "warnings": []})

    def _create(self) -> None:
        asked, user = self._json(), self.hub.user(self.token)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if (asked.get("organization") or user) != user or self.token in self.hub.readers:
            raise RefusedError(
                403, f"You don't have the rights to create a model under the namespace {asked['organization']}"
            )
        space = asked.get("type") == "space"
        if space and asked.get("sdk") not in ("static", "gradio", "docker"):
            raise RefusedError(400, "a Space needs an sdk")
        name = f"{'spaces/' * space}{user}/{asked['name']}"
        if name in self.hub.repos:
            raise RefusedError(409, "You already created this model repo")
        made = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.hub.repos[name] = made
        files = {".gitattributes": b"*.safetensors filter=lfs\n"}
        files |= {"README.md": b"---\nsdk: static\n---\n", "index.html": b"Hello", "style.css": b""} if space else {}
        made.commit("main", {path: self.hub._keep(data, large=False) for path, data in files.items()}, "initial commit")
        self._answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _delete(self) -> None:
        asked = self._json()
        name = f"{'spaces/' * (asked.get('type') == 'space')}{asked['organization']}/{asked['name']}"
        self.hub.writable(name, self.token)
        del self.hub.repos[name]
        self._answer({})

    def _branch(self, name: str, branch: str) -> None:
        repo = self.hub.writable(name, self.token)
        if branch in repo.heads:
            raise RefusedError(409, "Reference already exists")
        repo.heads[branch] = self.hub.head(repo, json.loads(self.body or b"{}").get("startingPoint", "main"))
        self._answer({})

    # ------------------------------------------------------------------------------------------------ reading

    def _info(self, name: str, revision: str = "main") -> None:
        repo = self.hub.repo(name, self.hub.user(self.token))
        sha = self.hub.head(repo, revision)
        tree = repo.commits[sha][2]
        data: dict[str, Any] = {"id": name, "modelId": name, "sha": sha, "private": repo.private, "tags": []}
        data["siblings"] = [{"rfilename": path} for path in tree]
        if "README.md" in tree and (
            found := re.match(rb"---\n(.*?)\n---", self.hub.small[tree["README.md"].key], re.S)
        ):
            data["cardData"] = yaml.safe_load(found[1])
        self._answer(data)

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.key}
        if blob.large:
            # git's hash of the pointer file, as the Hub has it: not the content's
            entry["oid"] = hashlib.sha1(f"pointer to {blob.key}".encode()).hexdigest()
            entry["lfs"] = {"oid": blob.key, "size": blob.size, "pointerSize": 134}
            entry["xetHash"] = hashlib.sha256(b"xet" + blob.key.encode()).hexdigest()
        return entry

    def _tree(self, name: str, revision: str, below: str = "") -> None:
        repo = self.hub.repo(name, self.hub.user(self.token))
        tree = repo.commits[self.hub.head(repo, revision)][2]
        inside = {p: b for p, b in tree.items() if not below or p.startswith(f"{below}/")}
        if below and not inside:
            raise RefusedError(404, f"{below} does not exist on {revision}", "EntryNotFound")
        self._answer([self._entry(path, blob) for path, blob in sorted(inside.items())])

    def _paths(self, name: str, revision: str) -> None:
        repo = self.hub.repo(name, self.hub.user(self.token))
        tree = repo.commits[self.hub.head(repo, revision)][2]
        asked = parse_qs(self.body.decode()).get("paths", [])
        self._answer([self._entry(path, tree[path]) for path in asked if path in tree])

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.hub.repo(name, self.hub.user(self.token))
        sha = self.hub.head(repo, revision)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        blob = repo.commits[sha][2].get(path)
        if blob is None:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        headers |= {"ETag": f'"{blob.key}"', "Content-Type": "application/octet-stream"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.key}"', "X-Linked-Size": str(blob.size)}
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(blob.size)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                with open(self.hub.folder / blob.key, "rb") as file:
                    shutil.copyfileobj(file, self.wfile)
            return
        self._answer(self.hub.small[blob.key], headers=headers)

    # ------------------------------------------------------------------------------------------------ writing

    def _preupload(self, name: str, revision: str) -> None:
        if "create_pr" in self.query:
            repo = self.hub.repo(name, self.hub.user(self.token))
        else:
            repo = self.hub.writable(name, self.token)
        tree = repo.commits[self.hub.head(repo, revision)][2]
        files = []
        for asked in self._json()["files"]:
            base64.b64decode(asked["sample"])
            mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            entry = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            ignored = self._ignored(tree)
            entry["shouldIgnore"] = any(asked["path"].endswith(suffix) for suffix in ignored)
            if asked["path"] in tree:
                entry["oid"] = tree[asked["path"]].key
            files.append(entry)
        self._answer({"files": files})

    def _ignored(self, tree: dict[str, Blob]) -> list[str]:
        if ".gitignore" not in tree:
            return []
        return [line.lstrip("*") for line in self.hub.small[tree[".gitignore"].key].decode().split()]

    def _batch(self, name: str) -> None:
        user = self.hub.user(self.token)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        repo = self.hub.repo(name, user)
        objects = []
        for asked in self._json()["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.stored:  # what lies in other repositories does not count
                place = {"href": f"{self.hub.url}/_store/{name}/{asked['oid']}"}
                entry["actions"] = {"upload": place, "verify": {"href": f"{self.hub.url}/_verify"}}
            objects.append(entry)
        self._answer({"transfer": "basic", "objects": objects})

    def _upload(self, name: str, oid: str) -> None:
        """A large file into the store; whole and of its hash, or not at all."""
        with self.hub._lock:
            welcome = self.hub.before_upload()
        if not welcome:
            self.close_connection = True
            self.connection.close()
            return
        arriving = self.hub.folder / f"{oid}.{threading.get_ident()}.part"
        found = hashlib.sha256()
        with open(arriving, "wb") as file:
            for block in self._chunks():
                found.update(block)
                file.write(block)
        if found.hexdigest() != oid:
            arriving.unlink()
            raise RefusedError(400, "the content does not have the hash that was announced")
        arriving.rename(self.hub.folder / oid)
        with self.hub._lock:
            self.hub.counts.uploads.append(oid)
            self.hub.repos[name].stored.add(oid)
        self._answer({})

    def _verify(self) -> None:
        asked = self._json()
        path = self.hub.folder / asked["oid"]
        if not path.is_file() or path.stat().st_size != asked["size"]:
            raise RefusedError(404, "not uploaded")
        self._answer({})

    def _duplicate(self, name: str) -> None:
        """Copy large files of a repository that the caller may read to one that they may write."""
        source = self.hub.repo(name, self.hub.user(self.token))
        asked = self._json()
        target = self.hub.writable(asked["target"]["name"], self.token)
        if not self.hub.copying:
            raise RefusedError(403, "the repositories lie in different storage regions")
        wanted = {f["sha256"] for f in asked["files"]}
        failed = [{"sha256": key, "error": "not found"} for key in wanted - source.stored]
        self.hub.counts.copies += sorted(wanted & source.stored)
        target.stored |= wanted & source.stored
        self._answer({"failed": failed})

    def _commit(self, name: str, revision: str) -> None:
        proposed = "create_pr" in self.query
        repo = self.hub.repo(name, self.hub.user(self.token)) if proposed else self.hub.writable(name, self.token)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = self.hub.head(repo, revision)
        if header.get("parentCommit") not in (None, head):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[head][2])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = self.hub._keep(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                path = self.hub.folder / value["oid"]
                if value["oid"] not in repo.stored:
                    raise RefusedError(400, f"LFS pointer to a file that was not uploaded: {value['path']}")
                tree[value["path"]] = Blob(value["oid"], path.stat().st_size, True)
            elif line["key"] == "deletedFile":
                if value["path"] not in tree:
                    raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
                del tree[value["path"]]
        number = sum(name.startswith("refs/pr/") for name in repo.heads) + 1
        target = f"refs/pr/{number}" if proposed else revision
        if proposed:
            repo.heads[target] = head
        oid = repo.commit(target, tree, header["summary"])
        self.hub.counts.commits.append(oid)
        url = f"{self.hub.url}/{name}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        self._answer(answer | {"pullRequestUrl": f"{url}/discussions/{number}" if proposed else None})


_NAME = r"((?:spaces/)?[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("GET", f"/api/models/{_NAME}/auth-check/write", "auth"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", "/api/repos/create", "create"),
    ("DELETE", "/api/repos/delete", "delete"),
    ("GET", f"/api/models/{_NAME}", "info"),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", "info"),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)", "tree"),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)/(.+)", "tree"),
    ("POST", f"/api/models/{_NAME}/paths-info/([^/]+)", "paths"),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", "branch"),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    ("POST", f"/api/models/{_NAME}/lfs-files/duplicate", "duplicate"),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", "commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", f"/_store/{_NAME}/([0-9a-f]{{64}})", "upload"),
    ("POST", "/_verify", "verify"),
    ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
