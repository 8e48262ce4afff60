"""A local S3 server (moto's) that fails on demand and records requests."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "speech"


@dataclass
class Store:
    """The server's address, its recorded requests, and when it fails."""

    endpoint: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of each GET of an object."""
    fails: Callable[[int, str], bool] = lambda number, path: False
    """Whether GET ``number``, from 1, of an object is answered with an error 500."""
    failed: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for clients."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # botocore's own retries, in addition to ours
        }

    def upload(self, folder: Path, name: str) -> str:
        """Uploads ``folder`` and returns its address."""
        client = s3fs.S3FileSystem(skip_instance_cache=True)
        if not client.exists(BUCKET):
            client.mkdir(BUCKET)
        client.put(str(folder), f"{BUCKET}/{name}", recursive=True)
        return f"s3://{BUCKET}/{name}"


@contextmanager
def object_store() -> Iterator[Store]:
    """Runs the server, and sets its address in the environment of this process and its child processes."""
    inner: Any = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET" and path.count("/") > 1 and not path.endswith("/"):
            with lock:
                store.requests.append((path, environ.get("HTTP_RANGE", "")))
                fails = store.fails(len(store.requests), path)
                store.failed += fails
            if fails:
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"out of order"]
        answer: Iterable[bytes] = inner(environ, start_response)
        return answer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    store = Store(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with mock.patch.dict("os.environ", store.environment):
            yield store
    finally:
        server.shutdown()
