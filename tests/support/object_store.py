"""A real S3 server on this machine (moto's), which fails when it is told to, and writes down what it is asked for."""

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
    """What is asked of the server, and what it answers."""

    endpoint: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of each GET of an object."""
    fails: Callable[[int, str], bool] = lambda number, path: False
    """Whether GET ``number``, from 1, of an object is answered with an error 500."""
    failed: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """By which a client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # botocore's own, beside ours
        }

    def upload(self, folder: Path, name: str) -> str:
        """Puts what is in ``folder`` at an address of its own, which is returned."""
        client = s3fs.S3FileSystem(skip_instance_cache=True)
        if not client.exists(BUCKET):
            client.mkdir(BUCKET)
        client.put(str(folder), f"{BUCKET}/{name}", recursive=True)
        return f"s3://{BUCKET}/{name}"


@contextmanager
def object_store() -> Iterator[Store]:
    """The server, and an environment in which this process and those that it starts find it."""
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
