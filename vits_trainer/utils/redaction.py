"""Removal of secrets from everything that is published or logged."""

import os
import re
from typing import Any, TypeVar

Value = TypeVar("Value")

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(r"token$|secret|passw|api_?key|credential|authorization", re.IGNORECASE)
"""Names of settings and environment variables that hold secrets."""
_SECRETS = (
    re.compile(r"hf_[A-Za-z0-9]{16,}"),  # Hugging Face
    re.compile(r"wandb_v\d_[A-Za-z0-9_]{16,}"),  # older keys look like Git commits: only redacted if in the environment
    re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)"),  # user:password in a URL
    re.compile(r"(?<=[?&]token=)[^&\s]+"),
)
_SHORTEST = 8
"""Shorter values of environment variables are not redacted, because they may be ordinary words."""


def redacted(value: Value) -> Value:
    """Returns ``value`` with secrets replaced: values of secret names, known formats and secrets of the environment.

    Recurses into dictionaries, lists and tuples. Values of other types are returned unchanged.
    """
    return _redact(value, _known_secrets())  # type: ignore[no-any-return]


def _redact(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: HIDDEN if _SECRET_NAME.search(str(key)) and isinstance(inner, str) and inner else _redact(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_redact(inner, known) for inner in value)
    if not isinstance(value, str):
        return value
    for secret in known:
        value = value.replace(secret, HIDDEN)
    for pattern in _SECRETS:
        value = pattern.sub(HIDDEN, value)
    return value


def _known_secrets() -> list[str]:
    values = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    return sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)
