"""A local S3 server for the tests of streaming."""

from collections.abc import Iterator

import pytest
import s3fs

from tests.support.object_store import Store, object_store


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as running:
        yield running


@pytest.fixture
def s3(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # no retries of its own, besides ours
    store.requests.clear()
    yield store
    store.fails = lambda number, path: False
