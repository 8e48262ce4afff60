"""Requests that the page rejects."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from vits_trainer.config.feedback import FeedbackAppConfig
from vits_trainer.feedback.request_filter import LoginLimit, RequestFilter

HOST = {"host": "localhost:7860"}
PROXY = {"host": "127.0.0.1:7860", "x-forwarded-host": "voice.example"}


class Page:
    """A page that answers every request; wrong passwords with 400."""

    def __init__(self, folder: Path, local_only: bool, **settings: Any) -> None:
        self.reached: list[str] = []
        self.status = 200
        config = FeedbackAppConfig(feedback_dir=str(folder), **settings)
        self.filter = RequestFilter(self._answer, config, local_only)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})

    def request(self, path: str, method: str = "GET", client: str = "1.2.3.4", **headers: str) -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "path": path, "method": method, "client": (client, 1), "headers": named}
        asyncio.run(self.filter(scope, None, send))  # type: ignore[arg-type]
        return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "path", "code"),
    [
        ({"host": "127.0.0.1:7860"}, "/", 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, "/", 200),
        ({"host": "[::1]:7860"}, "/", 200),
        ({"host": "rebound.example:7860"}, "/", 403),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, "/", 403),
        ({"host": "127.0.0.1:7860", "origin": "http://[evil"}, "/", 403),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site"}, "/", 403),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "/", 200),
        ({"host": "rebound.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "/", 403),
        ({}, "/", 403),
        (HOST, "/gradio_api/file=http://127.0.0.1:9/x", 403),
        (HOST, "/gradio_api/proxy=http://127.0.0.1:9/x", 403),
    ],
)
def test_page_without_a_password_is_for_this_machine(
    tmp_path: Path, headers: dict[str, str], path: str, code: int
) -> None:
    assert Page(tmp_path, local_only=True).request(path, **headers) == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({**PROXY, "origin": "https://voice.example"}, 200),
        ({**PROXY, "sec-fetch-site": "same-origin", "origin": "https://voice.example"}, 200),
        (PROXY, 200),  # not a browser
        ({**PROXY, "origin": "https://evil.example"}, 403),
        ({**PROXY, "origin": "null"}, 403),
        ({**PROXY, "sec-fetch-site": "cross-site", "origin": "https://voice.example"}, 403),
        ({**PROXY, "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_posts_of_other_sites_are_rejected_behind_a_proxy(tmp_path: Path, headers: dict[str, str], code: int) -> None:
    page = Page(tmp_path, local_only=False)
    assert page.request("/gradio_api/upload", "POST", content_length="9", **headers) == code
    assert page.request("/", **{**PROXY, "sec-fetch-site": "cross-site"}) == 200  # a link to the page


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("good.wav", 200), ("good.MP3", 200), ("marks.jsonl", 403), ("notes.bak", 403), (".in_use", 403),
        ("a.txt", 403), (".hidden.wav", 403), ("inner/x.wav", 403), ("../feedback/marks.jsonl", 403),
        ("%2e%69n_use", 403),
    ],
)  # fmt: skip
def test_only_recordings_of_the_feedback_folder_are_readable(tmp_path: Path, name: str, code: int) -> None:
    folder = tmp_path / "feedback"
    assert Page(folder, local_only=True).request(f"/gradio_api/file={folder}/{name}", **HOST) == code


def test_wrong_passwords_delay_their_client_and_nobody_else(tmp_path: Path) -> None:
    page = Page(tmp_path, local_only=False)
    now = [100.0]
    page.filter.logins = LoginLimit(now=lambda: now[0])
    page.status = 400
    assert page.request("/login", "POST") == 400
    assert page.request("/login", "POST") == 429
    assert page.request("/login", "POST", client="5.6.7.8") == 400
    assert page.request("/theme.css") == 400  # reached the page
    now[0] += 1.01
    assert page.request("/login", "POST") == 400
    now[0] += 1.01  # the second wait is longer
    assert page.request("/login", "POST") == 429
    now[0] += 1
    page.status = 200
    assert page.request("/login", "POST") == 200
    assert page.request("/login", "POST") == 200
    assert page.reached.count("/login") == 5


def test_guesses_under_forged_addresses_are_limited_together(tmp_path: Path) -> None:
    page = Page(tmp_path, local_only=False)
    page.status = 400
    codes = [page.request("/login", "POST", client=f"10.0.0.{number}") for number in range(100)]
    assert codes.count(400) == 60
    assert set(codes[60:]) == {429}


def test_uploads_are_limited_in_number_and_total(tmp_path: Path) -> None:
    page = Page(tmp_path, local_only=True, max_corrections_per_hour=2, max_upload_mb=1)
    small = {**HOST, "content_length": "1000"}
    assert [page.request("/gradio_api/upload", "POST", **small) for _ in range(5)] == [200] * 4 + [429]
    assert page.request("/gradio_api/upload", "POST", client="5.6.7.8", **small) == 200
    large = {**HOST, "content_length": str(2**20)}
    codes = [page.request("/gradio_api/upload", "POST", client=f"9.9.9.{n}", **large) for n in range(20)]
    assert page.request("/gradio_api/upload", "POST", **HOST) == 411
    assert codes.count(200) <= 15
    assert codes[-1] == 429
