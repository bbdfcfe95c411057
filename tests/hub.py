"""A hub on this machine, for tests: repositories in memory, served as huggingface_hub asks for them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants

#: The only token that may write, and read what is private.
TOKEN = "hf_of_a_test"


class Repository:
    """Branches and commits of files.

    Attributes:
        commits: their files, by commit.
        branches: their newest commits.
        private: whether it takes the token to be seen.
        gated: whether nobody is let in.
    """

    def __init__(self, *, private: bool = False, gated: bool = False) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.private = private
        self.gated = gated
        self.commit({})

    def commit(self, files: dict[str, bytes], *, branch: str = "main") -> str:
        """A commit that adds files to a branch."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        after = before | files
        name = hashlib.sha1(repr((len(self.commits), sorted(after.items()))).encode()).hexdigest()
        self.commits[name] = after
        self.branches[branch] = name
        return name

    def add(self, folder: Path, *, below: str = "", branch: str = "main") -> str:
        """A commit of all files of a folder."""
        files = {
            f"{below}/{path.relative_to(folder).as_posix()}".strip("/"): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()
        }  # fmt: skip
        return self.commit(files, branch=branch)

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit of main."""
        return self.commits[self.branches["main"]]


class Hub:
    """The server.

    Attributes:
        repositories: by ``user/name``.
        asked: method and path of all requests.
        moves: called before a file is answered for, so that a repository can move meanwhile.
        errors: status by the beginning of paths that are answered so.
        endpoint: its address.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.moves: list[Any] = []
        self.errors: dict[str, int] = {}

    def create(self, name: str, **facts: Any) -> Repository:
        self.repositories[name] = Repository(**facts)
        return self.repositories[name]


@contextlib.contextmanager
def hub_at_work(cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub goes to inside the block, with an empty cache and no token."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint = hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with contextlib.ExitStack() as stack:
            changed = {
                "ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": True,
                "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
                "HF_TOKEN_PATH": str(cache / "token"),
            }  # fmt: skip
            for name, value in changed.items():
                stack.enter_context(patch.object(constants, name, value))
            yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        else:
            self._resolve()

    def do_POST(self) -> None:
        path = self._path()
        body = self._body()
        if self._refused(path):
            return
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path
        ):
            repository = self.hub.repositories[found[1]]
            getattr(self, f"_{found[2]}")(found[1], repository, unquote(found[3]), body)
        else:
            self._fail(404)

    def _body(self) -> bytes:
        """What was sent: commits come in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _path(self) -> str:
        self.hub.asked.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _refused(self, path: str) -> bool:
        """Whether a writing request was answered with a refusal."""
        for beginning, status in self.hub.errors.items():
            if path.startswith(beginning):
                self._fail(status)
                return True
        if not self._known and path != "/api/validate-yaml":
            self._fail(401, message="Invalid username or password.")
            return True
        return False

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._known):
            self._fail(401 if not self._known else 404, code="RepoNotFound")
        elif repository.gated:
            self._fail(403, code="GatedRepo")
        else:
            return repository
        return None

    def _resolve(self) -> None:
        path = self._path() if self.command == "HEAD" else urlsplit(self.path).path
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        for beginning, status in self.hub.errors.items():
            if path.startswith(beginning):
                self._fail(status)
                return
        repository = self._repository(found[1]) if found else None
        if found is None:
            self._fail(404)
        if found is None or repository is None:
            return
        if self.command == "HEAD" and self.hub.moves:
            self.hub.moves.pop(0)()
        revision, name = unquote(found[2]), unquote(found[3])
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._fail(404, code="RevisionNotFound")
        elif name not in repository.commits[commit]:
            self._fail(404, code="EntryNotFound", commit=commit)
        else:
            content = repository.commits[commit][name]
            digest = hashlib.sha256(content).hexdigest()
            self._answer(content, **{
                "X-Repo-Commit": commit, "ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
            })  # fmt: skip

    def _info(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.branches.get(unquote(revision))
        if commit is None:
            self._fail(404, code="RevisionNotFound")
            return
        siblings = [{"rfilename": file} for file in repository.commits[commit]]
        self._json(
            {
                "id": name,
                "sha": commit,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            self.hub.create(name, private=asked.get("visibility") == "private")
        self._json({"url": f"{self.hub.endpoint}/{name}"}, status=409 if there else 200)

    def _preupload(self, _: str, __: Repository, ___: str, body: bytes) -> None:
        asked = json.loads(body)["files"]
        files = [
            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in asked
        ]
        self._json({"files": files})

    def _branch(self, _: str, repository: Repository, name: str, __: bytes) -> None:
        there = name in repository.branches
        repository.branches.setdefault(name, repository.branches["main"])
        self._json({}, status=409 if there else 200)

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines if line["key"] == "file"
        }  # fmt: skip
        commit = repository.commit(files, branch=branch)
        self._json(
            {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit}
        )

    def _json(self, tree: Any, *, status: int = 200) -> None:
        self._answer(
            json.dumps(tree).encode(), status=status, **{"Content-Type": "application/json"}
        )

    def _fail(self, status: int, *, code: str = "", message: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._answer(b"", status=status, **{name: text for name, text in headers.items() if text})

    def _answer(self, content: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
