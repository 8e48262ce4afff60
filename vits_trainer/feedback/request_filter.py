"""Rejects HTTP requests to the page: of other sites, for other files, and of clients that send too many."""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vits_trainer.config.feedback import FeedbackAppConfig, is_loopback
from vits_trainer.data.audio import AUDIO_ENDINGS
from vits_trainer.feedback.corrections import RateLimit
from vits_trainer.utils.errors import DataError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Headers = dict[str, str]

POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
"""Content security policy: browsers connect to no other server."""
_MAX_WAIT_S = 64.0
_WRONG_PASSWORDS_PER_MIN = 60
"""Of all clients: their addresses may be forged behind a proxy."""
_UPLOADS_PER_CORRECTION = 2
_UPLOADED_AT_ONCE = 16
"""Largest uploads that fit into the space for unsaved ones."""


@dataclass
class LoginLimit:
    """Makes clients wait after wrong passwords: 1 s, then twice as long each time. Other clients do not wait."""

    now: Callable[[], float] = time.monotonic
    _failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Wrong passwords of a client, and the time of its next attempt."""
    _recent_s: list[float] = field(default_factory=list)

    def wait_s(self, client: str) -> float:
        """Returns the seconds until the client may try again; 0 if it may now."""
        self._recent_s = [time_s for time_s in self._recent_s if time_s > self.now() - 60]
        if len(self._recent_s) >= _WRONG_PASSWORDS_PER_MIN:
            return self._recent_s[0] + 60 - self.now()
        return max(0.0, self._failures.get(client, (0, 0.0))[1] - self.now())

    def record(self, client: str, is_valid: bool) -> None:
        """Counts an attempt."""
        if is_valid:
            self._failures.pop(client, None)
            return
        failures = self._failures.get(client, (0, 0.0))[0] + 1
        self._failures[client] = (failures, self.now() + min(2.0 ** (failures - 1), _MAX_WAIT_S))
        self._recent_s.append(self.now())
        expired = [name for name, (_, next_s) in self._failures.items() if next_s < self.now() - 3600]
        for name in expired:
            del self._failures[name]


class RequestFilter:
    """ASGI middleware. Never blocks the event loop."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], config: FeedbackAppConfig, local_only: bool
    ) -> None:
        """Args:
        app: the page.
        config: its limits and folders.
        local_only: no password is set, so any request with a foreign host or origin is rejected.
        """
        self.app = app
        self.local_only = local_only
        self.folder = Path(config.feedback_dir).resolve()
        self.logins = LoginLimit()
        uploads = _UPLOADS_PER_CORRECTION * config.max_corrections_per_hour
        self.uploads = RateLimit(uploads, 4 * uploads)
        self.max_uploaded_bytes = round(_UPLOADED_AT_ONCE * config.max_upload_mb * 2**20)
        self._uploaded: list[tuple[float, int]] = []
        """Time and bytes of the uploads of the last hour, after which unsaved ones are deleted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards a request, or responds with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        client = str((scope.get("client") or ("unknown",))[0])
        path, is_post = str(scope["path"]), scope.get("method") == "POST"
        is_login = is_post and path.rstrip("/").endswith("/login")
        refusal = self._refusal(path, is_post, headers, client, is_login)
        if refusal is not None:
            code, message = refusal
            await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": message.encode()})
            return

        async def send_with_policy(message: Scope) -> None:
            if message["type"] == "http.response.start":
                if is_login:
                    self.logins.record(client, message["status"] == 200)
                more = [(b"content-security-policy", POLICY), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", []), *more, (b"referrer-policy", b"same-origin")]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _refusal(
        self, path: str, is_post: bool, headers: Headers, client: str, is_login: bool
    ) -> tuple[int, str] | None:
        """Returns the status and a message if a request is rejected."""
        if self.local_only and not is_loopback_host(headers):
            return 403, "This page is served to this machine only."
        is_link = not is_post and headers.get("sec-fetch-mode") == "navigate"  # a link of another site to the page
        if (self.local_only or is_post) and is_cross_site(headers) and not is_link:
            return 403, "Requests from other sites are not allowed."
        if "/proxy=" in path or re.search(r"/file=\s*\w+:/", path) or not self._is_readable(path):
            return 403, "This file is not served."
        if is_login and (wait_s := self.logins.wait_s(client)) > 0:
            return 429, f"Too many wrong passwords. Try again in {wait_s:.0f} s."
        return self._refusal_of_upload(headers, client) if is_post and path.rstrip("/").endswith("/upload") else None

    def _is_readable(self, path: str) -> bool:
        """Whether a path is not a file, or one that may be read: of the feedback folder, only recordings."""
        match = re.search(r"/file=(.*)", path)
        if match is None:
            return True
        try:
            file = Path(unquote(match[1])).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        if not file.is_relative_to(self.folder):
            return True  # Gradio's own rules: its temporary folder only
        is_visible = not any(part.startswith(".") for part in file.relative_to(self.folder).parts)
        return is_visible and file.parent == self.folder and file.suffix.lower() in AUDIO_ENDINGS

    def _refusal_of_upload(self, headers: Headers, client: str) -> tuple[int, str] | None:
        if not headers.get("content-length", "").isdecimal():
            return 411, "An upload must state its length."
        now_s, size_bytes = time.monotonic(), int(headers["content-length"])
        self._uploaded = [one for one in self._uploaded if one[0] > now_s - 3600]
        if size_bytes + sum(size for _, size in self._uploaded) > self.max_uploaded_bytes:
            return 429, "Too many uploads at the same time. Try again later."
        try:
            self.uploads.require(client, "uploads")
        except DataError as error:
            return 429, str(error)
        self.uploads.record(client)
        self._uploaded.append((now_s, size_bytes))
        return None


def is_loopback_host(headers: Headers) -> bool:
    """Whether a request names this machine: a page of another site may reach it by DNS rebinding."""
    try:
        return is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:
        return False


def is_cross_site(headers: Headers) -> bool:
    """Whether a page of another site sent a request. Browsers state it; older ones state the origin.

    Behind a proxy, ``X-Forwarded-Host`` may be the host that the browser knows.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        own = {headers.get("host", ""), headers.get("x-forwarded-host", headers.get("host", ""))}
        return origin is not None and urlsplit(origin).netloc not in own
    except ValueError:
        return True
