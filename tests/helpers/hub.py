"""A stand-in for the hub on this machine: what huggingface_hub calls to make, fill and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_writer"
LARGE = 1000
"""Bytes from which a file goes by LFS."""


@dataclass
class Repository:
    """Its states, oldest first: path → bytes; ``tags`` name some by their number."""

    private: bool = False
    gated: bool = False
    licence: str | None = None
    states: list[dict[str, bytes]] = field(
        default_factory=lambda: [{".gitattributes": b"*.onnx filter=lfs\n"}]
    )
    tags: dict[str, int] = field(default_factory=dict)

    def sha(self, number: int) -> str:
        said = json.dumps(
            [number, {path: hashlib.sha256(b).hexdigest() for path, b in self.states[number].items()}]
        )
        return hashlib.sha1(said.encode()).hexdigest()

    def at(self, revision: str) -> int | None:
        if revision == "main":
            return len(self.states) - 1
        if revision in self.tags:
            return self.tags[revision]
        return next((n for n in range(len(self.states)) if self.sha(n) == revision), None)


@dataclass
class Hub:
    """What the server holds and was asked: ``asked`` lists method and path of every request."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def newest(self) -> dict[str, bytes]:
        """The files of the only repository."""
        (only,) = self.repositories.values()
        return only.states[-1]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The server in a thread of its own."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self._route(path, body)
        except _Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._answer(error.status, b"{}", {k: v for k, v in headers.items() if v})

    def _route(self, path: str, body: bytes) -> None:
        routes = (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/tag/(.+)", self._tag),
            (r"/api/models/([^/]+/[^/]+)/tree/(.+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/(.+)\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/(\w+)", self._put),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, serve in routes:
            if found := re.fullmatch(pattern, path):
                serve(body, *found.groups())
                return
        raise _Refused(404)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str) -> Repository:
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self._known):
            raise _Refused(404 if self._known else 401, "RepoNotFound", "Repository not found")
        if found.gated:
            raise _Refused(403, "GatedRepo", "Access to it is restricted")
        return found

    def _state(self, name: str, revision: str) -> tuple[Repository, int]:
        repository = self._repository(name)
        number = repository.at(revision)
        if number is None:
            raise _Refused(404, "RevisionNotFound", "Revision not found")
        return repository, number

    def _writer(self) -> None:
        if not self._known:
            raise _Refused(401, "", "Invalid credentials in Authorization header")

    def _create(self, body: bytes) -> None:
        self._writer()
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.state.url}/{name}"}
        if name in self.state.repositories:
            self._json(url, 409)
            return
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        self.state.repositories[name] = Repository(private=private)
        self._json(url)

    def _validate(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        good = isinstance(yaml.safe_load(front), dict)
        self._json(
            {"errors": [] if good else [{"message": "no mapping"}], "warnings": []}, 200 if good else 400
        )

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        self._writer()
        self._state(name, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, body: bytes, name: str) -> None:
        self._writer()
        objects = []
        for one in json.loads(body)["objects"]:
            action: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.state.blobs:
                action["actions"] = {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}
            objects.append(action)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400)
        self.state.blobs[oid] = body
        self._answer(200, b"")

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        self._writer()
        repository, number = self._state(name, revision)
        files = dict(repository.states[number])
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            match step["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.state.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repository.states.append(files)
        oid = repository.sha(len(repository.states) - 1)
        self._json({"commitUrl": f"{self.state.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _tag(self, body: bytes, name: str, revision: str) -> None:
        self._writer()
        repository, number = self._state(name, revision)
        repository.tags[json.loads(body)["tag"]] = number
        self._json({})

    def _info(self, body: bytes, name: str, revision: str = "main") -> None:
        repository, number = self._state(name, revision)
        held = repository.states[number]
        files = [{"rfilename": path, "size": len(content)} for path, content in held.items()]
        info = {"id": name, "modelId": name, "sha": repository.sha(number), "siblings": files, "tags": []}
        if repository.licence:
            info["cardData"] = {"license": repository.licence}
        self._json({**info, "private": repository.private, "downloads": 0, "likes": 0})

    def _tree(self, body: bytes, name: str, revision: str) -> None:
        repository, number = self._state(name, revision)
        entries = []
        for path, content in repository.states[number].items():
            entry: dict[str, Any] = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": _git_oid(content),
            }
            if len(content) > LARGE:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository, number = self._state(name, revision)
        content = repository.states[number].get(path)
        headers = {"X-Repo-Commit": repository.sha(number), "Accept-Ranges": "none"}
        if content is None:
            self._answer(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        large = len(content) > LARGE
        etag = hashlib.sha256(content).hexdigest() if large else _git_oid(content)
        self._answer(200, content, headers | {"ETag": f'"{etag}"'})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
