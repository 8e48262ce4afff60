"""Keeps secrets out of what leaves this machine."""

import os
import re
from typing import Any, TypeVar

Value = TypeVar("Value")

HIDDEN = "[redacted]"
_SECRET_NAME = re.compile(r"token$|secret|passw|api_?key|credential|authorization", re.IGNORECASE)
"""Of a setting or an environment variable."""
_SECRETS = (
    re.compile(r"hf_[A-Za-z0-9]{16,}"),  # Hugging Face
    re.compile(r"wandb_v\d_[A-Za-z0-9_]{16,}"),  # an older key looks like a Git commit: only the environment tells
    re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)"),  # user:password in an address
    re.compile(r"(?<=[?&]token=)[^&\s]+"),
)
_SHORTEST = 8
"""A variable's value of fewer characters is a word that may stand anywhere."""


def redacted(value: Value) -> Value:
    """``value`` without secrets, at any depth: under a secret's name, in a secret's form, or as the environment has it.

    Strings, dictionaries, lists and tuples are gone through; all else is as it was.
    """
    return _without(value, _known_secrets())  # type: ignore[no-any-return]


def _without(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if _SECRET_NAME.search(str(key)) and isinstance(inner, str) and inner
            else _without(inner, known)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_without(inner, known) for inner in value)
    if not isinstance(value, str):
        return value
    for secret in known:
        value = value.replace(secret, HIDDEN)
    for form in _SECRETS:
        value = form.sub(HIDDEN, value)
    return value


def _hidden(value: Any) -> Any:
    return HIDDEN if isinstance(value, str) and value else value


def _known_secrets() -> list[str]:
    named = (value for name, value in os.environ.items() if _SECRET_NAME.search(name))
    return sorted({value for value in named if len(value) >= _SHORTEST}, key=len, reverse=True)
