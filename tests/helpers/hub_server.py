"""A real HTTP server on 127.0.0.1 with the endpoints of the Hugging Face hub for an upload by LFS."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

TOKEN = "hf_" + "secret" * 5
LICENSES = {"apache-2.0", "mit"}


@dataclass
class Hub:
    """A hub with one repository, and the `files` of its newest commit; it answers with `status` if set."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)  # subjects
    uploads: list[str] = field(default_factory=list)  # SHA-256 of large files
    stored: dict[str, bytes] = field(default_factory=dict)
    exists: bool = False
    private: bool = False
    status: int = 0
    port: int = 0

    @property
    def sha(self) -> str:
        """The newest commit."""
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def address(self, path: str = "") -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub; the client uses it with TOKEN, as with HF_ENDPOINT and HF_TOKEN."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no-such-file")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving_hub() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.address())
        yield state


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a server for the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.state = state = Hub(port=server.server_address[1])
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_oid(content: bytes) -> str:
    """Return Git's identity of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    """Return whether the hub stores a file by LFS."""
    return path.endswith((".safetensors", ".png"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.server.state
        files = [{"rfilename": name} for name in sorted(hub.files)]
        facts = {"id": "me/model", "sha": hub.sha, "private": hub.private, "siblings": files}
        self._answer(200 if hub.exists else 404, facts)

    def do_PUT(self) -> None:
        hub, content = self.server.state, self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        hub.uploads.append(oid)
        hub.stored[oid] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        hub, body = self.server.state, self._body()
        if hub.status:
            return self._answer(hub.status, {"error": "not now"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        for end, answer in {
            "/repos/create": self._create,
            "/validate-yaml": self._validate,
            "/preupload/main": self._preupload,
            "/objects/batch": self._batch,
            "/commit/main": self._commit,
        }.items():
            if self.path.endswith(end):
                return answer(body)
        return self._answer(404, {"error": f"no {self.path}"})

    def _create(self, body: bytes) -> None:
        hub, wanted = self.server.state, json.loads(body)
        status = 409 if hub.exists else 200
        if not hub.exists:
            hub.exists, hub.private = True, wanted.get("visibility") == "private"
            hub.files[".gitattributes"] = b""
        self._answer(status, {"url": hub.address(f"/{wanted['organization']}/{wanted['name']}")})

    def _validate(self, body: bytes) -> None:
        metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        wrong = metadata.get("license", "mit") not in LICENSES
        errors = [{"message": '"license" must be one of [apache-2.0, mit]'}] * wrong
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, body: bytes) -> None:
        hub, found = self.server.state, []
        for one in json.loads(body)["files"]:
            content, large = hub.files.get(one["path"]), is_large(one["path"])
            oid = content and (hashlib.sha256(content).hexdigest() if large else blob_oid(content))
            mode = "lfs" if large else "regular"
            found.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": found})

    def _batch(self, body: bytes) -> None:
        hub, found = self.server.state, []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": hub.address(f"/lfs/{one['oid']}")}}
            found.append({**one, **({} if one["oid"] in hub.stored else {"actions": actions})})
        self._answer(200, {"transfer": "basic", "objects": found})

    def _commit(self, body: bytes) -> None:
        hub = self.server.state
        for line in body.splitlines():
            key, value = json.loads(line).values()
            if key == "header":
                assert value["parentCommit"] == hub.sha
                hub.commits.append(value["summary"])
            elif key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.stored[value["oid"]]
            elif key == "deletedFile":
                del hub.files[value["path"]]
        self._answer(200, {"commitUrl": hub.address(f"/me/model/commit/{hub.sha}"), "commitOid": hub.sha})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, values: Any) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
