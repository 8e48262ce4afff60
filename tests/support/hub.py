"""A local Hub server that accepts model uploads of the real client."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_" + "notarealtoken" * 2


@dataclass
class Hub:
    """Requests to the server, and its contents."""

    address: str = ""
    fails_at: str = ""
    """Requests whose path contains this are answered with status 403."""
    is_public: bool = False
    """A public model of that name exists already."""
    made: list[dict[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


class _Answers(http.server.BaseHTTPRequestHandler):
    """The Hub's HTTP API for an upload of model owner/name by LFS."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        path, hub = urlsplit(self.path).path, self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.fails_at and hub.fails_at in path:
            self._answer(403, {"error": f"no right to write, says the Hub of {TOKEN}"})
        elif path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self._answer(200, {"url": f"{hub.address}/owner/name", "id": "owner/name"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/owner/name/preupload/main":
            files = json.loads(body)["files"]
            modes = [(f["path"], "lfs" if f["path"].endswith((".safetensors", ".wav")) else "regular") for f in files]
            self._answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
        elif path == "/owner/name.git/info/lfs/objects/batch":
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.address}/blobs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif path == "/api/models/owner/name/commit/main":
            self._commit([json.loads(line) for line in body.decode().splitlines()])
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/blobs/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.blobs[oid] = content
        self._answer(200, {})

    def do_GET(self) -> None:
        private = not self.hub.is_public
        info = {"id": "owner/name", "sha": "c0" * 20, "siblings": [], "tags": [], "private": private}
        self._answer(*((200, info) if self.hub.made else (404, {"error": "no such model"})))

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.commits += 1
        self._answer(200, {"commitUrl": f"{self.hub.address}/owner/name/commit/c0", "commitOid": "c0" * 20})


@contextmanager
def hub_on_this_machine(fails_at: str = "", is_public: bool = False) -> Iterator[Hub]:
    hub = Hub(fails_at=fails_at, is_public=is_public)
    answers = type("Answers", (_Answers,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


def client_of(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Directs the real client to another address, with a login there."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the local server supports LFS only
